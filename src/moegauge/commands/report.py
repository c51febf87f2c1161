"""`moegauge report`: one HTML page, or a Markdown table, from records."""

from __future__ import annotations

from pathlib import Path

import click

from moegauge import outfile
from moegauge.commands._output import json_option, print_json, say, say_lines
from moegauge.commands._threads import one_blas_thread
from moegauge.errors import UsageError
from moegauge.record import json_schema, load, pool

FILE = click.Path(dir_okay=False, path_type=Path)
_EPILOG = """Examples:

\b
  moegauge report results/amd-epyc-zen3-2c/*.json --out report.html
  moegauge report results/amd-epyc-zen3-2c/*.json --markdown"""


@click.command("report", epilog=_EPILOG)
@click.argument("records", nargs=-1, type=FILE)
@click.option("--out", type=FILE, help="Where the page goes.  [default: moegauge-report.html]")
@click.option("--markdown", is_flag=True, help="Print Markdown tables instead: measured and predicted, other programs.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of a record instead.")
@json_option
def command(records: tuple[Path, ...], out: Path | None, markdown: bool, schema: bool, as_json: bool) -> None:
    """One self-contained HTML page from RECORDS of one machine: plots, tables, machine, commands."""
    if schema:
        print_json(json_schema())
        return
    if not records:
        raise UsageError("no record given.", advice="Example: moegauge report results/*.json --out report.html")
    one_blas_thread()
    loaded, names = [load(path) for path in records], [path.name for path in records]
    if markdown:
        from moegauge.bench.judge.compare import compare
        from moegauge.bench.report.tables import comparison_markdown, peers_markdown

        peers = peers_markdown(loaded)
        own = [r for r in loaded if any(case.kind == "decode" for case in r.own_cases)]
        if own or not peers:
            say_lines(comparison_markdown(compare(pool(loaded, names)), loaded[-1]))
        if peers:
            if own:
                say()
            say_lines(peers)
        return
    target = out or Path("moegauge-report.html")
    if target.exists() and b'content="moegauge ' not in target.read_bytes()[:2000]:
        raise UsageError(f"{target}: exists and is no report of ours.", advice="Give another --out.")
    from moegauge.bench.report.page import page

    outfile.write(target, page(loaded, names))
    if as_json:
        print_json({"schema": "moegauge.report/1", "report": str(target), "records": names})
    else:
        say(str(target))
