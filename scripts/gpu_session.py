"""Everything a GPU machine is asked for, in one command: the GPU tests, the gpu suite, its page and tables, a summary.

    python3 scripts/gpu_session.py --out FOLDER                     nine minutes at most
    python3 scripts/gpu_session.py --out FOLDER --total 300         less
    python3 scripts/gpu_session.py --out FOLDER --device cpu -- --model gpt-oss-20b    a rehearsal without a GPU

Needs Python 3.11, torch and triton, and nothing installed: the package is laid out in a temporary folder by links, and
wheels of what else it needs (click, msgspec, rich, scipy, huggingface_hub, numpy, pytest) are taken from `.whl/` where
that folder exists. Each part has its own time limit and log, so a part that hangs loses only itself; the record is
written after every point and the same command resumes it. At most eight files: gpu.json, page, tables, logs, summary.
What follows `--` is given to `moegauge bench`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bench", "counting", "estimator", "kernels")
TESTS_S = 110.0  # of the whole, for pytest
AFTER_S = 25.0  # kept for the page, the tables and the summary
GRACE_S = 10.0  # between an interrupt and a kill
LINES = 40  # of each log in the summary


@dataclass(frozen=True)
class Part:
    """What one part gave: its name, exit status (None: stopped at its limit), seconds, log."""

    name: str
    status: int | None
    seconds: float
    log: Path


def lay_out(folder: Path, root: Path = ROOT) -> Path:
    """The package as links under `folder`, importable without an installation; the folder for PYTHONPATH."""
    package = folder / "moegauge"
    package.mkdir(parents=True)
    for entry in (root / "src" / "moegauge").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    for room in ROOMS:
        (package / room).symlink_to(root / room)
    return folder


def install_wheels(folder: Path, wheels: Path) -> str:
    """Unpack the wheels of a folder where there is one; a line that says what was done."""
    found = sorted(wheels.glob("*.whl")) if wheels.is_dir() else []
    if not found:
        return "no wheels: packages as they are"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run(
        [*command, "--upgrade", "--target", str(folder), *map(str, found)], capture_output=True, text=True, check=False
    )
    return f"{len(found)} wheels" if done.returncode == 0 else f"wheels failed: {done.stderr.strip()[-300:]}"


def run(name: str, command: list[str], limit_s: float, log: Path, environment: dict[str, str]) -> Part:
    """Run a command with a time limit: interrupted, then killed with the processes it started."""
    begin = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
        status: int | None = None
        try:
            status = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGINT)
            try:
                child.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return Part(name, status, time.monotonic() - begin, log)


def summary(parts: list[Part], notes: list[str]) -> str:
    """A line per part, then the end of every log."""
    lines = [*notes]
    for part in parts:
        state = "stopped at its limit" if part.status is None else f"exit {part.status}"
        lines.append(f"{part.name}: {state}, {part.seconds:.0f} s, {part.log.name}")
    for part in parts:
        tail = part.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:]
        lines += ["", f"== {part.log.name}", *tail]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder; default: $OUT")
    parser.add_argument("--total", type=float, default=530.0, help="seconds for everything")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl")
    parser.add_argument("--resume", type=Path, help="a record of an earlier call, to go on with")
    parser.add_argument("--commit", default="", help="of this checkout, for a copy without its git folder")
    parser.add_argument("bench", nargs="*", help="more options of `moegauge bench`, after --")
    options = parser.parse_args()
    if options.out is None:
        parser.error("give --out FOLDER, or set OUT")
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    if options.resume:
        shutil.copyfile(options.resume, out / "gpu.json")
    with tempfile.TemporaryDirectory() as folder:
        site, wheels = lay_out(Path(folder) / "package"), Path(folder) / "wheels"
        notes = [install_wheels(wheels, options.wheels)]
        paths = [str(site), *([str(wheels)] if wheels.is_dir() else []), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONSAFEPATH": "1",  # the checkout's own folders are not packages of those names
            "PYTHONUNBUFFERED": "1",
            **({"MOEGAUGE_COMMIT": options.commit} if options.commit else {}),
        }

        def left(reserve: float) -> float:
            return max(5.0, options.total - reserve - (time.monotonic() - begin))

        record, python = out / "gpu.json", sys.executable
        moegauge = [python, "-m", "moegauge"]
        tests = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--durations=8", "tests/gpu"]
        parts = [run("tests", tests, min(TESTS_S, left(AFTER_S) / 3), out / "tests.log", environment)]
        limit = left(AFTER_S + GRACE_S)
        suite = [*moegauge, "bench", "--suite", "gpu", "--device", options.device, "--out", str(record)]
        suite += ["--budget", f"{max(1.0, limit - 10.0):.0f}", "--export-markdown", str(out / "gpu.md"), *options.bench]
        parts.append(run("suite", suite, limit, out / "suite.log", environment))
        if record.exists():
            page = [*moegauge, "report", str(record), "--out", str(out / "gpu.html")]
            parts.append(run("page", page, left(AFTER_S / 2), out / "page.log", environment))
            tables = [*moegauge, "report", str(record), "--markdown"]
            parts.append(run("tables", tables, left(5.0), out / "tables.md", environment))
    text = summary(parts, notes)
    (out / "summary.txt").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(part.status == 0 for part in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
