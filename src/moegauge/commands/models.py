"""`moegauge models`: the catalogue of open MoE models, as a table, as shapes, and recounted from the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click

from moegauge import models, outfile
from moegauge.commands._output import json_option, print_json, print_table, say, say_lines
from moegauge.errors import UnknownNameError, UsageError
from moegauge.models.catalogue import Entry, entries, find, flat
from moegauge.text import csv_text
from moegauge.units import human_bytes, human_count

HEADINGS = (
    *("model", "total", "dense", "routed", "active", "without embedding", "experts", "MoE layers"),
    *("GB/token", "bf16", "fp8", "int4", "nvfp4", "KV kB/token"),
)


def write_layout(name: str, folder: Path) -> None:
    """Lay out the headers of a released checkpoint in a new folder; the data are holes and take no disk."""
    from moegauge.counting.sources import release_layout

    release = release_layout.release(name.lower())
    with outfile.new_folder(folder) as scratch:
        release_layout.write(scratch, release["config"], release["shards"])
    say(f"{folder}: headers of {release['repo']} as released; the weights are holes in sparse files.", err=True)


@click.command(
    "models",
    epilog="Example: moegauge models deepseek-v3 --layout deepseek-v3 && moegauge count deepseek-v3",
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--layout",
    "folder",
    type=click.Path(path_type=Path),
    help="Write the release's headers as a sparse checkpoint in a new FOLDER, to try `count` offline.",
)
@click.option(
    "--table", is_flag=True, help="Counts, bytes per token by format, KV per token and sources of NAMEs or all."
)
@click.option("--csv", "form", flag_value="csv", help="With --table: as CSV.")
@click.option("--markdown", "form", flag_value="markdown", help="With --table: as a Markdown table.")
@click.option("--verify", is_flag=True, help="Recount NAMEs or all from the Hub's headers and print what differs.")
@json_option
def command(
    names: tuple[str, ...], *, folder: Path | None, table: bool, form: str | None, verify: bool, as_json: bool
) -> None:
    """List the shipped models; with NAME, print that one as ModelShape JSON."""
    if sum((folder is not None, table, verify)) > 1:
        raise UsageError("--layout, --table and --verify go alone.", advice="Give one of them.")
    if form is not None and (not table or as_json):
        raise UsageError(f"--{form} goes with --table, without --json.", advice=f"moegauge models --table --{form}")
    if folder is not None:
        if len(names) != 1:
            raise UsageError(
                "--layout needs one model NAME.", advice="Example: moegauge models gpt-oss-20b --layout gpt-oss-20b"
            )
        if os.path.lexists(folder):
            raise UsageError(f"{folder}: already exists; it is left as it is.", advice="Name a new folder.")
        write_layout(names[0], folder)
    elif table:
        print_catalogue(chosen(names), form, as_json=as_json)
    elif verify:
        from moegauge.commands._verify import verify_entries

        verify_entries(chosen(names), as_json=as_json)
    elif names:
        if len(names) > 1:
            raise UsageError("one NAME is printed as a shape.", advice="Give one, or --table for several.")
        print_json(models.load(names[0]).to_json())
    else:
        print_list(list(entries().values()), as_json=as_json)


def chosen(names: Iterable[str]) -> list[Entry]:
    """The entries of these names; all when none is given.

    Raises:
        UnknownNameError: no such model ships.
    """
    found = []
    for name in names:
        entry = find(name)
        if entry is None:
            raise UnknownNameError("model", name, models.names())
        found.append(entry)
    return found or list(entries().values())


def print_list(listed: list[Entry], *, as_json: bool) -> None:
    """The short list."""
    if as_json:
        print_json(
            {
                "schema": "moegauge.models/1",
                "models": [
                    {
                        "name": e.name,
                        "family": e.family,
                        "layers": e.layers,
                        "moe_layers": e.moe_layers,
                        "parameters": e.total,
                        "active": e.active,
                        "bytes_per_token": e.bytes_per_token["native"],
                        "source": {"repo": e.repo, **e.source},
                    }
                    for e in listed
                ],
            }
        )
        return
    print_table(
        ("model", "family", "layers", "MoE", "total", "active", "bytes/token"),
        [
            (
                e.name,
                e.family,
                str(e.layers),
                str(e.moe_layers),
                human_count(e.total),
                human_count(e.active),
                human_bytes(e.bytes_per_token["native"]),
            )
            for e in listed
        ],
        2,
    )


def print_catalogue(listed: list[Entry], form: str | None, *, as_json: bool) -> None:
    """One row per model, with everything a table can show of it."""
    rows = [e.row() for e in listed]
    if as_json:
        print_json({"schema": "moegauge.catalogue/1", "models": rows})
    elif form == "csv":
        cells = flat(rows)
        say_lines(csv_text([cells[0], *(row.values() for row in cells)]))
    elif form == "markdown":
        say_lines("\n".join(markdown(listed)))
    else:
        print_table(HEADINGS, [cells_of(e) for e in listed])


def cells_of(e: Entry) -> list[str]:
    """One row for people: counts, decimal gigabytes and kilobytes."""
    counts = (e.total, e.dense, e.routed, e.active, e.active_without_embedding)
    sizes = (e.bytes_per_token[form] for form in ("native", "bf16", "fp8", "int4", "nvfp4"))
    return [
        e.name,
        *(human_count(n) for n in counts),
        f"{e.top_k} of {e.experts}",
        f"{e.moe_layers} of {e.layers}",
        *(f"{n / 1e9:.2f}" for n in sizes),
        "" if e.kv_per_context_token is None else f"{e.kv_per_context_token / 1e3:.1f}",
    ]


def markdown(listed: Iterable[Entry]) -> list[str]:
    """The lines of a Markdown table, each model linked to its repository."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" + "|--:" * (len(HEADINGS) - 1) + "|"]
    for e in listed:
        name, *cells = cells_of(e)
        lines.append(f"| [{name}](https://huggingface.co/{e.repo}) | {' | '.join(cells)} |")
    return lines
