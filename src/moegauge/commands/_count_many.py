"""`moegauge count --from` and `--diff`: many targets into one file, and where two counts differ."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import click

from moegauge import outfile
from moegauge.commands._output import print_json, print_table, say, show_progress, warn
from moegauge.counting import difference, many, parquet
from moegauge.errors import UsageError
from moegauge.limits import LIST_LIMIT_BYTES

SHOWN_FAILURES = 50
REASON_CHARACTERS = 160
Count = Callable[[str, str | None], dict[str, Any]]


def count_many(
    source: str,
    out: Path,
    count: Count,
    *,
    jobs: int,
    shard: str,
    parquet_file: Path | None,
    retry_failed: bool,
    keep_going: bool,
    engine: str,
    as_json: bool,
) -> None:
    """Count every target of the list `source` ('-' is stdin) into `out`; a summary goes to stderr, failures as a table.

    Raises:
        UsageError: no list, an empty one, or an `--out` this command did not write.
        OutputError: a file is another's, two are one, or the system refuses to write.
        Exit: 1 when a target failed, unless `keep_going`.
    """
    listed = None if source == "-" else Path(source)
    outfile.check_apart(out=out, parquet=parquet_file, **{"from": listed})
    if parquet_file is not None:
        parquet.check_available()
        outfile.check_free(parquet_file, "--parquet", replaces=parquet.is_ours)
    targets = many.read_targets(_lines(source), shard)
    if not targets:
        raise UsageError(f"{source}: no targets.", advice="Write one org/name per line.")
    start, fresh = time.perf_counter(), 0
    workers: many.Workers
    if engine:
        from moegauge.counting.engine import Cluster

        workers = Cluster(engine, count)
    else:
        workers = many.Threads(count, jobs)
    try:
        for line in many.run_on(targets, out, workers, retry_failed=retry_failed):
            fresh += 1
            show_progress(f"{fresh:,} counted now, {_cut(line['target'], 60)}")
    except KeyboardInterrupt:
        warn(f"{fresh:,} counted now; {out} is whole so far, the same command goes on from there.")
        raise
    seconds = time.perf_counter() - start
    show_progress("", done=True)
    rate = f", {fresh / seconds:.1f} per second" if fresh else ""
    say(f"{len(targets):,} targets, {fresh:,} counted now in {seconds:.1f} s{rate}; wrote {out}", err=True)
    if parquet_file is not None:
        rows = parquet.write(many.read_lines(out), parquet_file)
        say(f"wrote {rows:,} rows to {parquet_file}", err=True)
    failed = many.failures(targets, out)
    _show_failures(failed, out)
    if as_json:
        rows_of = [{key: line.get(key) for key in ("target", "revision", "error", "message")} for line in failed]
        document = {"targets": len(targets), "counted_now": fresh, "out": str(out), "failed": rows_of}
        print_json({"schema": "moegauge.count_many/1", **document})
    if failed and not keep_going:
        raise click.exceptions.Exit(1)


def _show_failures(failed: list[many.Line], out: Path) -> None:
    """A table of failures on stderr, and how many there are of each kind."""
    if not failed:
        return
    rows = [(_named(line), line["error"], _cut(str(line.get("message")), REASON_CHARACTERS)) for line in failed]
    print_table(("target", "error", "reason"), rows[:SHOWN_FAILURES], 3, err=True)
    if len(rows) > SHOWN_FAILURES:
        say(f'and {len(rows) - SHOWN_FAILURES:,} more: the lines of {out} whose "error" is not null', err=True)
    for name, number in Counter(line["error"] for line in failed).most_common():
        warn(f"{number:,} failed with {name}")


def _named(line: many.Line) -> str:
    return _cut(f"{line['target']}@{line['revision']}" if line["revision"] else line["target"], REASON_CHARACTERS)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 3]}..."


def _lines(source: str) -> list[str]:
    if source == "-":
        return _capped(sys.stdin.buffer, source)
    try:
        with Path(source).open("rb") as file:  # a pipe too, as `<(...)` of a shell is
            return _capped(file, source)
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: cannot be read: {error}.", advice="Give a text file, or - for stdin.") from None


def _capped(stream: BinaryIO, source: str) -> list[str]:
    text = stream.read(LIST_LIMIT_BYTES + 1)
    if len(text) > LIST_LIMIT_BYTES:
        raise UsageError(f"{source}: more than {LIST_LIMIT_BYTES:,} bytes, no list of targets.", advice="Use --shard.")
    return text.decode("utf-8").splitlines()


def print_difference(a: str, b: str, count: Count, *, as_json: bool) -> None:
    """Compare two counts: targets, `.json` documents of `count --json`, or `.jsonl` files of `count --from`.

    Raises:
        UsageError: a results file beside a single count, or a file that is neither.
    """
    left, right = _side(a, count), _side(b, count)
    if isinstance(left, list) != isinstance(right, list):
        raise UsageError("--diff needs two single counts or two .jsonl files, not one of each.")
    if isinstance(left, list) and isinstance(right, list):
        found = difference.compare_results(_by_target(left), _by_target(right))
    else:
        assert isinstance(left, dict)
        assert isinstance(right, dict)
        found = difference.compare_documents(left, right)
    if as_json:
        print_json({"schema": "moegauge.diff/1", "a": a, "b": b, "equal": not found, "differences": found})
        return
    if not found:
        say("no difference")
    for each in found:
        where = f"{each['target']}: " if "target" in each else ""
        say(f"{where}{each['field']}: {_shown(each['a'])} -> {_shown(each['b'])}")


def _shown(value: Any) -> str:
    return f"{value:,}" if type(value) is int else "absent" if value is None else str(value)


def _by_target(lines: list[many.Line]) -> dict[str, many.Line]:
    return {f"{line['target']}@{line['revision']}" if line["revision"] else line["target"]: line for line in lines}


def _side(name: str, count: Count) -> dict[str, Any] | list[many.Line]:
    path = Path(name)
    if path.suffix == ".jsonl" and path.is_file():
        return list(many.read_lines(path))
    if path.suffix == ".json" and path.is_file() and not name.endswith(".safetensors.index.json"):
        try:
            document = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or not str(document.get("schema")).startswith("moegauge.count/"):
            raise UsageError(f"{name}: not a document of 'moegauge count --json'.", advice="Count it again.")
        return document
    repo, _, revision = name.partition("@")
    return count(name, None) if path.exists() or not revision else count(repo, revision)
