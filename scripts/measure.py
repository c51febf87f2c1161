"""Measure this machine for results/: the quick suite twice (to show that two runs agree), then the standard suite.

    python scripts/measure.py                      about half an hour on two cores
    python scripts/measure.py --suites quick,quick --time-limit 4

Refuses a checkout with local changes, because a record names its commit. A stopped run goes on when repeated on the
same day and commit. Afterwards the tables of the pages are renewed (scripts/readme_table.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from moegauge import machine

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run the suites one after another; the first failing exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", default="quick,quick,standard", help="in order; a repeated one is measured again")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--time-limit", help="seconds of sampling per point")
    options = parser.parse_args()
    project = machine.project()
    if project["commit"] is None or project["dirty"]:
        print("measure.py: commit your changes first; a record names the commit it was measured at.", file=sys.stderr)
        return 1
    folder = Path("results") / machine.describe(options.device)["id"]
    suites = options.suites.split(",")
    for number, suite in enumerate(suites):
        again = f"-{suites[:number].count(suite) + 1}" if suite in suites[:number] else ""
        path = folder / f"{datetime.now(UTC):%Y-%m-%d}-{suite}-{project['commit'][:10]}{again}.json"
        command = [sys.executable, "-m", "moegauge", "bench", "decode", "--device", options.device, "--suite", suite]
        command += ["--out", str(path)] + (["--time-limit", options.time_limit] if options.time_limit else [])
        print("$ moegauge", *command[3:], flush=True)
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code:
            return code
    return subprocess.run([sys.executable, "scripts/readme_table.py"], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
