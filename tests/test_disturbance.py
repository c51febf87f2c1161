"""What else ran, and how many threads: excerpts of /proc and /sys laid out by hand, and this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from moegauge import disturbance, machine
from moegauge.disturbance import Counters, between, cpu_quota, usable_cores


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


STAT = "cpu  100 20 30 4000 7 1 2 50 10 5\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 1\n"


def test_counters_are_those_of_proc(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/stat": STAT,
            "proc/pressure/cpu": "some avg10=3.64 avg60=3.12 avg300=3.01 total=2500000\nfull avg10=0.00 total=9\n",
            "proc/self/cgroup": "0::/jobs/mine\n",
            "sys/fs/cgroup/jobs/mine/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/jobs/mine/cpu.stat": "usage_usec 5\nthrottled_usec 700000\n",
        },
    )
    seen = disturbance.read(root)
    hertz = os.sysconf("SC_CLK_TCK")
    assert seen.busy == (100 + 20 + 30 + 1 + 2) / hertz  # neither idle, nor waiting for disks, nor guests twice
    assert seen.steal == 50 / hertz
    assert seen.pressure == 2.5
    assert seen.throttled == 0.7


def test_what_a_system_does_not_tell_is_none(tmp_path: Path) -> None:
    seen = disturbance.read(tmp_path)
    assert (seen.busy, seen.steal, seen.pressure, seen.throttled) == (None, None, None, None)
    found = between(seen, disturbance.read(tmp_path))
    assert (found.other_load, found.steal, found.pressure, found.throttled) == (None, None, None, None)


def test_between_two_readings() -> None:
    before = Counters(wall=10.0, own=3.0, busy=100.0, steal=1.0, pressure=5.0, throttled=0.0, switches=7)
    after = Counters(wall=12.0, own=6.0, busy=104.0, steal=1.5, pressure=5.2, throttled=0.4, switches=17)
    found = between(before, after)
    assert found.seconds == 2.0
    assert found.other_load == pytest.approx(0.5)  # 4 s busy, 3 s of them ours, in 2 s
    assert found.steal == pytest.approx(0.25)
    assert found.pressure == pytest.approx(0.1)
    assert found.throttled == pytest.approx(0.2)
    assert found.switches == pytest.approx(5.0)
    # ticks of 10 ms may show less than this process used: nobody else's load is below nothing
    assert between(before, Counters(wall=12.0, own=9.0, busy=104.0)).other_load == 0.0


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/x/cpu.cfs_quota_us": "1\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "garbage\n0::/../..\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
    ],
)
def test_the_quota_of_either_version_and_of_every_group_above(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert cpu_quota(lay_out(tmp_path, files)) == quota


@pytest.mark.parametrize(("quota", "cores"), [("max", 8), ("250000", 2), ("50000", 1), ("1600000", 8), ("800000", 8)])
def test_affinity_and_quota_decide_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    root = lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})
    assert usable_cores(root) == cores


def test_the_machine_and_the_core_count_by_that_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_core = pytest.importorskip("moegauge.kernels.cpu.core")
    monkeypatch.setattr(disturbance, "cpu_quota", lambda _root=None: 1.5)
    assert machine.usable_cores() == 1
    if cpu_core.library() is not None:
        assert cpu_core.Core().threads == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads a Linux /proc")
def test_this_machine_tells() -> None:
    before = disturbance.read()
    found = between(before, disturbance.read())
    assert before.busy is not None
    assert before.steal is not None
    assert found.seconds > 0
