"""Units: GB is 10^9 bytes, GiB is 2^30, never mixed; counts, bytes and seconds written for people."""

from __future__ import annotations

GB = 10**9
GIB = 2**30
MICROSECOND = 1e-6
MILLISECOND = 1e-3


def human_count(parameters: float) -> str:
    """A parameter count for people: 671026419200 -> '671.03 B', 3608307264 -> '3.61 B', 8192 -> '8,192'."""
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(parameters) >= scale:
            return f"{parameters / scale:.2f} {unit}"
    return f"{parameters:,.0f}"


def human_bytes(size: float) -> str:
    """Bytes for people, decimal units: 37671000000 -> '37.67 GB'."""
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(size) >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:,.0f} B"
