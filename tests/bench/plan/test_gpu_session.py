"""The session script: a layout that imports, a time limit for each part, at most eight files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from moegauge.bench.plan import suites
from moegauge.record import UNTRIED, KernelVerdict, Reason

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def session(script: Callable[[str], ModuleType]) -> Any:
    return script("gpu_session")


def test_the_layout_imports_without_an_installation(session: Any, tmp_path: Path) -> None:
    site = session.lay_out(tmp_path / "site")
    code = "import moegauge.bench.plan.gpu_suite, moegauge.kernels.program as p; print(p.__file__)"
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


def test_a_part_whose_record_stands_still_is_killed_and_one_that_goes_on_is_not(session: Any, tmp_path: Path) -> None:
    record = tmp_path / "gpu.json"
    # As a process that waits for a kernel does, it hears no interrupt.
    deaf = "import signal, sys, time; from pathlib import Path; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    busy = deaf + "for i in range(6): Path(sys.argv[1]).write_text(str(i)); time.sleep(0.5)"
    environment = dict(os.environ)
    more = {"progress": record, "stall_s": 2.0}
    part = session.run(
        "suite", [sys.executable, "-c", busy, str(record)], 60.0, tmp_path / "a.log", environment, **more
    )
    assert (part.status, part.state) == (0, "exit 0")
    hang = deaf + "Path(sys.argv[1]).write_text('0'); time.sleep(600)"
    begin = time.monotonic()
    part = session.run(
        "suite", [sys.executable, "-c", hang, str(record)], 60.0, tmp_path / "b.log", environment, **more
    )
    assert part.status is None
    assert part.state == "stalled for 2 s and was killed"
    assert time.monotonic() - begin < 9  # less than the grace of an interrupt besides


def test_the_suite_is_begun_again_while_a_new_process_gets_further(session: Any, tmp_path: Path) -> None:
    assert session.RETRIED == (Reason.DEVICE_LOST, Reason.BEGAN)
    assert set(session.UNTRIED) == UNTRIED
    record, turns = tmp_path / "gpu.json", tmp_path / "turns"
    write = """
import json, sys
from pathlib import Path
record, turns, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
turn = len(turns.read_text()) if turns.exists() else 0
turns.write_text("x" * (turn + 1))
left = [{"stage": "whole steps", "what": "one", "reason": "device_lost"}] if turn + 1 < len(cases) else []
record.write_text(json.dumps({"cases": [1] * cases[turn], "left_out": left}))
sys.exit(bool(left))
"""
    how = {"log": tmp_path / "log", "environment": dict(os.environ)}

    def states(*cases: int) -> list[str]:
        turns.unlink(missing_ok=True)
        command = [sys.executable, "-c", write, str(record), str(turns), str(list(cases))]
        return [p.state for p in session.suite(lambda _: command, lambda: 100.0, record, **how)]

    assert states(1, 3, 4) == ["exit 1", "exit 1", "exit 0"]
    assert states(1, 1, 4) == ["exit 1", "exit 1"]  # the second measured nothing: neither would the third
    assert states(2) == ["exit 0"]


def test_both_calls_fit_a_quarter_of_an_hour_with_their_starts(session: Any) -> None:
    assert sum(call.total_s + session.START_S for call in session.CALLS.values()) <= 900
    for call in session.CALLS.values():
        budget = suites.get_suite(call.suite).budget_s
        assert budget is not None
        assert call.total_s - session.AFTER_S - session.GRACE_S - call.tests_s >= min(budget, 90)
    assert (session.parse(["--call", "1", "--dry-run"]).total, session.parse(["--dry-run"]).total) == (120.0, 540.0)


def test_what_comes_back_is_few_files_of_bounded_size_and_says_where_to_begin(session: Any, tmp_path: Path) -> None:
    (tmp_path / "suite.log").write_bytes(b"begin" + b"." * 1000 + b"end")
    (tmp_path / "gpu.json").write_text(json.dumps({"cases": [1] * 500}))
    lines = session.trim(tmp_path, most=400)
    assert {path.name for path in tmp_path.iterdir()} == {"suite.log", "gpu.json.gz"}
    assert all(path.stat().st_size <= 400 for path in tmp_path.iterdir())
    text = (tmp_path / "suite.log").read_text()
    assert text.startswith("begin")
    assert text.endswith("end")
    assert len(lines) == 2
    assert session.summary([], []).startswith("What to read")


def test_the_summary_says_which_kernels_are_wrong(session: Any, tmp_path: Path) -> None:
    record = tmp_path / "gpu.json"
    good = KernelVerdict(kernel="logits", model="smoke gqa", format="fp8", launch_mode="graph", passed=True)
    bad = KernelVerdict(kernel="route", model="smoke gqa", format="fp8", launch_mode="pdl", passed=False, detail="nan")
    record.write_text(json.dumps({"verdicts": msgspec.to_builtins([good, bad])}))
    assert session.verdicts(record) == [
        "1 of 2 verdicts on kernels: right", "WRONG: route, smoke gqa, fp8, pdl, nan"
    ]  # fmt: skip
    assert session.measured(record) == (2, False)


def test_what_is_missing_is_said_and_blocks_only_what_needs_it(session: Any) -> None:
    every = {name: "1" for names in session.NEEDS.values() for name in names}
    lines, blocked = session.told({"have": every, "gpu": "one", "compiler": "gcc"}, "cuda")
    assert blocked == {}
    assert any("gemlite" in line for line in lines)
    without = {name: version for name, version in every.items() if name != "msgspec"}
    lines, blocked = session.told({"have": without, "gpu": "one", "compiler": "gcc"}, "cuda")
    assert list(blocked) == ["suite"]
    assert any(line.startswith("suite: missing: msgspec") for line in lines)
    assert list(session.told({"have": every, "compiler": "gcc"}, "cuda")[1]) == ["suite"]
    assert sorted(session.told({"have": every, "gpu": "one"}, "cuda")[1]) == ["suite", "tests"]
    assert session.told({"have": every}, "cpu")[1] == {}
    assert "msgspec" in session.check(dict(os.environ), "cpu")["have"]


def test_the_summary_names_what_failed_and_counts_what_had_no_turn(session: Any, tmp_path: Path) -> None:
    record = tmp_path / "gpu.json"
    left = [
        {"stage": "kernels", "what": "a", "reason": "failed", "detail": "wrong"},
        {"stage": "kernels", "point": {"model": "b", "format": "fp8", "batch": 1}, "reason": "no_time"},
        {"stage": "c", "what": "d", "reason": "device_lost"},
    ]
    record.write_text(json.dumps({"cases": [], "left_out": left}))
    assert session.left_out(record) == ["not measured: kernels: a: failed: wrong", "2 points had no turn"]
    assert session.left_out(tmp_path / "none.json") == []


def test_the_gpu_tests_need_nothing_but_pytest(session: Any, tmp_path: Path) -> None:
    """No plugin, no setting of pyproject.toml, no package the tests' own conftest imports."""
    (tmp_path / "hypothesis.py").write_text("raise ImportError('not on a bare machine')")
    path = os.pathsep.join([str(tmp_path), str(session.lay_out(tmp_path / "site"))])
    environment = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*session.pytest_command({}), "--collect-only"],
        cwd=session.ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "test_gpu_kernels" in done.stdout


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
