"""Is this machine fit to measure: other load, steal, quota, clocks, huge pages, memory, NUMA, GPU, the roof's noise.

Nothing is set. Settings are read from /proc and /sys, what else runs from counters before and after a second of reading
memory, the roof's spread and correlation time from the slices of that second. What a system does not tell is a note
without a value, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from moegauge import disturbance
from moegauge.bench.clock import statistics
from moegauge.bench.clock.roof import pass_bytes
from moegauge.disturbance import Disturbance
from moegauge.errors import DeviceError
from moegauge.kernels.backend import Backend
from moegauge.units import GB, human_bytes

SCHEMA = "moegauge.doctor/1"
# Slices of the roof, each one pass: 5 to 15 ms on a CPU, half a millisecond on a GPU; or in short. Where others take
# the processors passes last longer, and after so many seconds that is known well enough, with FEWEST slices.
SLICES, SHORT = 150, 40
SECONDS, FEWEST = 3.0, 20
# Processors kept busy or taken by others: a twentieth of one shows in medians of 1 %, a hundredth hardly.
BUSY, STOLEN = (0.1, 0.3), (0.01, 0.05)
# Interquartile range of the roof over its median: pairs of step and roof settle within +-1 % below the first of these.
SPREAD = (0.03, 0.10)
# Milliseconds. What changes faster than a step and its roof sample take is not divided out by their ratio.
SAMPLE_MS = 100.0
MEMORY = (4 * 10**9, 8 * 10**9)  # an arena, the roof's buffer and room to spare; all native formats of `validate`

HUGE_PAGES = "sys/kernel/mm/transparent_hugepage/enabled"


class Level(StrEnum):
    """How much a finding harms a measurement: not; a reader should know it; it will be wrong or will not settle."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """One thing looked at.

    Attributes:
        name: e.g. `steal`.
        level: how much it harms.
        value: what was found, as text or a number with its unit in `name` or `advice`; None where nothing tells.
        advice: one line: what it means, and what to do where something can be done.
    """

    name: str
    level: Level
    value: str | float | bool | None
    advice: str

    def to_json(self) -> dict[str, Any]:
        """One entry of `findings`."""
        return {"name": self.name, "level": str(self.level), "value": self.value, "advice": self.advice}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in a fixed order."""

    findings: tuple[Symptom, ...]

    @property
    def fit(self) -> bool:
        """Whether nothing warns."""
        return all(one.level is not Level.WARNING for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The document of `moegauge doctor --json`."""
        return {"schema": SCHEMA, "fit": self.fit, "findings": [one.to_json() for one in self.findings]}


def examine(
    backend: Backend,
    *,
    slices: int = SLICES,
    gpu: Mapping[str, Any] | None = None,
    gpu_state: Mapping[str, Any] | None = None,
    root: Path = Path("/"),
) -> Diagnosis:
    """Look at everything.

    Args:
        backend: the device whose roof is read.
        slices: how many samples of the roof.
        gpu, gpu_state: what NVML says of the GPU and of its clocks (`moegauge.nvml`); None on a CPU.
        root: where /proc and /sys lie.
    """
    before, heat = disturbance.read(root), _throttle_counts(root)
    rates, period, failure = _read_roof(backend, slices)
    seen, hotter = disturbance.between(before, disturbance.read(root)), _throttle_counts(root) - heat
    return Diagnosis(
        (
            *_others(seen),
            *_threads(root),
            *_clocks(root, hotter),
            *_pages(root),
            _memory(backend),
            _nodes(root),
            *(_gpu(gpu, gpu_state or {}) if gpu is not None else ()),
            *(roof_findings(rates, period) if not failure else [_no_roof(failure)]),
        )
    )


def _read_roof(backend: Backend, slices: int) -> tuple[list[float], float, str]:
    """(GB/s of every slice, seconds of a slice, why there is none)."""
    try:
        streams = backend.streams(pass_bytes(backend))
        best = min(streams, key=lambda stream: min(backend.time(stream.run) for _ in range(3)))
        seconds: list[float] = []
        while len(seconds) < FEWEST or (len(seconds) < slices and sum(seconds) < SECONDS):
            seconds.append(backend.time(best.run))
    except DeviceError as error:
        return [], 0.0, str(error)
    return [best.bytes / s / GB for s in seconds], statistics.median(seconds), ""


def _graded(value: float, limits: tuple[float, float]) -> Level:
    return Level.OK if value < limits[0] else Level.NOTE if value < limits[1] else Level.WARNING


def _unknown(name: str) -> Symptom:
    return Symptom(name=name, level=Level.OK, value=None, advice="This system does not tell.")


def _others(seen: Disturbance) -> Iterator[Symptom]:
    looks: tuple[tuple[str, float | None, tuple[float, float], str], ...] = (
        ("other load", seen.other_load, BUSY, "processors that other programs keep busy; close them"),
        ("steal", seen.steal, STOLEN, "processors that the host gives to others; take a dedicated machine"),
        ("quota throttling", seen.throttled, STOLEN, "share of the time a quota stopped this process; lower --threads"),
    )
    for name, value, limits, advice in looks:
        if value is None:
            yield _unknown(name)
        else:
            told = f"{advice[0].upper()}{advice[1:]}." if value >= limits[0] else "None to speak of."
            yield Symptom(name=name, level=_graded(value, limits), value=round(value, 4), advice=told)


def _threads(root: Path) -> Iterator[Symptom]:
    quota, cores = disturbance.cpu_quota(root), disturbance.usable_cores(root)
    if quota is None:
        yield Symptom(name="quota", level=Level.OK, value=None, advice="No cgroup limits processor time.")
    else:
        whole = quota >= cores and quota == int(quota)
        yield Symptom(
            name="quota",
            level=Level.OK if whole else Level.NOTE,
            value=quota,
            advice="Processors a cgroup grants."
            if whole
            else f"Processors a cgroup grants; {cores} threads are used. Ask for whole processors.",
        )
    yield Symptom(name="threads", level=Level.OK, value=cores, advice="Processors by affinity and quota.")


def _clocks(root: Path, hotter: int) -> Iterator[Symptom]:
    governor = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if not governor:
        yield _unknown("governor")
    else:
        good = governor in ("performance", "schedutil")
        told = "Clocks rise with load." if good else "Clocks may stay low; cpupower frequency-set -g performance."
        yield Symptom(name="governor", level=Level.OK if good else Level.WARNING, value=governor, advice=told)
    off = _text(root / "sys/devices/system/cpu/intel_pstate/no_turbo")
    boost = _text(root / "sys/devices/system/cpu/cpufreq/boost")
    if not off and not boost:
        yield _unknown("turbo")
    else:
        on = off == "0" if off else boost == "1"
        told = "Clocks fall as the package warms; ratios to the roof beside hold." if on else "Clocks are steady."
        yield Symptom(name="turbo", level=Level.NOTE if on else Level.OK, value=on, advice=told)
    told = "The package throttled while memory was read; cool it." if hotter > 0 else "None while memory was read."
    yield Symptom(name="throttling", level=Level.WARNING if hotter > 0 else Level.OK, value=hotter, advice=told)


def _throttle_counts(root: Path) -> int:
    """Times any processor was throttled for heat since the system began."""
    counts = root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
    return sum(int(text) for path in counts if (text := _text(path)).isdigit())


def _pages(root: Path) -> Iterator[Symptom]:
    told = _text(root / HUGE_PAGES)
    chosen = told.partition("[")[2].partition("]")[0]
    if not chosen:
        yield _unknown("huge pages")
    elif chosen == "never":
        advice = f"Arenas lie in 4 KiB pages, and steps miss the TLB; echo madvise > /{HUGE_PAGES}."
        yield Symptom(name="huge pages", level=Level.WARNING, value=chosen, advice=advice)
    else:
        yield Symptom(name="huge pages", level=Level.OK, value=chosen, advice="Arenas lie in pages of 2 MiB.")


def _memory(backend: Backend) -> Symptom:
    room = backend.memory
    least, good = MEMORY
    level = Level.WARNING if room < least else Level.NOTE if room < good else Level.OK
    told = f"{human_bytes(room)} for a step's weights"
    told += (
        "." if level is Level.OK else f"; all formats want {human_bytes(good)}. Close programs, or take small models."
    )
    return Symptom(name="memory", level=level, value=room, advice=told)


def _nodes(root: Path) -> Symptom:
    nodes = len(list(root.glob("sys/devices/system/node/node[0-9]*")))
    if nodes < 2:
        return Symptom(name="NUMA", level=Level.OK, value=nodes or None, advice="One node, or none told of.")
    advice = "Memory lies where it is first touched; numactl --cpunodebind=0 --membind=0 keeps threads beside it."
    return Symptom(name="NUMA", level=Level.NOTE, value=nodes, advice=advice)


def _gpu(gpu: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[Symptom]:
    mig, ecc = bool(gpu.get("mig")), gpu.get("ecc")
    told = "A slice of a GPU: its roof is not the datasheet's." if mig else "The whole GPU."
    yield Symptom(name="MIG", level=Level.NOTE if mig else Level.OK, value=mig, advice=told)
    if ecc is None:
        yield _unknown("ECC")
    else:
        told = "Checked memory, as in a data centre." if ecc else "Off; with it, GDDR loses some of its bandwidth."
        yield Symptom(name="ECC", level=Level.OK if ecc else Level.NOTE, value=ecc, advice=told)
    slowed = bool(state.get("throttled"))
    reasons = ", ".join(state.get("reasons") or []) or "none"
    told = "It holds its clocks back; give it power or let it cool." if slowed else "Its clocks are free."
    yield Symptom(name="GPU throttling", level=Level.WARNING if slowed else Level.OK, value=reasons, advice=told)


def roof_findings(gb_per_s: Sequence[float], period_s: float) -> Iterator[Symptom]:
    """What the slices of a roof say of its noise.

    Args:
        gb_per_s: every slice, in order.
        period_s: seconds of one.
    """
    low, middle, high = np.percentile(np.asarray(gb_per_s), [25, 50, 75])
    yield Symptom(name="roof GB/s", level=Level.OK, value=round(float(middle), 2), advice="Median read bandwidth.")
    spread = float((high - low) / middle)
    level = _graded(spread, SPREAD)
    told = f"The middle half of {len(gb_per_s)} slices lies within {100 * spread:.1f} % of the median"
    told += "." if level is Level.OK else "; others use this memory. Measure longer, or at another hour."
    yield Symptom(name="roof spread", level=level, value=round(spread, 4), advice=told)
    lasting = correlation_ms(gb_per_s, period_s)
    if lasting is None:
        told = "Longer than was looked; a step and the roof beside it see the same state."
        yield Symptom(name="roof correlation ms", level=Level.OK, value=None, advice=told)
        return
    short = level is not Level.OK and lasting < SAMPLE_MS
    told = "Time after which the roof has forgotten its state" + (
        "; a step as long sees another one than the roof sample beside it." if short else "."
    )
    found = Level.NOTE if short else Level.OK
    yield Symptom(name="roof correlation ms", level=found, value=round(lasting, 1), advice=told)


def correlation_ms(values: Sequence[float], period_s: float) -> float | None:
    """Milliseconds until the autocorrelation of evenly spaced samples falls below 1/e; None where a quarter of the
    samples is not enough."""
    x = np.asarray(values, dtype=np.float64)
    x = x - x.mean()
    whole = float(x @ x)
    if whole == 0:
        return None
    for lag in range(1, len(x) // 4 + 1):
        if float(x[:-lag] @ x[lag:]) / whole < 1 / np.e:
            return 1e3 * lag * period_s
    return None


def _no_roof(why: str) -> Symptom:
    return Symptom(name="roof GB/s", level=Level.WARNING, value=None, advice=why)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
