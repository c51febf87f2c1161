"""The whole document of `moegauge estimate`: published formula, inversion, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moegauge.errors import UnknownNameError
from moegauge.estimator.closed import backtest, inversion, published
from moegauge.estimator.closed.assumptions import ASSUMPTIONS
from moegauge.estimator.closed.fleets import Fleet, fleets

PRESETS = {"opus-2026-03": "opus-2026-03.csv"}


def estimate(
    *, preset: str | None = None, path: Path | None = None, seed: int = 0, fixed: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The document of `moegauge estimate --json`: parameters, bytes, bytes/s.

    Args:
        preset: a name of `PRESETS`.
        path: a CSV of served speeds; exactly one of the two.
        seed: of the quasi-random points.
        fixed: assumptions held at a value.

    Raises:
        UnknownNameError: no such preset or assumption.
        ObservationError: the file cannot be used.
    """
    if preset is not None and preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    found, skipped = fleets(path if preset is None else None)
    reasons = [why for fleet in found if (why := fleet.why_not())]
    good = [fleet for fleet in found if not fleet.why_not()]
    trusted = backtest.run()
    return {
        "schema": "moegauge.estimate/1",
        "identifiable": bool(good),
        "why": "; ".join(reasons),
        "backtest": {"sentence": trusted.sentence, **trusted.summary(), "served": _served(good, seed)},
        "published": _published(preset, good),
        "measured": {
            "seed": seed,
            "fixed": dict(fixed or {}),
            "assumptions": {a.name: a.why for a in ASSUMPTIONS.values() if a.name not in (fixed or {})},
            "models": [
                {"provider": fleet.provider, **model.to_json()}
                for fleet in good
                for model in inversion.estimate(fleet.open, fleet.closed, seed=seed, fixed=fixed)
            ],
        },
        "skipped_rows": [{"line": s.line, "model": s.model, "reason": s.reason} for s in skipped],
    }


def _published(preset: str | None, good: list[Fleet]) -> dict[str, Any] | None:
    if preset is not None:
        return published.opus_2026_03()
    return published.of_fleet(good[0]) if good else None


def _served(good: list[Fleet], seed: int) -> dict[str, Any]:
    """Each open model of each fleet estimated from the others by the method used for the closed ones."""
    folds, inside = [], []
    for fleet in good:
        for name in sorted({row.shape.name for row in fleet.open if row.shape}):
            rows = [row for row in fleet.open if row.shape and row.shape.name == name]
            others = [row for row in fleet.open if row.shape and row.shape.name != name]
            truth = rows[0].shape.active_without_embedding if rows[0].shape else 0
            if len({row.shape.name for row in others if row.shape}) < 2:
                continue  # what is not identifiable for a closed model is not for an open one
            # As in the back-test, the method is told whether the model is an MoE, and nothing else of it.
            moe = any(row.shape.moe_layers for row in rows if row.shape)
            told = {} if moe else {"dense_share": 1.0, "expansion": 1.0}
            for result in inversion.estimate(others, rows, seed=seed, fixed=told, points=1 << 12):
                folds.append(math.exp(abs(math.log(result.active["median"] / truth))))
                low, high = result.active["80"]
                inside.append(low <= truth <= high)
    if not folds:
        return {"n": 0}
    return {
        "n": len(folds),
        "median_fold": backtest.quantile(folds, 0.5),
        "worst_fold": max(folds),
        "coverage_80": sum(inside) / len(inside),
    }
