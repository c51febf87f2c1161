"""Compile every Triton kernel ahead of time (`make ptx`): registers, spills, instructions, no GPU.

    python scripts/ptx.py                   every kernel, every target
    python scripts/ptx.py --target 90       one target
    python scripts/ptx.py --match product   cases whose name contains a word
    python scripts/ptx.py --other-order     columns in the order of the other Triton versions: what shuffles cost

Exit 1 on a spill, on weights loaded narrower than 16 bytes, over the instruction budget, or on a rule broken by more
than is allowed for now (`moegauge.kernels.triton.inspect.rules`); what is allowed is listed beneath the table.
Reports are kept in the user's cache by the hash of the sources and the compiler's version.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from moegauge.kernels.triton.backend import column_order
from moegauge.kernels.triton.inspect import compile_report

HEAD = f"{'sm':>4} {'registers':>9} {'stack':>6} {'shared':>6} {'16 B':>5} {'instr./weight':>13} {'budget':>6}  kernel"


def _key(case: compile_report.KernelCase, target: int) -> str:
    return f"{target} {case.name}"


def _one(job: tuple[compile_report.KernelCase, int]) -> compile_report.Report:
    return compile_report.report(*job)


def line(report: compile_report.Report) -> str:
    """One row of the table."""
    rate = f"{report.per_weight:.2f}" if report.per_weight else "-"
    budget = f"{report.budget}" if report.budget else "-"
    wide = f"{report.wide_loads:.2f}" if report.budget else "-"
    return (
        f"{report.target:>4} {report.registers:>9} {report.stack:>6} {report.shared:>6} {wide:>5} {rate:>13} "
        f"{budget:>6}  {report.case}" + (f"  FAULT: {report.fault}" if report.fault else "")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=int, action="append", choices=compile_report.TARGETS)
    parser.add_argument("--match", default="")
    parser.add_argument("--other-order", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if os.environ.pop("TRITON_INTERPRET", None):
        print("TRITON_INTERPRET was set; compiling needs it unset.", file=sys.stderr)
        return 2
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moegauge"
    kept = home / f"ptx-{compile_report.fingerprint()}{'-other' if options.other_order else ''}.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    jobs = [
        (case, target)
        for target in options.target or compile_report.TARGETS
        for case in compile_report.cases(target, column_order() != options.other_order)
        if options.match in case.name
    ]
    missing = [job for job in jobs if _key(*job) not in known]
    home.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.jobs) as pool:
        for job, done in zip(missing, pool.map(_one, missing), strict=True):
            known[_key(*job)] = dataclasses.asdict(done)
            kept.write_text(json.dumps(known, indent=1))  # after each: an interrupted run loses one
    reports = [compile_report.Report(**known[_key(case, target)]) for case, target in jobs]
    print(HEAD)
    for report in reports:
        print(line(report))
    worst: dict[tuple[str, str], compile_report.Broken] = {}
    for report in reports:
        for one in report.breaks:
            key = report.case.split(",")[0].split(" ")[0], one.rule
            worst[key] = max(worst.get(key, one), one, key=lambda broken: broken.value)
    for (kernel, _), one in worst.items():
        print(f"{kernel}: {one}" + (", more than is allowed for now" if one.fault else ", allowed for now"))
    faults = sum(bool(report.fault) for report in reports)
    print(f"{len(reports)} kernels, {faults} with a fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
