"""Memory, cache sizes and processor of this host, as the operating system tells them."""

from __future__ import annotations

import os
from pathlib import Path

from moegauge import machine


def available_memory() -> int:
    """Bytes a new allocation may take without swapping, a container's limit included."""
    free = machine.available_bytes()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if free is None else free


def last_level_cache() -> int:
    """Bytes of all caches of the last level together (a large chip has one per group of cores, and a step is divided
    among all of them); what `machine` assumes where the system reports none."""
    return int(machine.describe_cpu()["caches"].get("last_level_bytes") or machine.UNKNOWN_CACHE_BYTES)


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "CPU"
