"""The NEON kernels of the CPU core, compiled for AArch64 and run, under QEMU where this machine is another."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CORE = HERE.parents[2] / "kernels" / "cpu" / "native"
NATIVE = platform.machine() in ("aarch64", "arm64")
COMPILER = shutil.which("g++" if NATIVE else "aarch64-linux-gnu-g++")
EMULATOR = None if NATIVE else shutil.which("qemu-aarch64")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler for AArch64 (Debian: g++-aarch64-linux-gnu)")
@pytest.mark.skipif(not NATIVE and EMULATOR is None, reason="no emulator of AArch64 (Debian: qemu-user)")
def test_neon_agrees_with_plain_c(tmp_path: Path) -> None:
    program = tmp_path / "neon_check"
    assert COMPILER is not None
    sources = [HERE / "neon_check.cpp", CORE / "isa_neon.cpp", CORE / "isa_plain.cpp"]
    subprocess.run(
        [COMPILER, "-std=c++17", "-O1", "-fno-math-errno", "-static", f"-I{CORE}", "-o", program, *sources], check=True
    )
    done = subprocess.run([*([EMULATOR] if EMULATOR else []), program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
