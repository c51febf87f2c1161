"""Output of every command: `--json`, tables on stdout, progress and warnings on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

WIDEST = 10_000  # characters of a table's line, more than any has

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """`--json`: print exactly one JSON document on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document.")(function)


def print_json(document: Any) -> None:
    """One document, two-space indent. NaN and infinity are refused rather than written."""
    click.echo(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=True))


def warn(message: str) -> None:
    """One warning line on stderr."""
    click.echo(f"warning: {printable(message)}", err=True)


def printable(text: str) -> str:
    """`text` with control characters, escapes and lone surrogates shown as `\\x1b`-style escapes; names in a
    checkpoint are someone else's bytes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text
    )


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1, *, note: bool = False, err: bool = False
) -> None:
    """A table on stdout, or with `err` on stderr. Its first `words` columns are text, and with `note` the last one; the
    rest are numbers. Never wrapped or cut, so that it can be piped."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, heading in enumerate(headings):
        is_text = i < words or (note and i == len(headings) - 1)
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(printable(cell) for cell in row))
    console = Console(width=WIDEST, highlight=False, markup=False, emoji=False)
    with console.capture() as printed:
        console.print(table)
    for line in printed.get().splitlines():
        click.echo(line.rstrip(), err=err)


def progress_wanted() -> bool:
    """True when stderr is a terminal: progress is drawn nowhere else."""
    return sys.stderr.isatty()
