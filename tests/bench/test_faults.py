"""Faults from outside: a full disk, a killed run, a second run, no memory, a lost device.

The command itself meets the fault where it can be made for real.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import made_up
import pytest

from moegauge.errors import RecordError
from moegauge.kernels.cpu.core import library
from moegauge.record import SCHEMA, Project, Record, load
from moegauge.recordfile import RecordFile
from moegauge.shape import Attention, Layer

pytestmark = pytest.mark.skipif(library() is None or os.name != "posix", reason="no compiled core, or not POSIX")

# A whole run of the real command with a last-level cache of 1 MB, so that its arenas are small; `{fault}` comes first.
RUN = """
import sys
import moegauge.bench.step.build as step
import moegauge.bench.clock.roof as roof
import moegauge.bench.clock.pairs as timing
import moegauge.kernels.cpu.backend as cpu
cpu.last_level_cache = lambda: 1 << 20
step.MINIMUM_ARENA = 1 << 20
roof.PASS_BYTES = {{"cpu": 16 << 20}}
timing._warm_up = lambda step, roof, limits: (1, max(1e-3, step(1)))
{fault}
from moegauge import cli
cli.main(sys.argv[1:])
"""
ARGS = ("bench", "decode", "--device", "cpu", "--threads", "1", "--time-limit", "0.05", "--min-samples", "3")


def shape(folder: Path, name: str) -> str:
    """A small model's file; no two of them alike."""
    layer = Layer(Attention("none"), made_up.mlp("dense_mlp", 320, 128), vectors=made_up.bf16(256))
    made_up.model([layer] * 3, 128, name=name, vocabulary=1000, tied=True).save(folder / f"{name}.json")
    return f"{name}.json"


def command(folder: Path, *words: str, fault: str = "") -> list[str]:
    return [sys.executable, "-c", RUN.format(fault=fault), *ARGS, *words]


def run(folder: Path, *words: str, fault: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        command(folder, *words, fault=fault), cwd=folder, capture_output=True, text=True, env=environment, check=False,
        timeout=120, **options,
    )  # fmt: skip


@pytest.fixture
def models(tmp_path: Path) -> str:
    return ",".join(shape(tmp_path, name) for name in ("one", "two", "three"))


def names(folder: Path) -> list[str]:
    return [case.model for case in load(folder / "r.json").cases]


def finished(folder: Path, models: str) -> None:
    """The same command goes on and finishes, and leaves nothing but its record."""
    done = run(folder, "--model", models, "--out", "r.json")
    assert done.returncode == 0, done.stderr
    assert names(folder) == ["one", "two", "three"]
    assert load(folder / "r.json").complete
    assert sorted(p.name for p in folder.iterdir()) == ["one.json", "r.json", "three.json", "two.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fills_up_in_mid_run(tmp_path: Path, models: str, call: str) -> None:
    fault = f"""
import os, errno
real, count = os.{call}, [0]
def full(*a, **k):
    count[0] += 1
    if count[0] == 6:  # empty record, roof, products in cache, first and second point are in
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(*a, **k)
os.{call} = full
"""
    stopped = run(tmp_path, "--model", models, "--out", "r.json", fault=fault)
    assert stopped.returncode == 1
    assert stopped.stderr.splitlines()[-1].startswith("moegauge: r.json: cannot be written (No space left on device)")
    assert "Traceback" not in stopped.stderr
    assert names(tmp_path) == ["one", "two"]
    finished(tmp_path, models)


# Waits where a fault is wanted: in the write of the second point, with its temporary file half full.
STALL = """
import os, time
real, count = os.fsync, [0]
def stall(handle):
    real(handle)
    count[0] += 1
    if count[0] == 5:
        open("stalled", "w").close()
        time.sleep(60)
os.fsync = stall
"""


def stalled(folder: Path, models: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command(folder, "--model", models, "--out", "r.json", fault=STALL), cwd=folder, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    for _ in range(1200):
        if (folder / "stalled").exists():
            (folder / "stalled").unlink()
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError("the run did not come so far")


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_struck_in_mid_write(tmp_path: Path, models: str, blow: signal.Signals) -> None:
    process = stalled(tmp_path, models)
    assert any(p.name.endswith(".tmp") for p in tmp_path.iterdir())
    second = run(tmp_path, "--model", models, "--out", "r.json")
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith("moegauge: r.json: another moegauge is writing it now.")
    assert any(p.name.endswith(".tmp") for p in tmp_path.iterdir())  # the second run left the first one's file alone
    process.send_signal(blow)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert process.returncode in (-blow, 128 + blow)
    assert names(tmp_path) == ["one"]
    finished(tmp_path, models)


def test_no_memory_at_all(tmp_path: Path, models: str) -> None:
    """An address space too small for the roof's buffer: mmap itself refuses."""
    fault = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1200 << 20,) * 2); roof.PASS_BYTES['cpu'] = 2 << 30"
    )
    done = run(tmp_path, "--model", models, "--out", "r.json", fault=fault)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) <= 2
    assert "memory" in done.stderr.lower()
    assert "unexpected" not in done.stderr
    finished(tmp_path, models)


def test_no_memory_for_one_point(tmp_path: Path, models: str) -> None:
    """Neither for the arena that all points share: then each is measured alone, and one fails alone."""
    fault = """
import moegauge.bench.run.block as block
from moegauge.bench.run.sweep import lost
real = block.Rounds._together
def together(self, points, left):
    if any(one.point.model == "two.json" for one in points):
        raise lost(OSError(12, "Cannot allocate memory"))
    return real(self, points, left)
block.Rounds._together = together
"""
    done = run(tmp_path, "--model", models, "--out", "r.json", fault=fault)
    assert done.returncode == 1
    assert (
        "two.json native: OSError: [Errno 12] Cannot allocate memory. Run again; the points before are kept."
        in done.stderr
    )
    assert names(tmp_path) == ["one", "three"]
    resumed = run(tmp_path, "--model", models, "--out", "r.json")
    assert resumed.returncode == 0
    assert sorted(names(tmp_path)) == ["one", "three", "two"]


@pytest.mark.parametrize(("again", "kept"), [("two", ["one", "three"]), ("", [])])
def test_a_device_that_fails_in_mid_sweep(tmp_path: Path, models: str, again: str, kept: list[str]) -> None:
    """One step that fails costs its point; a device that is lost costs the block whose rounds were under way."""
    fault = f"""
real, count = cpu.CpuRunnable.run_cut, [0]
def lost(self, *arguments):
    count[0] += "two" in self.program.name
    if count[0] > 3 and {again!r} in self.program.name:
        raise RuntimeError("CUDA error: device-side lost\\nmore lines")
    return real(self, *arguments)
cpu.CpuRunnable.run_cut = lost
"""
    done = run(tmp_path, "--model", models, "--out", "r.json", fault=fault)
    assert done.returncode == 1
    assert "RuntimeError: CUDA error: device-side lost. Run again; the points before are kept." in done.stderr
    assert "more lines" not in done.stderr
    assert names(tmp_path) == kept
    resumed = run(tmp_path, "--model", models, "--out", "r.json")
    assert resumed.returncode == 0
    assert sorted(names(tmp_path)) == ["one", "three", "two"]


def test_a_table_that_cannot_be_written_costs_nothing_measured(tmp_path: Path, models: str) -> None:
    done = run(tmp_path, "--model", models, "--json", "--export-csv", "one.json/x.csv")
    assert done.returncode == 1
    assert [c["model"] for c in json.loads(done.stdout)["cases"]] == ["one", "two", "three"]
    assert "x.csv: cannot be written" in done.stderr


def draft(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "schema": SCHEMA, "created": "2026-01-02T03:04:05Z", "machine": {"id": "m"}, "cases": [],
        "project": Project(version="0.1.0", commit="abc", dirty=False), "argv": ["moegauge", "bench", "decode"],
        "software": {"python": "3.12.1", "triton": "3.7.1"},
    }  # fmt: skip
    return Record(**{**fields, **changes})


def test_another_compiler_is_another_run(tmp_path: Path) -> None:
    with RecordFile.open(tmp_path / "r.json", draft()):
        pass
    with pytest.raises(RecordError, match=r"another run .software 'python 3.12.1 triton 3.7.1'"):
        RecordFile.open(tmp_path / "r.json", draft(software={"python": "3.12.1", "triton": "3.8.0"}))
