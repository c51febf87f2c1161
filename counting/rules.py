"""Read a user's own naming rules (`moegauge count --rules FILE`): roles of tensor names no shipped rule knows.

TOML, one table per rule, tried in order before the shipped ones of `moegauge.counting.families`:

    [[rule]]
    role = "routed_expert"
    pattern = 'model\\.layers\\.#\\.ffn\\.bank\\.(?:up|down)'    # the whole module name, its numbers as #
    note = "whose names they are"                              # optional
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from moegauge.counting.families import Rule
from moegauge.counting.roles import ROLES
from moegauge.errors import UsageError
from moegauge.limits import RULES_LIMIT_BYTES
from moegauge.regular import read_file

# Roles a name cannot give: what tensors stand beside decides those.
_GIVEN = ("unclassified", "quant_meta", "duplicate")
GIVABLE = tuple(role for role in ROLES if role not in _GIVEN)


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a file, in its order.

    Raises:
        UsageError: it cannot be read, is not TOML, or a rule names no role or no regular expression.
    """
    try:
        raw = read_file(path, RULES_LIMIT_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}.") from None
    try:
        document = tomllib.loads(raw.decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"{path}: is not TOML: {error}.") from None
    rows = document.get("rule")
    if set(document) != {"rule"} or not isinstance(rows, list) or not rows:
        raise UsageError(f"{path}: holds no rules.", advice="Each is a table [[rule]] with role and pattern.")
    return tuple(_rule(row, f"{path}: rule {number}") for number, row in enumerate(rows, 1))


def _rule(row: Any, where: str) -> Rule:
    if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
        raise UsageError(f"{where}: role, pattern and note are strings.")
    if not {"role", "pattern"} <= set(row) <= {"role", "pattern", "note"}:
        raise UsageError(f"{where}: needs role and pattern, may have note, and nothing else.")
    if row["role"] not in GIVABLE:
        raise UsageError(f"{where}: there is no role {row['role']!r}.", advice=f"Roles: {', '.join(GIVABLE)}.")
    try:
        re.compile(row["pattern"])
    except re.error as error:
        raise UsageError(f"{where}: the pattern is no regular expression: {error}.") from None
    return Rule(row["role"], row["pattern"], row.get("note", ""))
