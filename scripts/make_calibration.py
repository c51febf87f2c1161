"""Fit the spreads of `moegauge.estimator.efficiency` and write estimator/data/calibration.json; a few minutes.

Run: .venv/bin/python scripts/make_calibration.py
"""

from __future__ import annotations

import json
from pathlib import Path

from moegauge.estimator.efficiency import FEATURES, case, fit_spreads
from moegauge.estimator.readings import read

OUT = Path(__file__).resolve().parent.parent / "estimator" / "data" / "calibration.json"


def main() -> None:
    readings, _ = read()
    cases = [case(r) for r in readings]
    everything = fit_spreads(cases)
    document = {
        "made_by": "scripts/make_calibration.py",
        "features": list(FEATURES),
        "all": everything.to_list(),
    }
    labels = {
        "without": [c.model for c in cases],
        "without_system": [r.system for r in readings],
        "without_family": [c.family for c in cases],
    }
    for key, names in labels.items():
        document[key] = {}
        for name in sorted(set(names)):
            kept = [c for c, label in zip(cases, names, strict=True) if label != name]
            document[key][name] = fit_spreads(kept).to_list()
            print(key, name, flush=True)
    OUT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
