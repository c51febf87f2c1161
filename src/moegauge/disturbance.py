"""What else ran while a sample was taken: other load, steal, pressure, involuntary switches, throttling; the CPU quota.

Two readings and what lies between them: `between(before, read())`. Linux counts other load and steal in ticks of 10 ms
(proc(5), /proc/stat), so they say something of spans of 100 ms and more; pressure, switches, waiting and throttling are
exact. What a system does not tell is None, never 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Counters since some start; only differences mean anything. Seconds, except `switches`.

    Attributes:
        wall: the clock.
        own: processor time of this process, all threads.
        busy: processor time of everything on this machine, in `/proc/stat`.
        steal: time a hypervisor gave to others while this machine had work.
        pressure: time in which some task of this machine waited for a processor (`/proc/pressure/cpu`).
        throttled: time a cgroup's quota stopped this process.
        switches: times a thread of this process lost its processor against its will (`getrusage(2)`).
    """

    wall: float
    own: float
    busy: float | None = None
    steal: float | None = None
    pressure: float | None = None
    throttled: float | None = None
    switches: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """What lay between two readings.

    Attributes:
        seconds: how long that was.
        other_load: processors that other processes kept busy, on average.
        steal: processors that a hypervisor took, on average.
        pressure: share of the time in which some task waited for a processor.
        throttled: share of the time in which a quota stopped this process.
        switches: involuntary switches a second.
    """

    seconds: float
    other_load: float | None = None
    steal: float | None = None
    pressure: float | None = None
    throttled: float | None = None
    switches: float | None = None


def read(root: Path = _ROOT) -> Counters:
    """The counters now: three small files, some 60 us."""
    busy, steal = _stat(root)
    return Counters(
        wall=time.monotonic(),
        own=time.process_time(),
        busy=busy,
        steal=steal,
        pressure=_pressure(root),
        throttled=_throttled(root),
        switches=_switches(),
    )


def between(before: Counters, after: Counters) -> Disturbance:
    """What happened from one reading to a later one."""
    seconds = max(after.wall - before.wall, 1e-9)

    def rate(name: str) -> float | None:
        first, last = getattr(before, name), getattr(after, name)
        return None if first is None or last is None else max(0.0, (last - first) / seconds)

    busy = rate("busy")
    own = max(0.0, after.own - before.own) / seconds
    return Disturbance(
        seconds=seconds,
        other_load=None if busy is None else max(0.0, busy - own),
        steal=rate("steal"),
        pressure=rate("pressure"),
        throttled=rate("throttled"),
        switches=rate("switches"),
    )


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Processors' worth of time a cgroup grants this process (version 2 `cpu.max`, version 1 `cpu.cfs_quota_us`), the
    least of its group and all above it; None where none is set."""
    found = [quota for folder in _groups(root) if (quota := _quota(folder)) is not None]
    return min(found, default=None)


def usable_cores(root: Path = _ROOT) -> int:
    """Threads that can run at once here: processors by affinity, no more whole ones than a cgroup's quota grants, one
    at least. With more threads than quota all are stopped at once when it is spent."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        allowed = os.cpu_count() or 1
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota + 1e-9)))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _stat(root: Path) -> tuple[float | None, float | None]:
    """(busy, steal) seconds of all processors; guests are part of user and nice already."""
    for line in _text(root / "proc/stat").splitlines():
        words = line.split()
        if words[:1] == ["cpu"] and len(words) > 8:
            ticks = [int(word) for word in words[1:9]]
            hertz = os.sysconf("SC_CLK_TCK")
            user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
            return (user + nice + system + irq + softirq) / hertz, steal / hertz
    return None, None


def _pressure(root: Path) -> float | None:
    for line in _text(root / "proc/pressure/cpu").splitlines():
        if line.startswith("some") and "total=" in line:
            return int(line.rpartition("total=")[2]) / 1e6
    return None


def _throttled(root: Path) -> float | None:
    """Of the nearest group that has a quota; `throttled_usec` in version 2, `throttled_time` in nanoseconds in 1."""
    for folder in _groups(root):
        if _quota(folder) is None:
            continue
        for line in _text(folder / "cpu.stat").splitlines():
            name, _, value = line.partition(" ")
            if name in ("throttled_usec", "throttled_time"):
                return int(value) / (1e6 if name == "throttled_usec" else 1e9)
    return None


def _switches() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _groups(root: Path) -> Iterator[Path]:
    """Folders of this process's CPU cgroup and of those above it, nearest first, in either version. In a container
    `/proc/self/cgroup` may name a path of the host's: what does not exist holds nothing."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        mounts = [""] if not controllers else [controllers, "cpu"]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in dict.fromkeys(mounts):
            for depth in range(len(parts), -1, -1):
                yield root.joinpath("sys/fs/cgroup", mount, *parts[:depth])


def _quota(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split() or [
        _text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
        return int(words[0]) / int(words[1])
    return None
