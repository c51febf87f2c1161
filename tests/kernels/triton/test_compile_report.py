"""Ahead-of-time compilation: no spill, 16-byte weight loads, and the instruction budget, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from moegauge.kernels.triton.inspect import compile_report, machine_code

ROOT = Path(__file__).resolve().parents[3]


def ptx(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "scripts" / "ptx.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["80", "90"])
def test_no_kernel_spills_or_exceeds_its_budget(target):
    done = ptx("--target", target)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "0 with a fault" in done.stdout


def test_faults_are_told():
    good = {"case": "c", "target": 90, "registers": 64, "shared": 0, "stack": 0}
    assert not compile_report.Report(**good, wide_loads=1, per_weight=3.5, budget=3.9).fault
    assert "spill" in compile_report.Report(**{**good, "stack": 8}, wide_loads=1, per_weight=3.5, budget=3.9).fault
    assert "16 bytes" in compile_report.Report(**good, wide_loads=0.5, per_weight=3.5, budget=3.9).fault
    assert "over" in compile_report.Report(**good, wide_loads=1, per_weight=4.0, budget=3.9).fault
    assert "L1" in compile_report.Report(**good, wide_loads=1, per_weight=3.5, budget=3.9, drops=1).fault


def test_loops_run_from_a_label_to_its_backward_branch():
    listing = """
.L_x_0:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0020*/              @P0 BRA `(.L_x_1) ;
        /*0030*/                   BRA `(.L_x_0) ;
        /*0040*/                   BRA `(.L_x_9) ;
"""
    code = machine_code.parse(listing)
    assert len(code.text) == 5
    assert code.loops == ((1, 3), (0, 4))
    assert machine_code.innermost(code.loops) == [(1, 3)]
