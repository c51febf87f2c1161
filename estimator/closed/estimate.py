"""The whole document of `moegauge estimate`: published formula, inversion, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moegauge.errors import UnknownNameError
from moegauge.estimator.closed import backtest, inversion, published
from moegauge.estimator.closed.assumptions import ASSUMPTIONS, floor_prior
from moegauge.estimator.closed.fleets import Fleet, fleets
from moegauge.estimator.hierarchy import load_calibration

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
    return {
        "schema": "moegauge.estimate/1",
        "identifiable": bool(good),
        "why": "; ".join(reasons),
        "backtest": {"sentence": sentence(), **load_calibration().accuracy, "served": _served(good, seed)},
        "observations": [row.to_json() for fleet in found for row in fleet.rows],
        "published": _published(preset, good),
        "measured": {
            "seed": seed,
            "fixed": dict(fixed or {}),
            "floor_us_per_layer": dict(zip(("median", "log_deviation"), floor_prior(), strict=True)),
            "assumptions": {a.name: a.why for a in ASSUMPTIONS.values() if a.name not in (fixed or {})},
            "models": [
                {"provider": fleet.provider, **model.to_json()}
                for fleet in good
                for model in inversion.estimate(fleet.open, fleet.closed, seed=seed, fixed=fixed)
            ],
        },
        "skipped_rows": [{"line": s.line, "model": s.model, "reason": s.reason} for s in skipped],
    }


def sentence() -> str:
    """How far the method is off in the regime of a provider, one line: open MoE models in data centres."""
    rows = load_calibration().accuracy["by_regime"]
    row = next(r for r in rows if r["regime"] == "data centre" and r["moe"] and r["batch"] is None)
    return (
        f"On {row['n']} readings of open MoE models in data centres the 80 % interval holds {row['coverage_80']:.0%} "
        f"and is x{row['width_80']:.0f} wide at the median; the estimate is within x{row['median_fold']:.2f} in half "
        f"of the cases and x{row['p80_fold']:.2f} in 80 %."
    )


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
