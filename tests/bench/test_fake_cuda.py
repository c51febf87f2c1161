"""The gpu suite on a made-up CUDA device, every stage of it: what a first run on a GPU would stumble over in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moegauge.record import load

pytest.importorskip("torch")
pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("fake_cuda.py")
LAUNCHES = ("graph", "pdl", "eager")  # graph first, pdl once it is judged right, then the others


def run(fault: str, folder: Path, *more: str) -> tuple[int, Any, dict[str, int], str]:
    """(exit status, record, what the device saw, stderr) of one command."""
    command = ["bench", "--suite", "gpu", "--device", "cuda", "--out", "r.json", "--time-limit", "0.01"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), fault, *command, "--min-samples", "3", "--noise", "50", *more],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder), "MOEGAUGE_COMMIT": "c" * 40},
        capture_output=True,
        text=True,
        check=False,
    )
    record = json.loads((folder / "r.json").read_text())
    lines = done.stdout.strip().splitlines()
    seen = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return done.returncode, record, seen, done.stderr


def keys(record: Any) -> list[tuple[str, str | None, str, bool]]:
    """(model, kind of kernel, launch mode, whether a peer's) of every case."""
    return [(c["model"], c.get("kernel"), c["rung"], bool(c.get("peer"))) for c in record["cases"]]


def told(folder: Path) -> list[str]:
    """What the record says of what is not in it."""
    return [str(one) for one in load(folder / "r.json").left_out]


def test_every_stage_of_the_gpu_suite_runs_on_a_device_with_graphs_and_all_launch_modes(tmp_path: Path) -> None:
    code, record, seen, err = run("none", tmp_path)
    assert code == 0, err[-3000:]
    assert record["complete"]
    assert {one["reason"] for one in record["left_out"]} <= {"not_alone"}, record["left_out"]
    assert record["machine"]["id"] == "nvidia-h100-80gb-hbm3"
    shapes = ("", ", 16 x 1 warp", ", 16 x 1 warp, count-in")
    assert {f["name"] for f in record["floors"]} == {"eager", *(m + s for m in ("graph", "pdl") for s in shapes)}
    assert len({(v["model"], v["format"], v["launch_mode"]) for v in record["verdicts"]}) == 12
    assert all(v["passed"] for v in record["verdicts"])
    assert record["roof"]["sweep"]
    found = keys(record)
    assert [mode for model, kernel, mode, _ in found if (model, kernel) == ("moe", None)] == list(LAUNCHES)
    assert {("moe", "experts down", "pdl", False), ("moe", "o_proj", "pdl", False)} <= set(found)
    assert ("moe", "experts", "graph", True) in found  # torch's products, captured too
    kinds = [c for c in record["cases"] if c.get("kernel") and c["kernel"] != "experts"]
    assert all(c["profile"]["kernels"][0]["resident"] > 0 for c in kinds)
    assert seen["pdl"] > 0
    # Chains of empty kernels alone may be captured while they are timed: six boundaries, two lengths, in a round that
    # is thrown away. A step captured there would have its first samples made of the host's work.
    assert seen["captured_in_time"] == 12


def test_a_kernel_that_does_not_compile_costs_its_points_alone(tmp_path: Path) -> None:
    code, record, _, err = run("compile", tmp_path)
    assert code == 1
    # Dependent launches were not judged right, so the rest stays on graphs.
    assert keys(record) == [("dense", None, "graph", False), ("dense", None, "graph", False)]
    failed = [text for text in told(tmp_path) if "failed: " in text]
    assert "whole steps: moe native: failed: TritonError: PTXAS error: ptxas died." in " ".join(failed)
    assert any(text.startswith("launch modes (graph): moe native: failed: ") for text in failed)
    assert "Traceback" in err  # nobody is there to ask for it again


def test_a_process_that_is_killed_has_said_what_was_in_work(tmp_path: Path) -> None:
    """A dependent launch never ends: first in a smoke test, then, by the same command, where modes are compared."""
    code, record, _, _ = run("killed", tmp_path)
    assert code == 9
    assert told(tmp_path)[-1] == "smoke tests (pdl): gqa mxfp4: began and did not end"
    assert keys(record) == []
    code, record, _, _ = run("killed", tmp_path)
    assert code == 9
    assert told(tmp_path)[-1] == "launch modes (pdl): moe native: began and did not end"
    assert keys(record)[-1] == ("moe", None, "eager", False)
    assert [v["detail"] for v in record["verdicts"] if not v["passed"]] == ["it began and did not end"]
    assert record["roof"]
    assert len(record["floors"]) == 7


def test_dependent_launches_that_are_wrong_fall_back_to_graphs_by_themselves(tmp_path: Path) -> None:
    code, record, _, _ = run("wrong@dependent", tmp_path)
    assert code == 1
    modes = [mode for model, kernel, mode, _ in keys(record) if (model, kernel) == ("moe", None)]
    assert modes[:2] == ["graph", "eager"]
    assert [v["launch_mode"] for v in record["verdicts"] if not v["passed"]] == ["pdl"]
    failed = [text for text in told(tmp_path) if "(pdl): moe native: failed" in text]
    assert failed[0].startswith("whole steps (pdl)")
    assert ("dense", None, "graph", False) in keys(record)
