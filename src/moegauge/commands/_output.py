"""Output of every command: `--json`, tables on stdout, progress and warnings on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

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


def progress_wanted() -> bool:
    """True when stderr is a terminal: progress is drawn nowhere else."""
    return sys.stderr.isatty()


def wide_console() -> Console:
    """A console for tables on stdout: as wide as the terminal, and wide enough to cut nothing (240 columns) where
    there is none. COLUMNS decides when it is set."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 240)
