"""Build the CPU core under the address, undefined-behaviour and thread sanitizers and run its tests under them.

    python scripts/sanitize.py [--only address|thread]

Both builds go to build/sanitize/. The tests that run are those of the core alone: its products in every format and
instruction set of this machine, and programs with random numbers in every field. The sanitizer's library is loaded
before the interpreter, so that memory numpy allocates is watched too. Where the compiler or the system lacks a
sanitizer it says so and counts as skipped. Exit code 1 where one found something.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import sysconfig
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build/sanitize"
CORE = "tests/kernels/cpu/test_core.py"
PRODUCTS = "tests/kernels/cpu/test_products.py"

# Sanitizer -> (flags, library, options, tests). The thread sanitizer watches the pool, for which one format will do.
SANITIZERS: dict[str, tuple[list[str], str, dict[str, str], list[str]]] = {
    "address": (
        ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        "libasan.so",
        # Python itself leaves memory behind at exit; a program of 2^40 rows may ask for any amount.
        {
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        [CORE, PRODUCTS, "-k", "not any_shape and not 64-512-64 and not middle_of_a_run"],
    ),
    "thread": (
        ["-fsanitize=thread"],
        "libtsan.so",
        {"TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1"},
        [CORE, PRODUCTS, "-k", "reaches_outside or turns or ctrl_c or agree"],
    ),
}


def sources() -> list[Path]:
    """The core's sources, as pyproject.toml lists them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extension,) = project["tool"]["setuptools"]["ext-modules"]
    return [ROOT / source for source in extension["sources"]]


def library(compiler: str, name: str) -> Path | None:
    """The sanitizer's shared library of a compiler, None where it has none."""
    done = subprocess.run([compiler, f"-print-file-name={name}"], check=False, capture_output=True, text=True)
    found = Path(done.stdout.strip())
    return found.resolve() if done.returncode == 0 and found.is_absolute() and found.exists() else None


def build(compiler: str, name: str, flags: list[str]) -> Path:
    """The core with a sanitizer in it."""
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    common = ["-std=c++17", "-O1", "-g1", "-fno-omit-frame-pointer", "-fno-math-errno", "-fPIC", "-pthread", *flags]
    include = f"-I{sysconfig.get_paths()['include']}"

    def compile_one(source: Path) -> Path:
        out = folder / f"{source.stem}.o"
        subprocess.run([*compiler.split(), *common, include, "-c", str(source), "-o", str(out)], check=True)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources()))
    core = folder / "core.so"
    subprocess.run([*compiler.split(), "-shared", *common, *map(str, objects), "-o", str(core)], check=True)
    return core


def run(name: str, compiler: str) -> str:
    """Build and test with one sanitizer: `passed`, `failed`, or `skipped: why`."""
    flags, wanted, options, tests = SANITIZERS[name]
    # The C++ library too: a sanitizer looks for its functions once, when it starts.
    preload = [library(compiler.rsplit(maxsplit=1)[-1], so) for so in (wanted, "libstdc++.so.6")]
    if None in preload:
        return f"skipped: {compiler} brings no shared {wanted}"
    core = build(compiler, name, flags)
    environment = {
        **os.environ,
        **options,
        "LD_PRELOAD": " ".join(map(str, preload)),
        "PYTHONMALLOC": "malloc",
        "MOEGAUGE_SANITIZED_CORE": str(core),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/kernels/cpu"), os.environ.get("PYTHONPATH", "")]),
    }
    # The thread sanitizer's shadow memory wants addresses that are not shuffled too far.
    prefix = ["setarch", platform.machine(), "-R"] if name == "thread" else []
    probe = subprocess.run([*prefix, sys.executable, "-c", ""], check=False, capture_output=True, env=environment)
    if probe.returncode:
        return f"skipped: Python does not start under it here ({probe.stderr.decode(errors='replace').strip()[:100]})"
    command = [
        *prefix,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-s",
        "-p",
        "sanitized_core",
        *tests,
    ]  # reports go to stderr
    return "failed" if subprocess.run(command, check=False, cwd=ROOT, env=environment).returncode else "passed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=SANITIZERS)
    only = parser.parse_args().only
    if not sys.platform.startswith("linux"):
        print("skipped: sanitizers are loaded before the interpreter by LD_PRELOAD, which is Linux's")
        return
    compiler = os.environ.get("CXX", "g++")
    try:
        subprocess.run([*compiler.split(), "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        print(f"skipped: no compiler {compiler}")
        return
    found = {name: run(name, compiler) for name in ([only] if only else SANITIZERS)}
    for name, verdict in found.items():
        print(f"{name} sanitizer: {verdict}")
    sys.exit("failed" in found.values())


if __name__ == "__main__":
    main()
