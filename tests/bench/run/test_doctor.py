"""`moegauge doctor` on made-up machines: one thing wrong at a time, and noise whose correlation is known."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moegauge import cli, disturbance, machine
from moegauge.bench.run.doctor import Diagnosis, Level, Symptom, correlation_ms, examine, roof_findings
from moegauge.disturbance import Counters
from moegauge.errors import DeviceError
from moegauge.kernels import devices

# A machine with nothing wrong: files below / and what they say.
GOOD = {
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpufreq/boost": "0\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "sys/devices/system/node/node0/meminfo": "",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/cpu.max": "max 100000\n",
}
QUIET = Counters(wall=0.0, own=0.0, busy=0.0, steal=0.0, throttled=0.0)


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any) -> Any:
    """Examines a machine of some files and of what its counters say after one second."""

    def go(files: dict[str, str] | None = None, after: dict[str, float] | None = None, **options: Any) -> Any:
        counters = iter((QUIET, Counters(**{"wall": 1.0, "own": 1.0, "busy": 1.0, "steal": 0.0, **(after or {})})))
        monkeypatch.setattr(disturbance, "read", lambda _: next(counters))
        device = options.pop("device", None) or fakes.FakeBackend(bandwidth=20e9)
        device.memory = options.pop("memory", 64 * 10**9)
        return examine(device, root=lay_out(tmp_path, {**GOOD, **(files or {})}), slices=40, **options)

    return go


def of(found: Diagnosis, name: str) -> Symptom:
    (one,) = (f for f in found.findings if f.name == name)
    return one


def test_a_quiet_machine_is_fit(look: Any) -> None:
    found = look()
    assert found.fit
    assert {one.level for one in found.findings} == {Level.OK}
    assert of(found, "roof GB/s").value == pytest.approx(20.0)
    document = json.loads(json.dumps(found.to_json()))
    assert document["schema"] == "moegauge.doctor/1"
    assert document["fit"] is True
    for one in document["findings"]:
        assert set(one) == {"name", "level", "value", "advice"}
        assert one["advice"].endswith(".")
        assert "\n" not in one["advice"]


CPU = "sys/devices/system/cpu/"


@pytest.mark.parametrize(
    ("name", "files", "after", "level"),
    [
        ("other load", {}, {"busy": 1.2}, Level.NOTE),
        ("other load", {}, {"busy": 2.5}, Level.WARNING),
        ("steal", {}, {"steal": 0.2}, Level.WARNING),
        ("quota throttling", {}, {"throttled": 0.3}, Level.WARNING),
        ("quota", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, {}, Level.NOTE),
        ("governor", {f"{CPU}cpu0/cpufreq/scaling_governor": "powersave\n"}, {}, Level.WARNING),
        ("turbo", {f"{CPU}cpufreq/boost": "1\n"}, {}, Level.NOTE),
        ("turbo", {f"{CPU}intel_pstate/no_turbo": "0\n"}, {}, Level.NOTE),
        ("huge pages", {"sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n"}, {}, Level.WARNING),
        ("NUMA", {"sys/devices/system/node/node1/meminfo": ""}, {}, Level.NOTE),
    ],
)
def test_one_thing_wrong_is_found_and_nothing_else(
    look: Any, name: str, files: dict[str, str], after: dict[str, float], level: Level
) -> None:
    found = look(files, after)
    assert {one.name: one.level for one in found.findings if one.level is not Level.OK} == {name: level}
    assert found.fit is (level is not Level.WARNING)


def test_little_memory_is_a_warning(look: Any) -> None:
    assert of(look(memory=3 * 10**9), "memory").level is Level.WARNING
    assert of(look(memory=5 * 10**9), "memory").level is Level.NOTE


def test_heat_while_memory_is_read_is_a_warning(look: Any, tmp_path: Path, fakes: Any) -> None:
    counter = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"

    def drift() -> float:
        counter.write_text("5\n")
        return 1.0

    found = of(look(device=fakes.FakeBackend(20e9, drift)), "throttling")
    assert (found.level, found.value) == (Level.WARNING, 2)


def test_what_a_system_does_not_tell_has_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any) -> None:
    monkeypatch.setattr(disturbance, "read", lambda _: Counters(wall=0.0, own=0.0))
    device = fakes.FakeBackend()
    device.memory = 64 * 10**9
    found = examine(device, root=tmp_path, slices=40)
    assert found.fit
    for name in ("other load", "steal", "quota throttling", "governor", "turbo", "huge pages", "NUMA"):
        assert of(found, name).value is None


def test_no_room_for_the_roof_is_a_finding(look: Any, fakes: Any) -> None:
    class FullBackend(fakes.FakeBackend):  # type: ignore[name-defined, misc]
        def streams(self, size: int) -> Any:
            raise DeviceError("no room.", advice="Free memory.")

    found = look(device=FullBackend())
    assert not found.fit
    assert "no room" in of(found, "roof GB/s").advice


@pytest.mark.parametrize(
    ("gpu", "state", "levels"),
    [
        ({"mig": False, "ecc": True}, {"throttled": False, "reasons": ["gpu_idle"]}, ["ok", "ok", "ok"]),
        ({"mig": True, "ecc": False}, {"throttled": True, "reasons": ["power"]}, ["note", "note", "warning"]),
        ({"mig": False, "ecc": None}, {}, ["ok", "ok", "ok"]),
    ],
)
def test_a_gpu_is_looked_at_too(look: Any, gpu: Any, state: Any, levels: list[str]) -> None:
    found = look(gpu=gpu, gpu_state=state)
    assert [str(of(found, name).level) for name in ("MIG", "ECC", "GPU throttling")] == levels


def test_the_correlation_time_is_that_of_the_noise() -> None:
    # An AR(1) process of coefficient r falls to 1/e after -1 / log(r) samples.
    rng, r = np.random.default_rng(0), 0.95
    x = list(itertools.accumulate(rng.standard_normal(20_000), lambda last, fresh: r * last + fresh))
    assert correlation_ms(x, 0.01) == pytest.approx(-10 / math.log(r), rel=0.2)
    assert correlation_ms(list(rng.standard_normal(1000)), 0.01) == 10.0
    assert correlation_ms([1.0] * 100, 0.01) is None


@pytest.mark.parametrize(("spread", "level"), [(0.005, Level.OK), (0.05, Level.NOTE), (0.3, Level.WARNING)])
def test_an_unsteady_roof_is_found(spread: float, level: Level) -> None:
    rng = np.random.default_rng(1)
    rates = list(50 * np.exp(spread / 1.35 * rng.standard_normal(200)))
    found = {one.name: one for one in roof_findings(rates, 0.01)}
    assert found["roof spread"].level is level
    assert found["roof spread"].value == pytest.approx(spread, rel=0.3)
    assert found["roof correlation ms"].level is (Level.OK if level is Level.OK else Level.NOTE)


def test_the_command_exits_0_whatever_it_finds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fakes: Any
) -> None:
    device = fakes.FakeBackend(bandwidth=20e9)  # of 1 GB
    monkeypatch.setattr(devices, "get_backend", lambda name, threads=None, launch_mode="": device)
    monkeypatch.setattr(machine, "resolve_device", lambda _: "cpu")
    for words in (["doctor"], ["doctor", "--json"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert not stop.value.code
    out = capsys.readouterr().out
    assert "not fit to measure" in out
    document = json.loads(out[out.index("{") :])
    assert document["fit"] is False
    assert any(one["name"] == "memory" and one["level"] == "warning" for one in document["findings"])
