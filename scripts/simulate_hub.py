"""Count thousands of repos of a loopback Hub, hostile ones among them: repos per second, memory, what is lost or wrong.

    .venv/bin/python scripts/simulate_hub.py [--repos 2000] [--hostile 100] [--jobs 4] [--kills 0]

The Hub (tests/counting/loopback_hub.py) runs in a process of its own, so do the counts; nothing leaves the machine.
Of every hundred good repos 99 are small (gpt-oss-20b's 459 tensors or Mixtral's 995), one has Qwen3-30B-A3B's 18,867.
A hostile repo is one of the kinds of tests/counting/hostile_acts.py. With `--kills` the run is killed so many times, at
random moments, and started again. Exit 1 when a repo is lost, a good one's count is wrong, or a hostile one's is
neither an error nor right.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from moegauge.counting import count
from moegauge.counting.difference import compare_documents
from moegauge.counting.sources import release_layout

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "counting"
SHARDS = {"gpt-oss-20b": 3, "mixtral-8x7b": 3, "qwen3-30b-a3b": 16}
HOSTILE_BASE = "gpt-oss-20b"  # what a hostile repo holds where it is not attacked
TIMEOUT_S = 3  # HF_HUB_DOWNLOAD_TIMEOUT of the run


def hostile_kinds() -> list[str]:
    """The kinds of hostile repos."""
    sys.path.insert(0, str(TESTS))
    import hostile_acts

    return list(hostile_acts.KINDS)


def listed(repos: int, hostile: int) -> tuple[list[str], dict[str, str]]:
    """(names of the repos in the order of the list, name -> what is served under it)."""
    kinds = hostile_kinds()
    served = {}
    for number in range(repos):
        kind = "qwen3-30b-a3b" if number % 100 == 0 else ("gpt-oss-20b", "mixtral-8x7b")[number % 2]
        served[f"org/{kind}-{number}"] = kind
    names = list(served)
    for number in range(hostile):
        name = f"org/hostile-{kinds[number % len(kinds)]}-{number}"
        names.insert((number * len(names)) // hostile, name)
        served[name] = HOSTILE_BASE
    return names, served


class Run:
    """`moegauge count --from` in a process, its memory watched."""

    def __init__(self, command: list[str], environment: dict[str, str], out: Path) -> None:
        self.command, self.environment, self.out = command, environment, out
        self.samples: list[tuple[int, float]] = []
        self.exit_code = 0

    def once(self, most_s: float) -> bool:
        """Run until it ends, or is killed after `most_s`; whether it ended."""
        end = time.monotonic() + most_s
        run = subprocess.Popen(self.command, env=self.environment, stderr=subprocess.DEVNULL)
        while run.poll() is None:
            if time.monotonic() >= end:
                run.kill()
                run.wait()
                return False
            time.sleep(0.2)
            done = self.out.read_bytes().count(b"\n") if self.out.exists() else 0
            if run.poll() is None:
                pages = int(Path(f"/proc/{run.pid}/statm").read_text().split()[1])
                self.samples.append((done, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))
        self.exit_code = run.returncode
        return True


def judged(names: list[str], served: dict[str, str], out: Path, right: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is lost or wrong, and how the hostile ones ended."""
    lines = {line["target"]: line for line in map(json.loads, out.read_text().splitlines())}
    wrong = [n for n, line in lines.items() if line["count"] and compare_documents(right[served[n]], line["count"])]
    ends: dict[str, dict[str, int]] = {}
    for name in names:
        if name.startswith("org/hostile-") and name in lines:
            kind = name.removeprefix("org/hostile-").rpartition("-")[0]
            end = lines[name]["error"] or "right"
            ends.setdefault(kind, {})[end] = ends.get(kind, {}).get(end, 0) + 1
    return {
        "lines": len(lines),
        "lost": [name for name in names if name not in lines],
        "good_refused": {n: e for n, line in lines.items() if "/hostile-" not in n and (e := line["error"])},
        "wrong": wrong,
        "hostile": ends,
    }


def simulate(arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Run and measure."""
    for name, shards in SHARDS.items():
        release_layout.write(place / name, release_layout.release(name)["config"], shards)
    right = {name: count(str(place / name)).to_json() for name in SHARDS}
    names, served = listed(arguments.repos, arguments.hostile)
    (place / "list").write_text("\n".join(names))
    (place / "served").write_text("\n".join(f"{name}={place / kind}" for name, kind in served.items()))
    hub = subprocess.Popen(
        [sys.executable, str(TESTS / "loopback_hub.py"), f"@{place / 'served'}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert hub.stdin is not None
    assert hub.stdout is not None
    try:
        url = hub.stdout.readline().strip()
        if not url:
            raise SystemExit("the Hub did not start")
        out = place / "counts.jsonl"
        settings = {"HF_ENDPOINT": url, "HF_HOME": str(place / "home"), "HF_HUB_DOWNLOAD_TIMEOUT": str(TIMEOUT_S)}
        command = [sys.executable, "-m", "moegauge", "count", "--from", str(place / "list"), "--out", str(out)]
        command += ["--jobs", str(arguments.jobs), "--deadline", str(arguments.deadline)]
        run = Run(command, {**os.environ, **settings, "HF_HUB_VERBOSITY": "error"}, out)
        rng = random.Random(1)
        start = time.monotonic()
        killed = 0
        for _ in range(arguments.kills):
            killed += not run.once(rng.uniform(0.3, 5))
        run.once(float("inf"))
        seconds = time.monotonic() - start
    finally:
        hub.stdin.close()
        hub.wait(10)
    total = len(names)
    peak = {
        f"{10 * tenth}%": round(max((mb for done, mb in run.samples if done <= total * tenth // 10), default=0))
        for tenth in range(1, 11)
    }
    return {
        "repos": arguments.repos,
        "hostile_repos": arguments.hostile,
        "jobs": arguments.jobs,
        "deadline_s": arguments.deadline,
        "killed": killed,
        "exit_code": run.exit_code,
        "seconds": round(seconds, 1),
        "repos_per_second": round(total / seconds, 1),
        "peak_mb_until": peak,
        "cache_mb": round(sum(f.stat().st_size for f in (place / "home").rglob("*") if f.is_file()) / 1e6, 1),
        **judged(names, served, out, right),
    }


def main() -> int:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repos", type=int, default=2000)
    parser.add_argument("--hostile", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--deadline", type=float, default=20)
    parser.add_argument("--kills", type=int, default=0)
    with tempfile.TemporaryDirectory() as place:
        found = simulate(parser.parse_args(), Path(place))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 1 if found["lost"] or found["wrong"] or found["good_refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
