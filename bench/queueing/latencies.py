"""Latencies and rates of GPUs for the queueing model, nominal and pessimistic, each with its source (latencies.csv).

They were fixed before the kernels they judge were changed. Only a run on a device may move them: `moegauge compare`
fits them from its record (`fit`) and says how far off these were.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

FILE = Path(__file__).parent / "latencies.csv"
DEVICES = ("H100", "H200", "B200")
COLUMNS = ("nominal", "pessimistic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """One device under one column of the table.

    Attributes:
        multiprocessors: how many.
        datasheet: memory bandwidth by the vendor, GB/s.
        roof_share: share of it that a read-only stream reaches.
        clock: GHz.
        dram: load to use from memory on an idle device, ns.
        l2: load to use from the L2 cache, ns.
        shared: load to use from shared memory, ns.
        barrier: warps of a program meeting, ns.
        fence: a device-wide fence after stores, ns.
        atomic: an atomic addition whose result is used, ns.
        edge: end of a kernel to the first program of the next within a CUDA graph, ns.
        release: end of a grid to its dependents' wait returning, ns.
        programs_rate: programs the whole device launches per ns.
        fetch: first instructions and parameters of a launch, ns.
        stall_factor: cycles of a warp alone over the stall counts of its machine code.
        issue_share: share of its cycles in which a scheduler issues.
        alu_lanes, fma_lanes, half_lanes, imad_lanes, special_lanes, shuffle_lanes, memory_lanes: lanes of a
            multiprocessor per clock, by pipe.
        tensor: cycles of one scheduler for one m16n8k16 product.
    """

    multiprocessors: float
    datasheet: float
    roof_share: float
    clock: float
    dram: float
    l2: float
    shared: float
    barrier: float
    fence: float
    atomic: float
    edge: float
    release: float
    programs_rate: float
    fetch: float
    stall_factor: float
    issue_share: float
    alu_lanes: float
    fma_lanes: float
    half_lanes: float
    imad_lanes: float
    special_lanes: float
    shuffle_lanes: float
    memory_lanes: float
    tensor: float

    @property
    def roof(self) -> float:
        """The read roof, GB/s, which is bytes/ns."""
        return self.datasheet * self.roof_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A line of the table. devices: space-separated names it holds for, all where empty; a named one comes first."""

    name: str
    devices: str
    unit: str
    nominal: float
    pessimistic: float
    source: str


@cache
def table() -> tuple[Latency, ...]:
    """Every line of latencies.csv."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Latency(
                name=line["name"], devices=line["devices"], unit=line["unit"], nominal=float(line["nominal"]),
                pessimistic=float(line["pessimistic"]), source=line["source"],
            )
            for line in csv.DictReader(file)
        )  # fmt: skip


@cache
def latencies(device: str, column: str = "nominal") -> Latencies:
    """The latencies of `device` (one of DEVICES) in `column` (one of COLUMNS)."""
    found: dict[str, float] = {}
    for one in sorted(table(), key=lambda row: bool(row.devices)):  # a row for one device replaces that for all
        if not one.devices or device in one.devices.split():
            found[one.name] = one.nominal if column == "nominal" else one.pessimistic
    return Latencies(**{field.name: found[field.name] for field in fields(Latencies)})
