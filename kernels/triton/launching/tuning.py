"""Autotuning: the fastest of the few configurations, measured once per device and remembered.

The kernels are compiled alike under every configuration (only grids differ), so trying them costs a few steps each.
What was found is kept in one small JSON file in the user's cache; MOEGAUGE_AUTOTUNE=0 keeps the device class's default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path


def cache_file() -> Path:
    """The file, `$XDG_CACHE_HOME/moegauge/triton-configurations.json`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "moegauge" / "triton-configurations.json"


def enabled() -> bool:
    """False under MOEGAUGE_AUTOTUNE=0."""
    return os.environ.get("MOEGAUGE_AUTOTUNE", "1") != "0"


def choose(key: str, names: Iterable[str], seconds: Callable[[str], float], file: Path) -> str:
    """The configuration remembered for `key`, or the fastest of `names` by `seconds`, then remembered.

    A file that cannot be read counts as empty and one that cannot be written is left alone: it is only a memory.
    """
    names = list(names)
    known = _load(file)
    if known.get(key) in names:
        return known[key]
    best = min(names, key=seconds)
    known[key] = best
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        partial.replace(file)
    except OSError:
        pass
    return best


def _load(file: Path) -> dict[str, str]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
