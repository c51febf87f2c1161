"""The back-test of an earlier commit beside this tree's, on the readings both can use of the models kept apart.

    python scripts/compare_backtests.py [COMMIT]        by default aef39d3, the last with two laws

The commit is taken out of git into a temporary folder and run from there by this Python; its law was fitted to
throughput.csv alone, so no kept model's reading of the later files is behind either. Readings above one stream are left
out: that commit cannot use them. Printed as the Markdown table of docs/estimating.md.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from moegauge.estimator.closed.backtest import Judged, judged, kept_apart_trials
from moegauge.estimator.hierarchy import SWEEPS

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bench", "counting", "estimator", "kernels")


@dataclass(frozen=True)
class Answer:
    """What a method said of a reading: its estimate, its intervals by per cent, and the truth, active parameters."""

    estimate: float
    intervals: dict[int, tuple[float, float]]
    truth: float

    @property
    def fold(self) -> float:
        """How many times too large or too small, at least 1."""
        return math.exp(abs(math.log(self.estimate / self.truth)))

    def interval(self, percent: int) -> tuple[float, float]:
        """The central interval of so many per cent."""
        return self.intervals[percent]


def earlier(commit: str, folder: Path) -> dict[tuple[str, int], Answer]:
    """Answers of the commit's back-test, by file and line."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder / "tree", filter="data")
    package = folder / "site" / "moegauge"
    package.mkdir(parents=True)
    for source in [*(folder / "tree" / "src" / "moegauge").iterdir(), *(folder / "tree" / r for r in ROOMS)]:
        (package / source.name).symlink_to(source)
    found = {}
    for name in SWEEPS:
        readings = ROOT / "estimator" / "data" / name
        run = subprocess.run(
            [sys.executable, "-m", "moegauge", "backtest", "--observations", str(readings), "--json"],
            env={**os.environ, "PYTHONPATH": str(folder / "site"), "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            print(f"{name}: {run.stderr.strip()}", file=sys.stderr)
            continue
        for case in json.loads(run.stdout)["cases"]:
            intervals = {int(p): (low, high) for p, (low, high) in case["intervals"].items()}
            found[name, case["line"]] = Answer(case["measured"], intervals, case["active"])
    return found


def main(commit: str) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        old = earlier(commit, Path(folder))
    kept = [(name, trial) for name, trials in kept_apart_trials().items() for trial in trials]
    pairs = [(t, old[name, t.reading.line]) for name, t in kept if (name, t.reading.line) in old]
    regimes = {
        "all": pairs,
        "one device, MoE": [p for p in pairs if p[0].reading.devices == 1 and p[0].reading.moe],
        "one device, dense": [p for p in pairs if p[0].reading.devices == 1 and not p[0].reading.moe],
        "data centre": [p for p in pairs if p[0].reading.devices > 1],
    }
    print("| readings of one stream | n | method | in 50 % | in 80 % | in 95 % | 80 % wide | score | median | 80 % |")
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|--:|")
    for regime, part in regimes.items():
        models = [t.model for t, _ in part]
        methods: dict[str, list[Judged]] = {
            commit: [answer for _, answer in part],
            "this tree": [trial for trial, _ in part],
        }
        for method, answers in methods.items():
            row = judged(answers, models)
            stars = {p: "*" if p in row["rejected"] else "" for p in (50, 80, 95)}
            print(
                f"| {regime} | {row['n']} | {method} | "
                + " | ".join(f"{row[f'coverage_{p}']:.0%}{stars[p]}" for p in (50, 80, 95))
                + f" | x{row['width_80']:.2f} | {row['score_80']:.2f}"
                + f" | x{row['median_fold']:.3f} | x{row['p80_fold']:.3f} |"
            )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "aef39d3")
