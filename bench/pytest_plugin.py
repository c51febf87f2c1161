"""pytest-benchmark plug-in: adds the machine and its read roof to the benchmark's JSON.

    pytest -p moegauge.bench.pytest_plugin tests/speed --benchmark-only --benchmark-json out.json

or, in a conftest.py: `from moegauge.bench.pytest_plugin import pytest_benchmark_update_machine_info`.
"""

from __future__ import annotations

from typing import Any

from moegauge import machine
from moegauge.errors import MoegaugeError


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """pytest-benchmark's hook: `machine_info["moegauge"]` gets machine, software and, where it can be measured, roof.

    The host name pytest-benchmark records under `node` is replaced by the machine's id.
    """
    description = machine.describe("cpu")
    machine_info["node"] = description["id"]
    machine_info["moegauge"] = {"machine": description, "software": machine.software(), "roof": roof()}


def roof() -> dict[str, Any] | None:
    """The read roof of this machine's processor; None where the compiled core cannot be had."""
    import msgspec

    from moegauge.bench.clock.roof import find_roof
    from moegauge.kernels.devices import get_backend

    try:
        found = find_roof(get_backend("cpu"), rounds=3).measure(samples=10)
    except MoegaugeError:
        return None
    document: dict[str, Any] = msgspec.to_builtins(found)
    return document
