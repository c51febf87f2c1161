"""Fit the spreads of `moegauge.estimator.hierarchy` and write estimator/data/calibration.json; ten minutes.

Spreads come from all readings of `hierarchy.training`, and again without each model, each system and each family of
systems; then the misses of the back-test on those readings, each model left out, from which intervals get their widths.
The models kept apart are never looked at. With --keep-spreads only the latter is done.

Run: OMP_NUM_THREADS=1 .venv/bin/python scripts/make_calibration.py
"""

from __future__ import annotations

import json
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from moegauge.estimator import hierarchy
from moegauge.estimator.additive import PARAMETERS
from moegauge.estimator.architectures import kept_apart
from moegauge.estimator.closed import backtest, widths
from moegauge.estimator.hierarchy import Calibration, Spreads, case, condition, fit_spreads, likelihood, training
from moegauge.estimator.readings import read_packaged

OUT = Path(__file__).resolve().parent.parent / "estimator" / "data" / "calibration.json"


def spreads() -> dict[str, object]:
    """From all readings, and without each label."""
    readings = training()
    cases = [case(r) for r in readings]
    # The likelihood has several peaks: from the guess and from what is packaged so far, the likelier one wins.
    starts = (hierarchy.GUESS, hierarchy.load_calibration().all)
    with ProcessPoolExecutor() as pool:
        everything = max(pool.map(fit_spreads, [cases] * 2, starts), key=lambda found: likelihood(found, cases))
    document: dict[str, object] = {"all": everything.to_list()}
    labels = {
        "without": [c.model for c in cases],
        "without_system": [r.system for r in readings],
        "without_family": [c.family for c in cases],
    }
    with ProcessPoolExecutor() as pool:
        for part, names in labels.items():
            wanted = sorted(set(names))
            kept = [[c for c, label in zip(cases, names, strict=True) if label != name] for name in wanted]
            fitted = pool.map(_without, kept, [everything] * len(wanted))
            document[part] = {name: one.to_list() for name, one in zip(wanted, fitted, strict=True)}
            print(part, len(wanted), flush=True)
    return document


def _without(cases: list[hierarchy.Case], start: Spreads) -> Spreads:
    return fit_spreads(cases, start, rounds=1, iterations=15)


def trials(calibration: Calibration) -> list[backtest.Trial]:
    """The back-test on every file fitted to, of the models fitted to."""
    found = list(backtest.run_on(read_packaged("throughput.csv"), [], training(), calibration).trials)
    for name, wanted in hierarchy.SWEEPS.items():
        rows = [r for r in read_packaged(name) if wanted(r) and not kept_apart(r.key, r.total)]
        if len({case(r).model for r in rows}) > 1:  # a sweep of one model has no others to be estimated from
            found += backtest.run_on(rows, [], training(), calibration).trials
    return found


def misses(found: list[backtest.Trial]) -> dict[str, list[list[object]]]:
    """Of each trial: regime, model, and by how many half-widths of each interval the truth is off the median."""
    document: dict[str, list[list[object]]] = {"inverse": [], "forward": []}
    for trial in found:
        r = trial.reading
        regime = widths.regime(r.moe, r.devices, r.batch)
        for part, what in (("inverse", trial), ("forward", trial.forward)):
            if what is None:
                continue
            middle = trial.measured if part == "inverse" else trial.forward.tokens_per_s  # type: ignore[union-attr]
            row: list[object] = [regime, trial.model]
            for percent in widths.PERCENTS:
                low, high = what.interval(percent)
                off = math.log(what.truth / middle)
                row.append(float(f"{off / math.log((high if off > 0 else low) / middle):.4g}"))
            document[part].append(row)
    return document


def main(keep_spreads: bool) -> None:
    old = json.loads(OUT.read_text(encoding="utf-8")) if keep_spreads else spreads()
    document: dict[str, object] = {
        "made_by": "scripts/make_calibration.py",
        "parameters": list(PARAMETERS),
        **{part: old[part] for part in ("all", "without", "without_system", "without_family")},
    }
    parts = ({k: Spreads.from_list(v) for k, v in document[p].items()} for p in  # type: ignore[attr-defined]
             ("without", "without_system", "without_family"))  # fmt: skip
    plain = Calibration(
        Spreads.from_list(document["all"]),  # type: ignore[arg-type]
        *parts,
        (np.zeros(0), np.zeros(0)),
        {"inverse": [], "forward": []},
        {},
    )
    posterior = condition(plain.all, [case(r) for r in training()])
    mean, covariance = posterior.of_group(posterior.place("", ""))
    document["unseen"] = {"mean": mean.round(5).tolist(), "covariance": covariance.round(6).tolist()}
    residuals = misses(trials(plain))
    document["residuals"] = residuals
    final = trials(replace(plain, residuals=residuals))
    document["accuracy"] = backtest.Backtest(tuple(final), ()).summary()
    OUT.write_text(json.dumps(document, indent=None).replace('], "', '],\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("--keep-spreads" in sys.argv[1:])
