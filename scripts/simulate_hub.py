"""Count thousands of repos of a loopback Hub: repos per second, peak memory and how it grows.

    .venv/bin/python scripts/simulate_hub.py [--repos 2000] [--jobs 4]

The Hub (tests/counting/loopback_hub.py) runs in a process of its own, so do the counts; nothing leaves the machine.
Of every hundred repos 97 are small (gpt-oss-20b's 459 tensors or Mixtral's 995), one has Qwen3-30B-A3B's 18,867, one
is missing and one is not safetensors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moegauge.counting.sources import release_layout

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"gpt-oss-20b": 3, "mixtral-8x7b": 3, "qwen3-30b-a3b": 16}


def lay_out(place: Path) -> dict[str, Path]:
    """A folder per kind."""
    for name, shards in KINDS.items():
        release_layout.write(place / name, release_layout.release(name)["config"], shards)
    (place / "broken").mkdir()
    (place / "broken" / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    return {name: place / name for name in (*KINDS, "broken")}


def listed(repos: int) -> tuple[list[str], dict[str, int]]:
    """(the list to count, how many repos of each kind it needs)."""
    counts = dict.fromkeys((*KINDS, "broken"), 0)
    names = []
    for number in range(repos):
        kind = {0: "qwen3-30b-a3b", 50: "broken"}.get(number % 100, ("gpt-oss-20b", "mixtral-8x7b")[number % 2])
        names.append(f"org/missing-{number}" if number % 100 == 75 else f"org/{kind}-{counts[kind]}")
        counts[kind] += number % 100 != 75
    return names, counts


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (10^6 bytes)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def simulate(repos: int, jobs: int, place: Path) -> dict[str, object]:
    """Run and measure."""
    folders = lay_out(place)
    names, counts = listed(repos)
    (place / "list").write_text("\n".join(names))
    served = [f"org/{kind}*{counts[kind]}={folder}" for kind, folder in folders.items() if counts[kind]]
    hub = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/counting/loopback_hub.py"), *served],
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
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(place / "home"), "HF_HUB_VERBOSITY": "error"}
        command = [sys.executable, "-m", "moegauge", "count", "--from", str(place / "list"), "--out", str(out)]
        start = time.perf_counter()
        run = subprocess.Popen([*command, "--jobs", str(jobs)], env=environment, stderr=subprocess.DEVNULL)
        samples: list[tuple[int, float]] = []
        while run.poll() is None:
            time.sleep(0.5)
            done = out.read_bytes().count(b"\n") if out.exists() else 0
            if run.poll() is None:
                samples.append((done, resident_mb(run.pid)))
        seconds = time.perf_counter() - start
    finally:
        hub.stdin.close()
        hub.wait(10)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    failed = [line["error"] for line in lines if line["error"]]
    peak = {}
    for tenth in range(1, 11):
        peak[f"{10 * tenth}%"] = round(max((mb for done, mb in samples if done <= repos * tenth // 10), default=0))
    return {
        "repos": len(lines),
        "jobs": jobs,
        "seconds": round(seconds, 1),
        "repos_per_second": round(len(lines) / seconds, 1),
        "failed": {name: failed.count(name) for name in sorted(set(failed))},
        "peak_mb_until": peak,
        "cache_mb": round(sum(f.stat().st_size for f in (place / "home").rglob("*") if f.is_file()) / 1e6, 1),
    }


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repos", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(simulate(arguments.repos, arguments.jobs, Path(place)), indent=2))


if __name__ == "__main__":
    main()
