"""How wide intervals must be to hold: what the back-test's own misses say, by regime, with the model left out.

Conformal: a trial's miss is measured in the half-width its interval would have had; the quantile of those misses over
the trials of one regime is the factor the regime's intervals are widened or narrowed by. Regimes with few models keep
nearer to 1. Backward those are never narrowed; forward what they lack is borrowed from wider regimes (`pooled`): this
place and kind of model, this place, everything. Which of the two was chosen by the interval score of the fitted part,
each model left out: pooling gains forward and loses backward. Vovk, Gammerman, Shafer, "Algorithmic Learning in a
Random World", 2005; normalised misses as in Lei and others, "Distribution-Free Predictive Inference for Regression",
2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

PERCENTS = (50, 80, 95)
FEW = 4.0  # models at which a regime's own misses weigh as much as the law's intervals
LEAST, MOST = 0.5, 2.5  # factors
ENOUGH = 10  # models a regime must have to say that its intervals are too wide


def regime(moe: bool, devices: int, batch: float) -> str:
    """Which misses a trial is judged with."""
    place = "data centre" if devices > 1 else "one device"
    return f"{place}, {'MoE' if moe else 'dense'}, {'one stream' if batch == 1 else 'several streams'}"


def factors(residuals: Sequence[Sequence[Any]], wanted: str, model: str, *, pooled: bool = False) -> dict[int, float]:
    """What half-widths are multiplied by.

    Args:
        residuals: of each trial: regime, model, and its miss over the half-width at each of `PERCENTS`.
        wanted: the regime.
        model: left out.
        pooled: borrow from wider regimes, and narrow whatever the number of models.
    """
    parts = wanted.split(", ")
    found = dict.fromkeys(PERCENTS, 1.0)
    for depth in range(0 if pooled else len(parts), len(parts) + 1):
        rows = [row for row in residuals if row[0].split(", ")[:depth] == parts[:depth] and row[1] != model]
        if rows:
            found = _drawn(rows, found, narrow=pooled)
    return found


def _drawn(rows: Sequence[Sequence[Any]], towards: dict[int, float], *, narrow: bool) -> dict[int, float]:
    """Quantiles of misses, drawn towards other factors the fewer models they are of."""
    models = len({row[1] for row in rows})
    trust = models / (models + FEW)
    found = {}
    for i, percent in enumerate(PERCENTS):
        ordered = sorted(float(row[2 + i]) for row in rows)
        needed = math.ceil(percent / 100 * (len(ordered) + 1))  # of the trials, the one to come included
        miss = ordered[min(needed, len(ordered)) - 1]
        least = LEAST if narrow or models >= ENOUGH else 1.0
        found[percent] = math.exp(
            trust * math.log(min(max(miss, least), MOST)) + (1 - trust) * math.log(towards[percent])
        )
    return found
