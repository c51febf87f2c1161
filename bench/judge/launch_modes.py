"""Launch modes compared at one point: thread counts of a CPU, launch modes of a GPU, backends.

What each launch mode gains is a result; the law is fitted to one setup alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moegauge.estimator.observe import Setup, setup
from moegauge.record import Case


def setup_name(key: Setup) -> str:
    """`cpu, 2 threads` or `triton, graph`."""
    backend, launch_mode, threads = key
    count = f"{threads} thread{'s' if threads > 1 else ''}" if threads else ""
    return ", ".join(part for part in (backend, launch_mode, count) if part)


@dataclass(frozen=True, slots=True)
class LaunchComparison:
    """One point in every setup it was measured in, slowest first.

    Attributes:
        cases: the cases, of equal model, format, batch and context.
    """

    cases: tuple[Case, ...]

    def to_json(self) -> dict[str, Any]:
        """One entry of `ladder` in `moegauge.compare/1`."""
        first = self.cases[0]
        return {
            "model": first.model,
            "format": first.format,
            "batch": first.batch,
            "context": first.context,
            "rungs": [
                {
                    "backend": case.backend,
                    "rung": case.launch_mode,
                    "threads": case.threads,
                    "tokens_per_s": case.tokens_per_s,
                    "roof_fraction": case.roof_fraction,
                    "gain": case.tokens_per_s / first.tokens_per_s,
                }
                for case in self.cases
            ],
        }


def launch_modes(cases: Sequence[Case]) -> list[LaunchComparison]:
    """Every point measured in at least two setups."""
    found: dict[tuple[Any, ...], dict[Setup, Case]] = {}
    for case in cases:
        point = (case.model, case.format, case.batch, case.context, case.kv_format, case.routing)
        found.setdefault(point, {})[setup(case)] = case
    return [
        LaunchComparison(tuple(sorted(cases.values(), key=lambda case: case.tokens_per_s)))
        for cases in found.values()
        if len(cases) > 1
    ]


HEADINGS = ("point", "launched as", "tok/s", "gain", "of its roof")


def table_rows(found: Sequence[LaunchComparison]) -> list[tuple[str, ...]]:
    """Cells under `HEADINGS`: every point in every setup, its gain over the slowest one."""
    return [
        (
            case.label,
            setup_name(setup(case)),
            f"{case.tokens_per_s:.4g}",
            f"{case.tokens_per_s / point.cases[0].tokens_per_s:.3f}",
            f"{100 * case.roof_fraction:.1f} %",
        )
        for point in found
        for case in point.cases
    ]
