"""Output of every command, through one gate: lines, tables and `--json` on stdout, progress and warnings on stderr.

Nothing else in the package writes to a terminal (tests/test_laws.py): what a record, a checkpoint or a table calls
itself is escaped here, whoever prints it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from moegauge.text import printable

WIDEST = 10_000  # characters of a table's line, more than any has

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """`--json`: print exactly one JSON document on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document.")(function)


def print_json(document: Any) -> None:
    """One document, two-space indent. NaN and infinity are refused rather than written."""
    click.echo(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=True))


def say(line: str = "", *, err: bool = False) -> None:
    """One line on stdout, or with `err` on stderr; a newline in it is shown as `\\n`."""
    click.echo(printable(line), err=err)


def say_lines(text: str) -> None:
    """A text of several lines of our own on stdout: Markdown, CSV. Cells of others have none left."""
    for line in text.removesuffix("\n").split("\n"):
        say(line)


def warn(message: str) -> None:
    """One warning line on stderr."""
    say(f"warning: {message}", err=True)


def show_progress(text: str, *, done: bool = False) -> None:
    """Replace the line of progress on a terminal's stderr, `done` for good; nothing where stderr is none."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[2K{printable(text)}", err=True, nl=done)


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
    for line in printed.get().split("\n")[:-1]:
        say(line.rstrip(), err=err)
