"""Write docs/catalogue.md: the table, every count against what is published, disagreements with their reasons.

`make_models.py` writes the page with the catalogue; alone, `python scripts/catalogue_page.py` rewrites it from the
catalogue that ships.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from moegauge.commands.models import markdown
from moegauge.models.catalogue import Entry, entries

PAGE = Path(__file__).resolve().parent.parent / "docs" / "catalogue.md"
# Why a count and a published figure differ, by repository and figure (`hub`, `total`, `active`).
REASONS: dict[tuple[str, str], str] = {}
# Releases that are not in the catalogue, and why.
LEFT_OUT: dict[str, str] = {}


class Check(NamedTuple):
    """One published figure beside the nearest count.

    Attributes:
        entry: the model.
        figure: `hub` (the Hub's total of elements), `total` or `active` (its authors').
        published, count: parameters.
        convention: what `count` counts.
        verdict: `exact`, `rounds` (the published digits are the count's), `differs`.
    """

    entry: Entry
    figure: str
    published: int
    count: int
    convention: str
    verdict: str

    @property
    def difference(self) -> int:
        """Published minus counted."""
        return self.published - self.count


def counts(entry: Entry, figure: str) -> dict[str, int]:
    """Convention -> count, for one kind of figure, the plainest convention first."""
    shape = entry.shape()
    table, head = shape.embedding.parameters, shape.head.parameters if shape.head else 0
    untied = table if shape.head else 0
    if figure == "active":
        found = {
            "all of the decoder": entry.active,
            "without the input embedding": entry.active - untied,
            "without embedding and head": entry.active - table - head,
            "with the tower": entry.active + entry.beside,
        }
    else:
        found = {
            "decoder": entry.total,
            "decoder and prediction layers": entry.total + entry.mtp,
            "decoder and tower": entry.total + entry.beside,
            "everything": entry.total + entry.mtp + entry.beside,
        }
    if figure == "hub":
        found["everything, scales as elements"] = entry.stored_elements
    if figure == "total":
        found["without embedding and head"] = entry.total - table - head
        found["with prediction layers, without embedding and head"] = entry.total + entry.mtp - 3 * (table + head)
    return found


def unit(published: int) -> int:
    """The last digit of a published figure: a tenth of a trillion for trillions, at most a billion below."""
    digit = 1
    while published % (digit * 10) == 0:
        digit *= 10
    return min(digit, 10**11 if published >= 10**12 else 10**9)


def checks(entry: Entry) -> Iterator[Check]:
    """Every published figure of one model beside its count."""
    figures = {"hub": "hub_total", "total": "total", "active": "active"}
    for figure, key in figures.items():
        published = entry.published[key]
        if published is None:
            continue
        found = counts(entry, figure)
        convention = min(found, key=lambda name: abs(found[name] - published))
        count = found[convention]
        verdict = "exact" if count == published else "differs"
        if figure != "hub" and abs(count - published) * 2 <= unit(published):
            verdict = "rounds"
        yield Check(entry, figure, published, count, convention, verdict)


def page(made: list[Entry], left_out: dict[str, str]) -> str:
    return ""


def main() -> int:
    """Rewrite the page."""
    for e in entries().values():
        for c in checks(e):
            print(f"{e.name:26s} {c.figure:6s} {c.verdict:8s} {c.published:>20,} {c.count:>20,} {c.difference:>16,} {c.difference / c.published:+.2%} {c.convention}")
    print(Counter((c.figure, c.verdict) for e in entries().values() for c in checks(e)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
