"""The gate for text of others that reaches a terminal, a spreadsheet or Markdown: escapes shown, formulas disarmed.

Names in checkpoints, configs, records, shapes, tables and answers of servers are someone else's bytes. `printable` is
what a terminal gets, `spreadsheet` a cell of CSV, `markdown` a cell of a Markdown table, `shown` a name in a message.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

SHOWN_CHARACTERS = 200
# What makes a spreadsheet reckon a cell out (OWASP, "CSV Injection"), at its start or after what another locale takes
# for the end of a cell; full-width forms too, which some programs take for the same.
_FORMULA = re.compile(r"(^|[;,|])(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")


def printable(text: str) -> str:
    """`text` as one line: newlines, control characters, escapes, marks that turn the direction of writing and lone
    surrogates as `\\x1b`-style escapes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text
    )


def is_text(text: str) -> bool:
    """Whether `text` can be written: it holds no half of a surrogate pair, which JSON lets a string hold."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def shown(name: object) -> str:
    """`name` for a message: `printable`, cut to 200 characters."""
    text = name if isinstance(name, str) else repr(name)
    escaped = printable(text[:SHOWN_CHARACTERS])
    return escaped if len(text) <= SHOWN_CHARACTERS else f"{escaped}... ({len(text):,} characters)"


def spreadsheet(text: str) -> str:
    """`text` as a cell no spreadsheet takes for a formula: `printable`, with a `'` before what would begin one."""
    return _FORMULA.sub(r"\1'", printable(text))


def markdown(text: str) -> str:
    """`text` as one cell of a Markdown table: `spreadsheet`, for tables are pasted into those, and no mark-up."""
    return re.sub(r"([\\|`\[\]])", r"\\\1", spreadsheet(" ".join(text.split()))).replace("<", "&lt;")


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV; every text goes through `spreadsheet`, None is empty, numbers are as Python prints them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        writer.writerow([spreadsheet(cell) if isinstance(cell, str) else cell for cell in row])
    return out.getvalue()
