"""The machine as /proc and /sys tell it: real excerpts of several machines, and this one."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from moegauge import machine, nvml
from moegauge.errors import DeviceError, UnknownNameError

AMD = (
    "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: {model}\n"
    "model name\t: {name}\nflags\t\t: fpu avx2 fma f16c\n"
)
INTEL = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n"
    "model name\t: Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz\nflags\t\t: avx2 fma avx512f amx_tile\n"
)
ARM = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd sve bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


def lay_out(root: Path, cpuinfo: str, caches: list[tuple[int, str, str, str]], memory_kib: int = 16 << 20) -> Path:
    """A /proc and /sys of a machine; caches are (level, type, size, shared_cpu_list)."""
    (root / "proc").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(cpuinfo + "\n" + cpuinfo)
    (root / "proc/meminfo").write_text(f"MemTotal:       {memory_kib} kB\nMemAvailable:   {memory_kib // 2} kB\n")
    for number, (level, kind, size, shared) in enumerate(caches):
        index = root / f"sys/devices/system/cpu/cpu{number % 2}/cache/index{number}"
        index.mkdir(parents=True)
        for name, text in (("level", str(level)), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
            (index / name).write_text(text + "\n")
    return root


def describe(root: Path, monkeypatch: pytest.MonkeyPatch, cores: int) -> dict[str, object]:
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.setattr(nvml, "describe_gpu", lambda: None)
    return machine.describe("cpu", root)


@pytest.mark.skipif(sys.platform != "linux", reason="reads a Linux /proc")
@pytest.mark.parametrize(
    ("cpuinfo", "cores", "slug"),
    [
        (AMD.format(model=1, name="AMD EPYC"), 2, "amd-epyc-zen3-2c"),
        (AMD.format(model=1, name="AMD EPYC 7763 64-Core Processor"), 64, "amd-epyc-7763-zen3-64c"),
        (AMD.format(model=97, name="AMD Ryzen 9 7950X 16-Core Processor"), 16, "amd-ryzen-9-7950x-zen4-16c"),
        (INTEL, 8, "intel-xeon-platinum-8480-sapphirerapids-8c"),
        (ARM, 4, "arm-neoverse-v1-4c"),
        ("", 3, None),
    ],
)
def test_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, cores: int, slug: str | None) -> None:
    found = describe(lay_out(tmp_path / "r", cpuinfo, []), monkeypatch, cores)
    assert found["id"] == slug or (slug is None and str(found["id"]).endswith("-3c"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads a Linux /sys")
def test_caches_are_told_apart_and_the_last_level_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = [
        (1, "Data", "32K", "0"),
        (1, "Instruction", "64K", "0"),
        (2, "Unified", "512K", "0"),
        (3, "Unified", "32M", "0-7"),
        (3, "Unified", "32M", "8-15"),
        (3, "Unified", "32M", "8-15"),  # the same cache seen from another cpu
    ]
    found = describe(lay_out(tmp_path / "r", INTEL, caches), monkeypatch, 16)
    assert found["cpu"]["caches"] == {  # type: ignore[index]
        "l1d_bytes": 32768,
        "l2_bytes": 524288,
        "l3_bytes": 33554432,
        "last_level_bytes": 67108864,
    }
    assert machine.last_level_cache_bytes(found) == 64 << 20  # type: ignore[arg-type]
    assert machine.last_level_cache_bytes({}) == machine.UNKNOWN_CACHE_BYTES


def test_memory_obeys_the_cgroup(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "r", INTEL, [], memory_kib=16 << 20)
    assert machine.memory_bytes(root) == 16 << 30
    assert machine.available_bytes(root) == 8 << 30
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert machine.memory_bytes(root) == 16 << 30
    (group / "memory.max").write_text(f"{4 << 30}\n")
    (group / "memory.current").write_text(f"{1 << 30}\n")
    assert machine.memory_bytes(root) == 4 << 30
    assert machine.available_bytes(root) == 3 << 30


def test_this_machine_can_be_named_and_says_nothing_private() -> None:
    text = json.dumps([machine.describe("cpu"), machine.software(), machine.project()])
    assert machine.describe("cpu")["id"] == machine.describe("cpu")["id"] != ""
    for private in (socket.gethostname(), os.environ.get("USER") or "no user here"):
        assert len(private) < 3 or private not in text


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "describe_gpu", lambda: None)
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU answers.*--device cpu"):
        machine.describe("cuda")
    with pytest.raises(UnknownNameError, match=r"unknown device 'cdua'\. Did you mean 'cuda'"):
        machine.describe("cdua")


def test_a_gpu_is_named_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"name": "NVIDIA H100 80GB HBM3", "l2_bytes": 50 << 20}
    monkeypatch.setattr(nvml, "describe_gpu", lambda: gpu)
    found = machine.describe("cuda")
    assert found["id"] == "nvidia-h100-80gb-hbm3"
    assert found["last_level_cache_bytes"] == 50 << 20


@pytest.mark.parametrize(
    ("gpu", "gb_per_s"),
    [
        ({"name": "NVIDIA H100 80GB HBM3", "max_memory_clock_mhz": 2619, "memory_bus_bits": 5120}, 3350),
        ({"name": "NVIDIA H100 PCIe", "max_memory_clock_mhz": 1593, "memory_bus_bits": 5120}, 2000),
        ({"name": "NVIDIA A100-SXM4-80GB", "max_memory_clock_mhz": 1593, "memory_bus_bits": 5120}, 2039),
        ({"name": "NVIDIA Z999", "max_memory_clock_mhz": 1000, "memory_bus_bits": 1024}, 256),
        ({"name": "NVIDIA Z999"}, None),
        ({"name": "NVIDIA H100 80GB HBM3"}, None),  # SXM, PCIe or NVL? the name alone does not say
    ],
)
def test_the_datasheet_figure_is_that_of_the_right_product(gpu: dict[str, object], gb_per_s: float | None) -> None:
    assert machine.datasheet_gb_per_s(gpu) == (gb_per_s if gb_per_s is None else pytest.approx(gb_per_s, rel=0.03))


def test_without_nvml_a_loaded_torch_describes_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="AMD Instinct MI300X", major=9, minor=4, total_memory=192 << 30, L2_cache_size=4 << 20
    )
    cuda = SimpleNamespace(is_available=lambda: True, get_device_properties=lambda _: properties)
    monkeypatch.setattr(nvml, "first_gpu", lambda: None)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[arg-type]
    found = machine.describe("cuda")
    assert found["id"] == "amd-instinct-mi300x"
    assert found["last_level_cache_bytes"] == 4 << 20


class FakeNvml:
    """The C functions this project calls, answering through the pointers they are given."""

    def __init__(self, mask: int) -> None:
        self.mask = mask

    def __getattr__(self, name: str) -> object:
        values = {
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetPowerUsage": 650_500,
            "nvmlDeviceGetTemperature": 41,
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.mask,
        }
        if name not in values:
            raise AttributeError(name)

        def call(*arguments: object) -> int:
            arguments[-1]._obj.value = values[name]  # type: ignore[attr-defined]
            return 0

        return call


@pytest.mark.parametrize(
    ("mask", "reasons", "throttled"),
    [
        (0, [], False),
        (0x1, ["gpu_idle"], False),
        (0x4, ["sw_power_cap"], False),
        (0x28, ["hw_slowdown", "sw_thermal_slowdown"], True),
    ],
)
def test_throttle_reasons(mask: int, reasons: list[str], throttled: bool) -> None:
    state = nvml.Gpu(FakeNvml(mask), nvml.ctypes.c_void_p()).state()
    assert state["reasons"] == reasons
    assert state["throttled"] is throttled
    assert state["power_w"] == 650.5
    assert state["sm_clock_mhz"] == 1980
