"""`moegauge count --diff`: where two counts, or two files of many counts, differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moegauge.counting.many import Line

# Not counts: where the checkpoint came from, and remarks.
APART = frozenset({"schema", "target", "warnings"})


def flat(document: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(field, value) for every leaf, fields joined by dots; lists are leaves."""
    if not isinstance(document, dict):
        yield prefix, document
        return
    for key, value in document.items():
        yield from flat(value, f"{prefix}.{key}" if prefix else str(key))


def compare_documents(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    """`{"field", "a", "b"}` for every count that differs; None where one side lacks it."""
    left = dict(flat({key: value for key, value in a.items() if key not in APART}))
    right = dict(flat({key: value for key, value in b.items() if key not in APART}))
    fields = list(dict.fromkeys([*left, *right]))
    return [
        {"field": field, "a": left.get(field), "b": right.get(field)}
        for field in fields
        if left.get(field) != right.get(field)
    ]


def compare_results(a: dict[str, Line], b: dict[str, Line]) -> list[dict[str, Any]]:
    """The same for result files, by target: `{"target", "field", "a", "b"}`; a target on one side only is the field
    `present`."""
    found: list[dict[str, Any]] = []
    for target in sorted(a.keys() | b.keys()):
        if target not in a or target not in b:
            found.append({"target": target, "field": "present", "a": target in a, "b": target in b})
            continue
        left, right = a[target], b[target]
        if left["error"] != right["error"]:
            found.append({"target": target, "field": "error", "a": left["error"], "b": right["error"]})
        differences = compare_documents(left["count"] or {}, right["count"] or {})
        found.extend({"target": target, **difference} for difference in differences)
    return found
