"""What the machine says of itself: memory, caches, processor."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory() -> int:
    """Bytes a new allocation may take without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def last_level_cache() -> int:
    """Bytes of the largest cache the system reports; 32 MiB where it reports none."""
    sizes = [32 << 20]
    for file in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*/size"):
        text = file.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        if text.rstrip("KM").isdigit():
            sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes[1:], default=sizes[0])


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "CPU"
