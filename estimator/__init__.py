"""Predict tokens/s from a `ModelShape`, and estimate a closed model from its served tokens/s.

Imports no torch.

    from moegauge import estimator, models

    estimator.step_traffic(models.load("deepseek-v3"), batch=8)      # bytes of a step by term
    estimator.by_device(models.load("glm-4.7"), estimator.device("NVIDIA H200 SXM"), parallel=estimator.Parallel(tp=8))
    estimator.run_estimate(preset="opus-2026-03")                    # the document of `moegauge estimate`
    estimator.run_backtest().sentence

Names are loaded when they are used, so importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

# public name -> (module, name in it)
_PUBLIC = {
    "Draft": ("predict", "Draft"),
    "Forecast": ("predict", "Forecast"),
    "Law": ("law", "Law"),
    "Observation": ("law", "Observation"),
    "Parallel": ("parallel", "Parallel"),
    "Traffic": ("traffic", "Traffic"),
    "adjudicate": ("closed.claims", "adjudicate"),
    "batch_curve": ("batching", "curve"),
    "by_device": ("predict", "by_device"),
    "by_hand": ("predict", "by_hand"),
    "by_record": ("predict", "by_record"),
    "device": (".hardware", "device"),
    "dollars_per_million": ("batching", "dollars_per_million"),
    "fit": ("law", "fit"),
    "leave_one_model_out": ("law", "leave_one_model_out"),
    "read_readings": ("readings", "read"),
    "run_backtest": ("closed.backtest", "run"),
    "run_estimate": ("closed.estimate", "estimate"),
    "step_traffic": ("traffic", "step_traffic"),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, member = _PUBLIC[name]
    return getattr(importlib.import_module(f".{module}", __name__), member)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
