"""The session script: a layout that imports, a time limit for each part, at most eight files."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def session() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_session", ROOT / "scripts" / "gpu_session.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_session"] = module
    spec.loader.exec_module(module)
    return module


def test_the_layout_imports_without_an_installation(session: Any, tmp_path: Path) -> None:
    site = session.lay_out(tmp_path / "site")
    code = "import moegauge.bench.stages, moegauge.kernels.program as p; print(p.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(site))


def test_a_part_that_hangs_is_stopped_and_its_log_is_kept(session: Any, tmp_path: Path) -> None:
    begin = time.monotonic()
    hang = [sys.executable, "-uc", "import time; print('began'); time.sleep(600)"]
    part = session.run("suite", hang, 3.0, tmp_path / "suite.log", dict(os.environ))
    assert part.status is None
    assert time.monotonic() - begin < 60
    good = session.run("page", [sys.executable, "-c", "print('drawn')"], 60.0, tmp_path / "page.log", dict(os.environ))
    text = session.summary([part, good], ["no wheels"])
    assert "suite: stopped at its limit" in text
    assert "page: exit 0" in text
    assert "began" in text
    assert "drawn" in text


def test_a_copy_without_its_git_folder_takes_the_commit_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from moegauge import machine

    monkeypatch.setattr(machine, "__file__", str(tmp_path / "src" / "moegauge" / "machine.py"))
    monkeypatch.setenv("MOEGAUGE_COMMIT", "d" * 40)
    found = machine.project()
    assert (found["commit"], found["dirty"]) == ("d" * 40, None)
    monkeypatch.delenv("MOEGAUGE_COMMIT")
    assert machine.project()["commit"] is None
