"""What a quantisation config says about one module: the second witness, asked where tensors alone leave a doubt."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from typing import Any

from moegauge.counting.storage import Hints


def quantisation(config: Mapping[str, Any] | None, quant_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The quantisation section, wherever it hides: at the top of config.json, in its text section (Kimi-K2.5), under
    MLX's name, or in modelopt's own file."""
    for holder in (config, (config or {}).get("text_config"), quant_config):
        for key in ("quantization_config", "compression_config", "quantization"):
            section = holder.get(key) if isinstance(holder, Mapping) else None
            if isinstance(section, Mapping):
                return dict(section)
    return {}


def hints_for(config: Mapping[str, Any] | None, quant_config: Mapping[str, Any] | None) -> Callable[[str], Hints]:
    """A function from a module's name (numbers as `#`) to what the config says of it."""
    section = quantisation(config, quant_config)
    method = section.get("quant_method")
    text = (config or {}).get("text_config")
    holders = (config or {}, text if isinstance(text, Mapping) else {}, section)
    expert_dtype = next((h["expert_dtype"] for h in holders if isinstance(h.get("expert_dtype"), str)), "")
    base = Hints(
        method.lower() if isinstance(method, str) else "",
        _small(section.get("bits", section.get("w_bit"))),
        _small(section.get("group_size", section.get("q_group_size"))),
        expert_dtype,
    )
    groups = section.get("config_groups")
    rows = [_group(g) for g in groups.values() if isinstance(g, Mapping)] if isinstance(groups, Mapping) else []
    overrides = {k: v for k, v in section.items() if isinstance(v, Mapping) and ("bits" in v or "group_size" in v)}

    def hints(module: str) -> Hints:
        for targets, bits, group in rows:
            if any(_targets(target, module) for target in targets):
                return base._replace(bits=bits, group=group)
        for name, values in overrides.items():
            if re.sub(r"\.\d+(?=\.|$)", ".#", name) == module:
                return base._replace(bits=_small(values.get("bits")), group=_small(values.get("group_size")))
        return base

    return hints


def _small(value: Any) -> int:
    """A plausible bit width or group size, else 0: nothing is decided by a field that is nonsense."""
    return value if type(value) is int and 0 < value <= 65_536 else 0


def _group(group: Mapping[str, Any]) -> tuple[tuple[str, ...], int, int]:
    """(targets, bits, group size) of one of compressed-tensors' `config_groups`."""
    weights = group.get("weights")
    weights = weights if isinstance(weights, Mapping) else {}
    targets = group.get("targets")
    named = tuple(t for t in targets if isinstance(t, str)) if isinstance(targets, list) else ()
    return named, _small(weights.get("num_bits")), _small(weights.get("group_size"))


def _targets(target: str, module: str) -> bool:
    """True when a target of compressed-tensors names this module: a class name holds for every linear layer, a name
    or `re:` pattern for what it matches. Patterns come from a stranger's file, so `re:` ones are read as globs."""
    if not target.startswith("re:"):
        return "." not in target or target == module
    glob = re.sub(r"\\([.\-])", r"\1", target[3:].strip("^$")).replace(".*", "*")
    return fnmatch.fnmatchcase(module, glob) or fnmatch.fnmatchcase(module, f"*{glob}")
