"""The GPU session in one command: smoke tests, roof, steps, kernels, GPU tests, page and summary, in one folder.

    python3 scripts/gpu_session.py --call 1 --out FOLDER      two minutes: what works at all, and the ceilings
    python3 scripts/gpu_session.py --call 2 --out FOLDER --continue FIRST/gpu.json      nine minutes: the measurement
    python3 scripts/gpu_session.py --call 2 --dry-run         what a call does, in estimated seconds; nothing runs
    python3 scripts/gpu_session.py --out FOLDER --device cpu -- --model gpt-oss-20b    a rehearsal without a GPU

Two calls, for a machine that is had for 900 s in all, its starts (120 s each are allowed for) counted: the first says
what to mend before the second. `--continue` takes over what still holds of an earlier record: its roof and floors, and
where the commit is the same everything. `--total` changes a call's seconds.

Needs Python 3.11, torch, triton and a C compiler (Triton builds its launchers with it), and nothing installed: the
package is laid out in a temporary folder by links, and wheels of what else it needs are taken from `.whl/` where that
folder exists. For a bare machine without a network, with Python 3.12 on x86-64, they are made where there is one by

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 -d .whl msgspec==0.22.0
    pip wheel --no-deps -w .whl gemlite==0.6.0.post2

and, by the first command, any of click, numpy, pytest, scipy and rich that are missing there. gemlite is a peer, 0.2 MB
of Python (it imports tqdm). `triton_kernels` of the package index is another project than Triton's; flashinfer-python
(101 MB, and minutes of nvcc), vllm and sglang are too large to carry. What is missing is said before anything starts.

The order is that of worth. First the suite, whose record is written after every verdict and point: a part that crashes
or hangs (nothing written for STALL_S) is killed, and begun again in a new process as long as that brings anything; what
was in work goes last. Then, in the second call, the tests, each with its own limit where pytest-timeout is there.
FOLDER holds at most eight files of 16 MiB; READ-FIRST.txt is the one to begin with. What follows `--` is given to
`moegauge bench`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bench", "counting", "estimator", "kernels")
KERNELS = ("numpy", "torch", "triton")
NEEDS = {"suite": (*KERNELS, "click", "msgspec", "scipy"), "tests": (*KERNELS, "pytest")}
PEERS = ("gemlite",)
AFTER_S = 20.0  # kept for the page, the tables and the summary
GRACE_S = 10.0  # between an interrupt and a kill
LEAST_S = 30.0  # a suite begun again with less measures nothing
STALL_S = 30.0  # without anything written to the record: a kernel that never ends
STARTS = 6  # of the suite at most
WORKERS = 8  # processes of pytest, 2.5 GB of GPU memory each: compiling is most of what tests do
TEST_LIMIT_S = 60  # for one test
LINES = 40  # of each log in the summary
# Reasons in a record's `left_out` (moegauge.record.Reason): what a new process may do better, what had no turn.
RETRIED = ("device_lost", "began")
UNTRIED = ("device_lost", "no_time")
BEGUN = ("began", "began_twice")
FILES, FILE_BYTES = 8, 16 * 2**20  # what may come back of a folder


@dataclass(frozen=True)
class Call:
    """One of the two calls: the suite it runs, its seconds in all, and those of them kept for the GPU tests."""

    suite: str
    total_s: float
    tests_s: float


CALLS = {1: Call("gpu-first", 120.0, 0.0), 2: Call("gpu", 540.0, 30.0)}
START_S = 120.0  # allowed for starting a machine, before each call

CHECK = """
import importlib, importlib.util, json, os, shutil, sys
from importlib import metadata
needs, device = json.loads(sys.argv[1]), sys.argv[2]
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "?"
have = {name: version(name) for name in needs if importlib.util.find_spec(name)}
compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
found = {"python": sys.version.split()[0], "have": have, "compiler": compiler}
if "torch" in have and device == "cuda":
    try:
        import torch
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            one = torch.cuda.get_device_properties(0)
            found["gpu"] = (
                f"{one.name}, {one.major}.{one.minor}, {one.multi_processor_count} multiprocessors, "
                f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free, CUDA {torch.version.cuda}"
            )
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Part:
    """What one part gave: its name, exit status (None: it was stopped), how it ended in words, seconds, log."""

    name: str
    status: int | None
    state: str
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
    if done.returncode == 0:
        return f"{len(found)} wheels"
    for wheel in found:  # no pip, or one wheel of another Python among them: a wheel is a zip file of what it installs
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return f"{len(found)} wheels unpacked; pip failed: {done.stderr.strip()[-300:]}"


def check(environment: dict[str, str], device: str) -> dict[str, Any]:
    """What is there, asked of a process like those that will measure; `error` where it did not answer."""
    needs = sorted({name for names in NEEDS.values() for name in names} | {*PEERS, "xdist", "pytest_timeout"})
    command = [sys.executable, "-c", CHECK, json.dumps(needs), device]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        said = str(getattr(error, "stderr", "") or "").strip().splitlines()
        found = {"have": {}, "error": said[-1] if said else str(error)}
    return found


def told(found: dict[str, Any], device: str) -> tuple[list[str], dict[str, str]]:
    """(lines about the machine, part -> why it is not begun)."""
    have = found["have"]
    lines = [f"python {found.get('python', '?')}; " + ", ".join(f"{k} {v}" for k, v in have.items())]
    lines += [f"gpu: {found['gpu']}"] if "gpu" in found else []
    lines += [f"check: {found['error']}"] if "error" in found else []
    missing = {part: [name for name in names if name not in have] for part, names in NEEDS.items()}
    blocked = {part: f"missing: {', '.join(names)}; see the wheels in this script's docstring"
               for part, names in missing.items() if names}  # fmt: skip
    if device == "cuda" and not blocked:
        if "gpu" not in found:
            blocked["suite"] = "PyTorch finds no GPU"
        elif not found.get("compiler"):
            blocked["suite"] = blocked["tests"] = "no C compiler, which Triton needs: install gcc, or set CC"
    lines += [f"{part}: {why}" for part, why in blocked.items()]
    lines += [f"peer {name} is not there: its points are left out" for name in PEERS if name not in have]
    return lines, blocked


def run(
    name: str,
    command: list[str],
    limit_s: float,
    log: Path,
    environment: dict[str, str],
    *,
    progress: Path | None = None,
    stall_s: float = STALL_S,
) -> Part:
    """Run a command with a time limit: interrupted, then killed with the processes it started. With `progress` it is
    killed at once when that file has not changed for `stall_s`: who waits for a kernel hears no interrupt."""
    begin = moved = time.monotonic()
    seen = _changed(progress)
    state = ""
    with log.open("a", encoding="utf-8") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
        while True:
            try:
                child.wait(0.2)
                break
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if _changed(progress) != seen:
                seen, moved = _changed(progress), now
            if progress is not None and now - moved > stall_s:
                state = f"stalled for {stall_s:.0f} s and was killed"
            if not state and now - begin > limit_s:
                state = "stopped at its limit"
                os.killpg(child.pid, signal.SIGINT)
                if _ended(child):
                    break
            if state:
                os.killpg(child.pid, signal.SIGKILL)
                state += "" if _ended(child) else "; it does not end"
                break
    status = None if state else child.returncode
    return Part(name, status, state or f"exit {status}", time.monotonic() - begin, log)


def _ended(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _changed(file: Path | None) -> int:
    try:
        return file.stat().st_mtime_ns if file is not None else 0
    except OSError:
        return 0


def _document(record: Path) -> dict[str, Any]:
    """A record as it is on disk; empty where there is none or something else."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def measured(record: Path) -> tuple[int, bool]:
    """(how much a record holds, whether a new process may add to it)."""
    document = _document(record)
    count = sum(len(document.get(key) or ()) for key in ("cases", "floors", "verdicts")) + bool(document.get("roof"))
    return count, any(one["reason"] in RETRIED for one in document.get("left_out") or ())


def in_work(record: Path) -> str:
    """What a process was at when it was lost."""
    found = _document(record).get("left_out") or ()
    return json.dumps([one for one in found if one["reason"] in BEGUN], sort_keys=True)


def suite(command: Callable[[float], list[str]], left: Callable[[], float], record: Path, **how: Any) -> list[Part]:
    """Run the suite, again in a new process where one was lost and the last one measured something.

    Args:
        command: seconds -> the command that takes at most so long.
        left: seconds there are for it now.
        record: what it writes.
        how: `log` and `environment`, as for `run`, and `stall_s`.
    """
    parts: list[Part] = []
    before, again, last = -1, True, ""
    while again and len(parts) < STARTS and (not parts or left() > LEAST_S):
        limit = left()
        parts.append(run("suite", command(max(1.0, limit - GRACE_S)), limit, progress=record, **how))
        count, again = measured(record)
        work = in_work(record)  # if it is new, it is put off now, and what is behind it has its turn
        again = again and (count > before or work != last)
        before, last = count, work
    return parts


def left_out(record: Path) -> list[str]:
    """Why points of a record are missing: what failed, line by line, what had no turn, as a number."""
    found = _document(record).get("left_out") or ()
    lines = [f"not measured: {_told(one)}" for one in found if one["reason"] not in UNTRIED]
    waiting = len(found) - len(lines)
    return lines + ([f"{waiting} points had no turn"] if waiting else [])


def _told(one: dict[str, Any]) -> str:
    point = one.get("point") or {}
    where = " ".join(str(word) for word in point.values() if word) or one.get("what", "")
    stage = one["stage"] + (f" ({mode})" if (mode := one.get("launch_mode")) else "")
    return ": ".join(filter(None, (stage, where, one["reason"].replace("_", " "), one.get("detail"))))


def verdicts(record: Path) -> list[str]:
    """What the smoke tests say: a line for all that passed, one for each that did not."""
    found = _document(record).get("verdicts") or ()
    wrong = [one for one in found if not one["passed"]]
    lines = [f"{len(found) - len(wrong)} of {len(found)} verdicts on kernels: right"] if found else []
    keys = ("kernel", "model", "format", "launch_mode", "detail")
    return lines + ["WRONG: " + ", ".join(str(one[key]) for key in keys if one.get(key)) for one in wrong]


GUIDE = """What to read, in this order:
  READ-FIRST.txt  this page: what ran, what is wrong, what is not measured, the end of every log
  tables.md       roof, floors, steps and kernels as tables
  gpu.json        the record: every sample; `moegauge report`, `compare` and `predict` read it, and --continue
  gpu.html        the same as a page
  suite.log       what the suite said, tracebacks of failed points among it; tests.log and page.log likewise
"""


def summary(parts: list[Part], notes: list[str]) -> str:
    """What to read, a line per part, then the end of every log."""
    lines = [GUIDE, *notes]
    lines += [f"{part.name}: {part.state}, {part.seconds:.0f} s, {part.log.name}" for part in parts]
    for log in dict.fromkeys(part.log for part in parts):
        text = log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = [line for line in text if not line.startswith("warning: not measured")][-LINES:]
        lines += ["", f"== {log.name}", *tail]
    return "\n".join(lines) + "\n"


def trim(out: Path, most: int = FILE_BYTES) -> list[str]:
    """Keep a folder within what may come back: a file that is too large loses its middle, a record is packed instead;
    what was done, a line each."""
    lines = []
    for path in sorted(p for p in out.iterdir() if p.is_file() and p.stat().st_size > most):
        size = path.stat().st_size
        if path.suffix == ".json":
            with path.open("rb") as plain, gzip.open(f"{path}.gz", "wb") as packed:
                shutil.copyfileobj(plain, packed)
            path.unlink()
            lines.append(f"{path.name}: {size} bytes, packed as {path.name}.gz")
            continue
        data = path.read_bytes()
        path.write_bytes(data[: most // 4] + b"\n... cut ...\n" + data[-most // 2 :])
        lines.append(f"{path.name}: {size} bytes, its middle cut out")
    count = sum(1 for path in out.iterdir() if path.is_file())
    return lines + ([f"{count} files, more than the {FILES} that may come back"] if count > FILES else [])


def pytest_command(have: dict[str, str]) -> list[str]:
    """The GPU tests, with no setting or plugin a bare machine may lack; a test that hangs costs its own process."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--durations=8"]
    command += ["--tb=short"]
    command += ["-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=", "--confcutdir=tests/gpu"]
    if "xdist" in have:
        command += ["-n", str(max(1, min(WORKERS, (os.cpu_count() or 1) // 2)))]
    if "pytest_timeout" in have:
        command += ["--timeout", str(TEST_LIMIT_S), "--timeout-method", "thread"]
    return [*command, "tests/gpu"]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--call", type=int, choices=sorted(CALLS), default=2, help="1: first contact; 2: measurement")
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder; default: $OUT")
    parser.add_argument("--total", type=float, help="seconds for everything; default: the call's")
    parser.add_argument("--dry-run", action="store_true", help="print the call's estimated seconds; run nothing")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl")
    parser.add_argument("--continue", dest="earlier", type=Path, help="a record of an earlier call, to go on from")
    parser.add_argument("--commit", default="", help="of this checkout, for a copy without its git folder")
    parser.add_argument("bench", nargs="*", help="more options of `moegauge bench`, after --")
    options = parser.parse_args(argv)
    options.total = options.total or CALLS[options.call].total_s
    if options.out is None and not options.dry_run:
        parser.error("give --out FOLDER, or set OUT")
    return options


def main() -> int:
    options = parse()
    call = CALLS[options.call]
    tests_s = call.tests_s if options.total > 4 * call.tests_s else 0.0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
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
        moegauge = [sys.executable, "-m", "moegauge"]
        if not options.dry_run:
            return _measure(options, call, tests_s, environment, moegauge, notes)
        kept = AFTER_S + GRACE_S + tests_s
        command = [*moegauge, "bench", "--suite", call.suite, "--dry-run", "--budget", f"{options.total - kept:.0f}"]
        code = subprocess.run(command, env=environment, check=False).returncode
        print(f"Call {options.call}: {options.total:.0f} s, of which {kept:.0f} s are kept for tests, page and end.")
        whole = sum(one.total_s + START_S for one in CALLS.values())
        print(f"Both calls as they are, with {START_S:.0f} s for each start: {whole:.0f} s of 900.")
        return code


def _measure(
    options: argparse.Namespace,
    call: Call,
    tests_s: float,
    environment: dict[str, str],
    moegauge: list[str],
    notes: list[str],
) -> int:
    begin = time.monotonic()
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    record = out / "gpu.json"
    if record.exists():  # of an earlier call into the same folder: gone on from, not written over
        options.earlier = record.rename(out / "earlier.json") if options.earlier in (None, record) else options.earlier
    found = check(environment, options.device)
    lines, blocked = told(found, options.device)
    notes += lines
    print("\n".join(notes), flush=True)

    def left(reserve: float) -> float:
        return float(max(5.0, options.total - reserve - (time.monotonic() - begin)))

    def bench(seconds: float) -> list[str]:
        command = [*moegauge, "bench", "--suite", call.suite, "--device", options.device, "--out", str(record)]
        if options.earlier:
            command += ["--continue", str(options.earlier.resolve())]
        return [*command, "--budget", f"{seconds:.0f}", *options.bench]

    parts: list[Part] = []
    if "suite" not in blocked:
        kept = AFTER_S + GRACE_S + tests_s
        parts += suite(bench, lambda: left(kept), record, log=out / "suite.log", environment=environment)
    if "tests" not in blocked and tests_s:
        tests = pytest_command(found["have"])
        parts.append(run("tests", tests, left(AFTER_S + GRACE_S), out / "tests.log", environment))
    if record.exists():
        page = [*moegauge, "report", str(record), "--out", str(out / "gpu.html")]
        parts.append(run("page", page, left(AFTER_S / 2), out / "page.log", environment))
        tables = [*moegauge, "report", str(record), "--markdown"]
        parts.append(run("tables", tables, left(5.0), out / "tables.md", environment))
    text = summary(parts, [*notes, *verdicts(record), *left_out(record)])
    for left_over in out.glob(".gpu.json.*"):  # of a process that was killed: its lock, half a write
        left_over.unlink()
    text += "".join(f"{line}\n" for line in trim(out))
    (out / "READ-FIRST.txt").write_text(text[: FILE_BYTES // 4], encoding="utf-8")
    print(text)
    return 0 if parts and not blocked and all(part.status == 0 for part in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
