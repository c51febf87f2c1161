"""A device whose time is computed, not waited for: every timing test is exact and takes no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from moegauge.errors import DeviceError
from moegauge.kernels.backend import Backend, Precision, Stream
from moegauge.record import SCHEMA, Case, CaseBytes, Project, Record, Roof


class FakeClock:
    """Seconds that pass only when something is run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class FakeStream(Stream):
    device: FakeBackend
    pattern: str
    bytes: int
    rate: float
    shape: Mapping[str, int] = field(default_factory=dict)

    def run(self) -> None:
        self.device.spend(self.bytes / self.rate / self.device.drift())


class FakeBackend(Backend):
    """A backend of `bandwidth` bytes/s whose streams reach 80 and 100 % of it."""

    name = "cpu"
    description = "a made-up device"
    last_level_cache = 1000
    memory = 10**9
    threads = 2
    matrix_formats = frozenset({"bf16", "fp8", "mxfp4", "int4", "int8", "nvfp4"})

    def __init__(self, bandwidth: float = 1e9, drift: Callable[[], float] = lambda: 1.0) -> None:
        self.clock = FakeClock()
        self.bandwidth = bandwidth
        self.drift = drift
        self.log: list[str] = []

    def spend(self, seconds: float) -> None:
        self.clock.now += seconds

    def precision(self, format_name: str) -> Precision:
        return Precision()

    def arena(self, pools: Mapping[str, int], seed: int = 0) -> Any:
        raise DeviceError("a made-up device has no memory.")

    def compile(self, program: Any, arena: Any) -> Any:
        raise DeviceError("a made-up device runs nothing.")

    def streams(self, size: int) -> list[FakeStream]:
        return [
            FakeStream(self, "slow", size, 0.8 * self.bandwidth),
            FakeStream(self, "fast", size, self.bandwidth),
        ]

    def synchronize(self) -> None:
        pass

    def time(self, function: Callable[[], None]) -> float:
        start = self.clock.now
        function()
        return self.clock.now - start


@dataclass
class FakeTraffic:
    weights: int
    scales: int
    kv: int
    distinct_experts: float = 2.0

    @property
    def total(self) -> int:
        return self.weights + self.scales + self.kv


@dataclass
class FakeStep:
    """time = floor per kernel x kernels + bytes / bandwidth."""

    device: Any
    bytes: int
    kernels: int = 10
    floor: float = 1e-4
    errors: Iterator[float] = field(default_factory=lambda: iter([1e-6] * 99))
    closed: bool = False

    def run(self) -> None:
        self.device.spend(self.floor * self.kernels + self.bytes / self.device.bandwidth / self.device.drift())

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("experts up", "experts down")

    def part(self, kind: str) -> FakeStep:
        return FakeStep(self.device, self.bytes // (3 if kind == "experts down" else 1), self.kernels // 2, self.floor)

    def traffic(self, runs: int = 1) -> FakeTraffic:
        return FakeTraffic(self.bytes - 10, 10, 0)

    def check(self) -> float:
        return next(self.errors)

    def launches(self) -> list[Any]:
        return []

    def close(self) -> None:
        self.closed = True


def make_case(model: str = "a", time_ms: float = 10.0, total: int = 10**8, **changes: Any) -> Case:
    """A point whose samples all agree; its roof is 20 GB/s."""
    roof = changes.pop("roof", 20.0)
    samples = changes.pop("samples_ms", [time_ms] * 10)
    roofs = [roof] * len(samples)
    median = sorted(samples)[len(samples) // 2]
    fields: dict[str, Any] = {
        "kind": "decode",
        "backend": "cpu",
        "model": model,
        "format": "fp8",
        "batch": 1,
        "context": 0,
        "layers": 10,
        "bytes": CaseBytes(weights=total, total=total),
        "distinct_experts": 8.0,
        "kernels_per_step": 70,
        "samples_ms": samples,
        "median_ms": median,
        "mad_ms": 0.0,
        "tokens_per_s": changes.get("batch", 1) * 1e3 / median,
        "gb_per_s": total / (median / 1e3) / 1e9,
        "roof_fraction": total / (median / 1e3) / 1e9 / roof,
        "roof_fraction_samples": [total / (s / 1e3) / 1e9 / r for s, r in zip(samples, roofs, strict=True)],
        "roof_samples_gb_per_s": roofs,
        "max_relative_error": 1e-6,
        "formula_bytes": total,
    }
    return Case(**{**fields, **changes})


def make_record(cases: list[Case], **changes: Any) -> Record:
    """A record of a made-up machine."""
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "created": "2026-01-02T03:04:05Z",
        "project": Project(version="0.1.0", commit="c" * 40, dirty=False),
        "machine": {"id": "made-up-2c", "device": "cpu", "cpu": {"model": "Made Up", "cores": 2}, "gpu": None},
        "software": {"python": "3.11"},
        "argv": ["moegauge", "bench", "decode"],
        "roof": Roof(gb_per_s=20.0, samples=[19.9, 20.0, 20.1], pattern="fast", patterns={"fast": 20.0}),
        "cases": cases,
    }
    return Record(**{**fields, **changes})


@pytest.fixture
def device() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def fakes() -> Any:
    """The builders of this file, for tests (importlib mode has no package to import them from)."""
    import sys

    return sys.modules[__name__]
