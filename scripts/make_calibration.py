"""Learn the spreads of `moegauge.estimator.efficiency` from the packaged readings: from all, without each model, and
without each family of systems. Writes estimator/data/calibration.json. Takes about four minutes on one core.

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
        "without": {},
        "without_family": {},
    }
    for label, key in (("model", "without"), ("family", "without_family")):
        for name in sorted({getattr(c, label) for c in cases}):
            kept = [c for c in cases if getattr(c, label) != name]
            document[key][name] = fit_spreads(kept).to_list()
            print(label, name, flush=True)
    OUT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
