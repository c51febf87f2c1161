"""The hardware table (hardware.csv): memory bandwidth and size of GPUs and other accelerators, by name."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from importlib import resources

from moegauge.errors import UnknownNameError, UsageError
from moegauge.units import GB


@dataclass(frozen=True, slots=True)
class Device:
    """A row of the packaged hardware table.

    Attributes:
        name: as the vendor writes it.
        bandwidth: bytes/s; memory: bytes, None when the table has none.
        kind: how well the figures are known: datasheet, secondary, press, announced, derived.
        source: where they stand.
    """

    name: str
    bandwidth: float
    memory: float | None
    kind: str
    source: str


def devices() -> dict[str, Device]:
    """The packaged hardware table by lower-case name."""
    text = (resources.files("moegauge") / "hardware.csv").read_text(encoding="utf-8")
    table = {}
    for row in csv.DictReader(io.StringIO(text)):
        memory = float(row["memory_GB"]) * GB if row["memory_GB"] else None
        device = Device(row["name"], float(row["bandwidth_GBps"]) * GB, memory, row["kind"], row["source"])
        table[row["name"].lower()] = device
    return table


def device(name: str) -> Device:
    """The device called `name`: exactly, or the only one whose name holds all its words.

    Raises:
        UnknownNameError: no device of that name.
        UsageError: several devices match.
    """
    table = devices()
    wanted = name.lower().strip()
    if wanted in table:
        return table[wanted]
    words = set(wanted.split())
    found = [d for key, d in table.items() if words and words <= set(key.replace("(", " ").replace(")", " ").split())]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(d.name for d in found[:6])
        raise UsageError(f"device '{name}' may be {names}.", advice="Give the whole name.")
    raise UnknownNameError("device", name, [d.name for d in table.values()])
