"""The GPU suite on the made-up device with one fault in one stage, for every fault and stage: a table of what is kept.

    python tests/bench/rehearse.py [FAULT ...]      all of them: a few minutes on two cores
    python tests/bench/rehearse.py hang@floors      one

Each row is a run of `moegauge bench --suite gpu` begun again in a new process as `scripts/gpu_session.py` does it. A
fault comes back every time its stage does: what is kept is what a device gives that always fails there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FAULTS = ("hang", "wrong", "lost", "compile", "room")
STAGES = (
    "smoke tests", "roof", "floors", "first steps", "whole steps", "kernels", "launch modes", "batch curve",
    "roof sweep", "peers",
)  # fmt: skip
ARGV = ["bench", "--suite", "gpu", "--device", "cuda", "--out", "r.json", "--time-limit", "0.01"]
ARGV += ["--min-samples", "3", "--noise", "50"]


def loaded(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def once(device, fault: str, folder: Path) -> int:
    """Run the suite once in a child of this process, which has everything imported; its exit status."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    device.FAULT, _, device.WHERE = fault.partition("@")
    sys.argv = ["moegauge", *ARGV]
    code = 1
    try:
        from moegauge import cli

        cli.main(ARGV)
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def kept(record: Path, codes: list[int]) -> list[str]:
    """The cells of a row."""
    document = json.loads(record.read_text()) if record.exists() else {}
    verdicts = document.get("verdicts", [])
    wrong = sum(not one["passed"] for one in verdicts)
    cases, left = document.get("cases", []), document.get("left_out", [])
    why: dict[str, int] = {}
    for one in left:
        if one["reason"] != "not_alone":
            why[one["reason"]] = why.get(one["reason"], 0) + 1
    return [
        ", ".join(map(str, codes)),
        f"{len(verdicts) - wrong} right, {wrong} wrong" if verdicts else "none",
        "yes" if document.get("roof") else "no",
        str(len(document.get("floors", []))),
        str(sum(c["kind"] == "decode" for c in cases)),
        str(sum(c["kind"] == "kernel" for c in cases)),
        ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in why.items()) or "nothing",
    ]


def row(*cells: str) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


def main(faults: list[str]) -> None:
    sys.argv = ["fake_cuda.py", "none"]
    os.environ["MOEGAUGE_COMMIT"] = "c" * 40
    device = loaded("fake_cuda", HERE / "fake_cuda.py")
    session = loaded("gpu_session", HERE.parents[1] / "scripts" / "gpu_session.py")
    device.install()
    device.small_suite()
    row("fault", "in stage", "exit statuses", "verdicts", "roof", "floors", "steps", "kernels", "left out")
    row(*["---"] * 5, *["--:"] * 3, "---")
    for fault in faults:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            record = Path(folder) / "r.json"
            codes, before, again, last = [], -1, True, ""
            while again and len(codes) < session.STARTS:
                codes.append(once(device, fault, Path(folder)))
                count, again = session.measured(record)
                work = session.in_work(record)
                again, before, last = again and (count > before or work != last), count, work
            kind, _, stage = fault.partition("@")
            row(kind, stage, *kept(record, codes))


if __name__ == "__main__":
    main(sys.argv[1:] or ["none", *(f"{fault}@{stage}" for fault in FAULTS for stage in STAGES)])
