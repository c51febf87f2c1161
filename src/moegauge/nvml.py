"""NVML by ctypes: which GPU this is, its clocks and power, and whether it is holding its clocks back.

Nothing is set or reset. Every reading may be missing (MIG, vGPU, old driver): missing is None, never 0.
Function and constant names are those of NVIDIA's NVML API reference.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

_SUCCESS = 0
_CLOCK_SM, _CLOCK_MEM = 1, 2
_TEMPERATURE_GPU = 0

# nvmlClocksEventReasons. Those that make a timing wrong: the hardware or the thermal limiter slowed the clocks.
REASONS = {
    0x01: "gpu_idle",
    0x02: "applications_clocks_setting",
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
SLOWED = 0x08 | 0x20 | 0x40 | 0x80


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Gpu:
    """One GPU's handle."""

    def __init__(self, library: Any, handle: ctypes.c_void_p) -> None:
        self._library = library
        self._handle = handle

    def _number(self, function: str, *arguments: int, kind: Any = ctypes.c_uint) -> int | None:
        out = kind()
        call = getattr(self._library, function, None)
        if call is None or call(self._handle, *arguments, ctypes.byref(out)) != _SUCCESS:
            return None
        return int(out.value)

    def _text(self, function: str) -> str | None:
        buffer = ctypes.create_string_buffer(96)
        if getattr(self._library, function)(self._handle, buffer, ctypes.c_uint(96)) != _SUCCESS:
            return None
        return buffer.value.decode("utf-8", "replace")

    def describe(self) -> dict[str, Any]:
        """Name, compute capability, memory, clocks, power limit, driver: JSON-ready, missing readings None."""
        library = self._library
        memory = _Memory()
        has_memory = library.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory)) == _SUCCESS
        major, minor = ctypes.c_int(), ctypes.c_int()
        capability = None
        if (
            library.nvmlDeviceGetCudaComputeCapability(self._handle, ctypes.byref(major), ctypes.byref(minor))
            == _SUCCESS
        ):
            capability = f"{major.value}.{minor.value}"
        now, pending = ctypes.c_uint(), ctypes.c_uint()
        ecc = None
        if library.nvmlDeviceGetEccMode(self._handle, ctypes.byref(now), ctypes.byref(pending)) == _SUCCESS:
            ecc = bool(now.value)
        power = self._number("nvmlDeviceGetEnforcedPowerLimit")
        driver = ctypes.create_string_buffer(96)
        library.nvmlSystemGetDriverVersion(driver, ctypes.c_uint(96))
        cuda = ctypes.c_int()
        library.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(cuda))
        return {
            "name": self._text("nvmlDeviceGetName") or "NVIDIA GPU",
            "compute_capability": capability,
            "memory_bytes": int(memory.total) if has_memory else None,
            "l2_bytes": _l2_bytes(),
            "cuda_cores": self._number("nvmlDeviceGetNumGpuCores"),
            "max_sm_clock_mhz": self._number("nvmlDeviceGetMaxClockInfo", _CLOCK_SM),
            "max_memory_clock_mhz": self._number("nvmlDeviceGetMaxClockInfo", _CLOCK_MEM),
            "memory_bus_bits": self._number("nvmlDeviceGetMemoryBusWidth"),
            "power_limit_w": None if power is None else power / 1000,
            "ecc": ecc,
            "mig": self._number("nvmlDeviceIsMigDeviceHandle") == 1,
            "driver": driver.value.decode("utf-8", "replace") or None,
            "cuda_driver": f"{cuda.value // 1000}.{cuda.value % 1000 // 10}" if cuda.value else None,
        }

    def state(self) -> dict[str, Any]:
        """Clocks, power, temperature and the reasons the clocks are not higher, now."""
        mask = self._number("nvmlDeviceGetCurrentClocksEventReasons", kind=ctypes.c_ulonglong)
        if mask is None:  # drivers before 535
            mask = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", kind=ctypes.c_ulonglong)
        power = self._number("nvmlDeviceGetPowerUsage")
        return {
            "sm_clock_mhz": self._number("nvmlDeviceGetClockInfo", _CLOCK_SM),
            "memory_clock_mhz": self._number("nvmlDeviceGetClockInfo", _CLOCK_MEM),
            "power_w": None if power is None else power / 1000,
            "temperature_c": self._number("nvmlDeviceGetTemperature", _TEMPERATURE_GPU),
            "reasons": None if mask is None else [name for bit, name in REASONS.items() if mask & bit],
            "throttled": bool(mask & SLOWED) if mask is not None else False,
        }


def _torch_properties() -> Any:
    """CUDA's own description of device 0; None unless torch is loaded already and sees a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0)


def _l2_bytes() -> int | None:
    """NVML does not tell the L2 size; CUDA does."""
    return int(getattr(_torch_properties(), "L2_cache_size", 0)) or None


def _from_torch() -> dict[str, Any] | None:
    """The little that torch tells of a GPU where NVML is not there (a container without it, ROCm)."""
    properties = _torch_properties()
    if properties is None:
        return None
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "l2_bytes": _l2_bytes(),
        # kHz and bits; PyTorch before 2.8 does not tell
        "max_memory_clock_mhz": getattr(properties, "memory_clock_rate", 0) // 1000 or None,
        "memory_bus_bits": getattr(properties, "memory_bus_width", 0) or None,
    }


@cache
def first_gpu() -> Gpu | None:
    """The GPU that CUDA calls device 0 (CUDA_VISIBLE_DEVICES obeyed), or None."""
    try:
        library: Any = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if library.nvmlInit_v2() != _SUCCESS:
        return None
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    handle = ctypes.c_void_p()
    if wanted.isdigit():
        code = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(wanted)), ctypes.byref(handle))
    elif wanted.startswith(("GPU-", "MIG-")):
        code = library.nvmlDeviceGetHandleByUUID(wanted.encode(), ctypes.byref(handle))
    else:
        return None
    return Gpu(library, handle) if code == _SUCCESS else None


def describe_gpu() -> dict[str, Any] | None:
    """`Gpu.describe()` of the first visible GPU, else what a loaded torch tells of it; None where there is none."""
    gpu = first_gpu()
    return _from_torch() if gpu is None else gpu.describe()
