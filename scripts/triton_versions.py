"""Compile and interpret the Triton kernels on several Triton releases and print a table; no GPU.

    python scripts/triton_versions.py                       every release below
    python scripts/triton_versions.py 3.9.0 3.6.0:2.3.5     these; after a colon another numpy
    python scripts/triton_versions.py --compile-only        without the interpreter's tests

Each release gets a virtual environment under build/ that holds it and sees everything else of this one. Exit 1 if
a kernel has a fault or a test fails.
"""

from __future__ import annotations

import argparse
import os
import re
import site
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Triton 3.6 makes an index of an array of one element, which numpy refuses from 2.4 on.
RELEASES = ("3.6.0:2.3.5", "3.7.1", "3.8.0", "3.9.0")
TESTS = tuple(f"tests/kernels/triton/test_{name}.py" for name in ("interpreter", "assembly", "backend", "streams"))


def environment(release: str) -> Path:
    """The interpreter of a virtual environment with a release, made where it is not there yet."""
    home = ROOT / "build" / "triton-versions" / release.replace(":", "-numpy-")
    python = home / "bin" / "python"
    done = home / "made"
    if not done.exists():
        venv.create(home, clear=True, symlinks=True)
        (packages,) = home.glob("lib/python*/site-packages")
        for name, version in zip(("triton", "numpy"), release.split(":"), strict=False):
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*pip, "--target", str(packages), f"{name}=={version}"], check=True)
        # Behind its own packages, those of the environment this runs in, editable installs included.
        here = "; ".join(f"site.addsitedir({folder!r})" for folder in site.getsitepackages())
        (packages / "behind.pth").write_text(f"import site; {here}\n")
        done.touch()
    return python


def run(python: Path, *arguments: str) -> str:
    """What a command printed, whether or not it failed."""
    clean = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTHONPATH")}
    done = subprocess.run([str(python), *arguments], capture_output=True, text=True, cwd=ROOT, env=clean, check=False)
    return done.stdout + done.stderr


def compiled(python: Path) -> tuple[list[str], bool]:
    """Columns (kernels, faults, instructions per weight of fp8 and of mxfp4), and whether all is well."""
    printed = run(python, "scripts/ptx.py", "--target", "90")
    for line in printed.splitlines():
        if "FAULT" in line:
            print(line, file=sys.stderr)
    found = re.search(r"^(\d+) kernels, (\d+) with a fault", printed, re.M)
    if found is None:
        print(printed[-2000:], file=sys.stderr)
        return ["-", "-", "-", "-"], False
    kernels, faults = map(int, found.groups())
    rates = [re.search(rf"(\S+) +\S+  product {name}, 7168 columns, 8 tokens$", printed, re.M) for name in
             ("fp8", "mxfp4")]  # fmt: skip
    return [str(kernels), str(faults), *(rate[1] if rate else "-" for rate in rates)], not faults


def interpreted(python: Path) -> tuple[str, bool]:
    """The last line of the interpreter's tests, and whether all passed."""
    printed = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    last = printed.strip().splitlines()[-1]
    fine = "passed" in last and "failed" not in last and "error" not in last
    if not fine:
        print(printed[-2000:], file=sys.stderr)
    return last.split(" in ")[0], fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="*", default=RELEASES, metavar="TRITON[:NUMPY]")
    parser.add_argument("--compile-only", action="store_true")
    options = parser.parse_args()
    print("| Triton | numpy | kernels on sm_90 | faults | fp8 product | mxfp4 product | interpreter |")
    print("|---|---|---|---|---|---|---|")
    fine = True
    for release in options.releases:
        python = environment(release)
        name, numpy = run(
            python, "-c", "import numpy, triton; print(triton.__version__, numpy.__version__)"
        ).split()  # fmt: skip
        columns, good = compiled(python)
        tests, passed = ("not run", True) if options.compile_only else interpreted(python)
        fine &= good and passed
        print(f"| {name} | {numpy} | {' | '.join(columns)} | {tests} |", flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
