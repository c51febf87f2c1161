"""Describe this machine and software for records: no host name, no user name, no serial number.

`describe()` reads /proc, /sys (Linux), sysctl (macOS) and NVML; it imports no torch. `machine_id()` is the folder name
under results/ and the key on which records are pooled.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moegauge import __version__, disturbance, nvml
from moegauge.errors import DeviceError, UnknownNameError
from moegauge.hardware import devices
from moegauge.units import GB

DEVICES = ("cpu", "cuda")

# A last-level cache nobody could read: assume a large one, so that an arena is rather too big than too small.
UNKNOWN_CACHE_BYTES = 64 * 2**20

# (CPUID family, model range) -> microarchitecture. AMD: PPR documents of families 17h, 19h and 1Ah; Intel: the model
# numbers of family 6 in Linux arch/x86/include/asm/intel-family.h.
_AMD = (
    (23, range(0x30), "zen"),
    (23, range(0x30, 0x100), "zen2"),
    (25, range(0x10), "zen3"),
    (25, range(0x20, 0x60), "zen3"),
    (25, range(0x10, 0x20), "zen4"),
    (25, range(0x60, 0x100), "zen4"),
    (26, range(0x100), "zen5"),
)
_INTEL = {
    63: "haswell",
    79: "broadwell",
    85: "skylake",
    106: "icelake",
    108: "icelake",
    143: "sapphirerapids",
    207: "emeraldrapids",
    173: "graniterapids",
}
# Arm main ID register part numbers (Arm technical reference manuals).
_ARM = {
    0xD08: "cortex-a72",
    0xD0C: "neoverse-n1",
    0xD40: "neoverse-v1",
    0xD49: "neoverse-n2",
    0xD4F: "neoverse-v2",
}
_VECTOR_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "asimd", "sve", "bf16")


_MAC_CACHES = (("l1d_bytes", "hw.l1dcachesize"), ("l2_bytes", "hw.l2cachesize"), ("l3_bytes", "hw.l3cachesize"))


def describe(device: str = "cpu", root: Path = Path("/")) -> dict[str, Any]:
    """The machine part of a record.

    Args:
        device: `cpu` or `cuda`, the device that is measured; it decides the id, the cache and the datasheet figure.
        root: where /proc and /sys are read from.

    Returns:
        A JSON-ready dict: `id`, `device`, `cpu`, `memory_bytes`, `gpu`, `os`, `last_level_cache_bytes`,
        `datasheet_gb_per_s`.

    Raises:
        UnknownNameError: no such kind of device.
        DeviceError: `cuda` was asked for and there is no NVIDIA GPU.
    """
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES)
    gpu = nvml.describe_gpu()
    if device == "cuda" and gpu is None:
        raise DeviceError(
            "no NVIDIA GPU answers on this machine (device 'cuda').",
            advice="Check `nvidia-smi`, or measure the processor with --device cpu.",
        )
    cpu = describe_cpu(root)
    cache = (gpu or {}).get("l2_bytes") if device == "cuda" else cpu["caches"].get("last_level_bytes")
    description: dict[str, Any] = {
        "id": "",
        "device": device,
        "cpu": cpu,
        "memory_bytes": memory_bytes(root),
        "gpu": gpu,
        "os": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])} {platform.machine()}",
        "last_level_cache_bytes": cache,
        "datasheet_gb_per_s": datasheet_gb_per_s(gpu) if device == "cuda" and gpu else None,
    }
    description["id"] = machine_id(description)
    return description


def machine_id(machine: dict[str, Any]) -> str:
    """A stable slug of what decides speed: `amd-epyc-zen3-2c`, `nvidia-h100-80gb-hbm3`.

    Records of equal ids may be pooled; the number of cores is those this process may use.
    """
    if machine["device"] == "cuda":
        return _slug(machine["gpu"]["name"])
    cpu = machine["cpu"]
    model = re.sub(r"\((R|TM|C)\)|CPU|Processor|@.*$|\d+-Core", " ", cpu["model"], flags=re.IGNORECASE)
    parts = [model]
    arch = cpu.get("microarchitecture")
    if arch and arch not in model.lower():
        parts.append(arch)
    return _slug(f"{' '.join(parts)} {cpu['cores']}c")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "unknown"


def describe_cpu(root: Path = Path("/")) -> dict[str, Any]:
    """Model, microarchitecture, usable cores, caches and vector extensions of the processor."""
    if sys.platform == "darwin" and root == Path("/"):
        return _describe_mac()
    blocks = _read(root / "proc/cpuinfo").split("\n\n")
    first = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in blocks[0].splitlines())}
    flags = set((first.get("flags") or first.get("Features") or "").split())
    return {
        "model": first.get("model name") or _arm_name(first) or platform.processor() or platform.machine(),
        "vendor": first.get("vendor_id") or ("ARM" if "CPU part" in first else ""),
        "microarchitecture": _microarchitecture(first),
        "cores": usable_cores(),
        "caches": _caches(root),
        "features": [flag for flag in _VECTOR_FLAGS if flag in flags],
    }


def usable_cores() -> int:
    """Threads that can run at once here, by affinity and cgroup quota (`moegauge.disturbance.usable_cores`)."""
    return disturbance.usable_cores()


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory this process may use: the machine's, or the cgroup's limit where that is lower."""
    total = _meminfo(root).get("MemTotal")
    if total is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names and root == Path("/"):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()
    return min(total, int(limit)) if total is not None and limit.isdigit() else total


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that can be allocated now without swapping; None where the system does not say."""
    free = _meminfo(root).get("MemAvailable")
    limit, used = (_read(root / f"sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if free is not None and limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free


def load_average() -> float | None:
    """Processes that wanted a processor over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def last_level_cache_bytes(machine: dict[str, Any]) -> int:
    """Bytes of the last-level cache, or a cautious 64 MiB where the system does not say."""
    return int(machine.get("last_level_cache_bytes") or UNKNOWN_CACHE_BYTES)


def datasheet_gb_per_s(gpu: dict[str, Any]) -> float | None:
    """The vendor's bandwidth of a GPU in GB/s (10^9): the packaged hardware table's row, else 2 x clock x bus width.

    One name covers several products (H100 is SXM, PCIe and NVL): the row within 5 % of what clock and bus give is
    taken, or the only row where the driver tells neither. None where nothing is known.
    """
    clock, bits = gpu.get("max_memory_clock_mhz"), gpu.get("memory_bus_bits")
    reckoned = 2 * clock * 1e6 * bits / 8 / GB if clock and bits else None  # double data rate
    token = re.search(r"\b([a-z]{1,2}\d{1,3}[a-z]?|\d{4})\b", str(gpu.get("name", "")).lower())
    rates = {d.bandwidth / GB for name, d in devices().items() if token and token[1] in re.findall(r"\w+", name)}
    near = [rate for rate in rates if reckoned is None or abs(rate / reckoned - 1) < 0.05]
    if reckoned is None:
        return near[0] if len(near) == 1 else None
    return min(near, key=lambda rate: abs(rate / reckoned - 1)) if near else reckoned


def software() -> dict[str, Any]:
    """Versions of what takes part in a measurement, read from package metadata: nothing is imported."""
    versions: dict[str, Any] = {"moegauge": __version__, "python": platform.python_version()}
    for name in ("numpy", "scipy", "torch", "triton"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    versions["ptxas"] = _ptxas() if versions["triton"] else None
    versions["compiler"] = _first_line(os.environ.get("CXX", "c++"), "--version")
    versions["libc"] = " ".join(platform.libc_ver()).strip() or None
    return versions


def project() -> dict[str, Any]:
    """This package's version and, when it runs from a git checkout, the commit and whether tracked files differ; the
    commit of a copy without its git folder is what MOEGAUGE_COMMIT says, its state unknown."""
    found: dict[str, Any] = {"version": __version__, "commit": os.environ.get("MOEGAUGE_COMMIT") or None, "dirty": None}
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file() and (root / ".git").exists():
        found["commit"] = _first_line("git", "-C", str(root), "rev-parse", "HEAD")
        if found["commit"]:
            changes = _output(
                "git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "--untracked-files=no"
            )
            found["dirty"] = None if changes is None else bool(changes.strip())
    return found


def _microarchitecture(cpuinfo: dict[str, str]) -> str | None:
    def number(key: str) -> int:
        try:
            return int(cpuinfo.get(key, "-1"), 0)
        except ValueError:
            return -1

    if cpuinfo.get("vendor_id") == "AuthenticAMD":
        pair = number("cpu family"), number("model")
        return next((name for family, models, name in _AMD if pair[0] == family and pair[1] in models), None)
    if cpuinfo.get("vendor_id") == "GenuineIntel" and number("cpu family") == 6:
        return _INTEL.get(number("model"))
    return _ARM.get(number("CPU part"))


def _arm_name(cpuinfo: dict[str, str]) -> str:
    return f"Arm {_microarchitecture(cpuinfo) or cpuinfo['CPU part']}" if "CPU part" in cpuinfo else ""


def _caches(root: Path) -> dict[str, int]:
    """Bytes of one L1d and L2, of all L3, and of all caches of the last level."""
    found: dict[int, dict[str, int]] = {}
    for index in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*")):
        size = _kib(_read(index / "size"))
        if size is None or _read(index / "type").strip() == "Instruction":
            continue
        level = int(_read(index / "level").strip() or 0)
        found.setdefault(level, {})[_read(index / "shared_cpu_list").strip()] = size
    caches = {f"l{level}{'d' if level == 1 else ''}_bytes": max(found[level].values()) for level in sorted(found)}
    if found:
        caches["last_level_bytes"] = sum(found[max(found)].values())
    return caches


def _kib(text: str) -> int | None:
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    return int(match[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match[2]] if match else None


def _meminfo(root: Path) -> dict[str, int]:
    rows = (re.match(r"(\w+):\s+(\d+) kB", line) for line in _read(root / "proc/meminfo").splitlines())
    return {row[1]: int(row[2]) * 1024 for row in rows if row}


def _describe_mac() -> dict[str, Any]:
    def ask(key: str) -> str:
        return _first_line("sysctl", "-n", key) or ""

    caches = {name: int(value) for name, key in _MAC_CACHES if (value := ask(key)).isdigit()}
    if caches:
        caches["last_level_bytes"] = max(caches.values())
    return {
        "model": ask("machdep.cpu.brand_string") or platform.machine(),
        "vendor": "Apple" if platform.machine() == "arm64" else "GenuineIntel",
        "microarchitecture": None,
        "cores": usable_cores(),
        "caches": caches,
        "features": ["asimd"] if platform.machine() == "arm64" else [],
    }


def _ptxas() -> str | None:
    """Version of the ptxas that Triton calls: TRITON_PTXAS_PATH, else the one inside its package."""
    named = os.environ.get("TRITON_PTXAS_PATH")
    paths = [Path(named)] if named else []
    try:
        files = metadata.files("triton") or []
    except metadata.PackageNotFoundError:
        files = []
    paths += [Path(str(f.locate())) for f in files if f.name == "ptxas"]
    for path in paths:
        match = re.search(r"V(\d+\.\d+\.\d+)", _output(str(path), "--version") or "")
        if match:
            return match[1]
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _first_line(*command: str) -> str | None:
    text = (_output(*command) or "").strip()
    return text.splitlines()[0] if text else None


def resolve_device(name: str) -> str:
    """`auto` -> `cuda` where an NVIDIA GPU answers and torch is installed, else `cpu`; other names as they are."""
    if name != "auto":
        return name
    return "cuda" if nvml.first_gpu() is not None and find_spec("torch") else "cpu"
