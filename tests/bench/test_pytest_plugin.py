"""The hook in a real pytest-benchmark run, in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moegauge.bench import pytest_plugin
from moegauge.kernels import devices


def test_machine_and_roof_land_in_the_json(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "get_backend", lambda name: fakes.FakeBackend(bandwidth=3e9))
    info: dict[str, Any] = {"node": socket.gethostname()}
    pytest_plugin.pytest_benchmark_update_machine_info(info)
    assert info["moegauge"]["roof"]["gb_per_s"] == pytest.approx(3.0)
    assert info["node"] == info["moegauge"]["machine"]["id"]
    json.dumps(info, allow_nan=False)


def test_pytest_benchmark_calls_it(tmp_path: Path) -> None:
    (tmp_path / "test_speed.py").write_text("def test_it(benchmark):\n    benchmark.pedantic(len, args=('a',))\n")
    (tmp_path / "conftest.py").write_text(
        "from moegauge.bench import pytest_plugin\n"
        "pytest_plugin.roof = lambda: {'gb_per_s': 7.0}\n"
        "pytest_benchmark_update_machine_info = pytest_plugin.pytest_benchmark_update_machine_info\n"
    )
    out = tmp_path / "out.json"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--benchmark-json={out}", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        # In a worker of pytest-xdist, pytest-benchmark turns itself off; this run is nobody's worker.
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )
    assert json.loads(out.read_text())["machine_info"]["moegauge"]["roof"] == {"gb_per_s": 7.0}
