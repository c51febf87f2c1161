"""What the quantisation config says about one module, asked where its tensors alone leave a doubt."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from moegauge.counting.errors import BadConfigError
from moegauge.counting.group import NO_LAYER
from moegauge.counting.packings import Hints
from moegauge.counting.roles import layer_place, template_of
from moegauge.limits import MOST_ALTERNATIVES, MOST_PATTERNS

LONGEST_PATTERN = 1000  # characters


def quantisation(config: Mapping[str, Any] | None, quant_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The quantisation section, wherever it hides: at the top of config.json, in its text section (Kimi-K2.5), under
    MLX's name, or in modelopt's own file."""
    for holder in (config, (config or {}).get("text_config"), quant_config):
        for key in ("quantization_config", "compression_config", "quantization"):
            section = holder.get(key) if isinstance(holder, Mapping) else None
            if isinstance(section, Mapping):
                return dict(section)
    return {}


def hints_for(
    config: Mapping[str, Any] | None,
    quant_config: Mapping[str, Any] | None,
    metadata: Iterable[Mapping[str, str] | None] = (),
) -> Callable[[str, int], Hints]:
    """A function from a module's name (numbers as `#`) and its layer (-1 outside layers) to what the config says of it.

    Args:
        config, quant_config: config.json and hf_quant_config.json.
        metadata: `__metadata__` of every shard; torchao names its tensor classes there.
    """
    section = quantisation(config, quant_config)
    method = section.get("quant_method")
    text = (config or {}).get("text_config")
    holders = (config or {}, text if isinstance(text, Mapping) else {}, section)
    expert_dtype = next((h["expert_dtype"] for h in holders if isinstance(h.get("expert_dtype"), str)), "")
    bits, group = _width(section)
    base = Hints(method.lower() if isinstance(method, str) else "", bits, group, expert_dtype)
    groups = section.get("config_groups")
    rows = [_group(g) for g in groups.values() if isinstance(g, Mapping)] if isinstance(groups, Mapping) else []
    group_of = _group_finder([targets for targets, _, _ in rows])
    overrides = dict(_overrides(section))
    kinds = {template_of(name): kind for entry in metadata for name, kind in _kinds(entry or {})}

    def hints(module: str, layer: int = NO_LAYER) -> Hints:
        found = base._replace(kind=kinds.get(f"{module}.weight", ""))
        number = group_of(module.replace("#", str(layer), 1) if layer != NO_LAYER else module)
        if number is not None:
            _, bits, group = rows[number]
            return found._replace(bits=bits, group=group)
        if (module, layer) in overrides:
            bits, group = overrides[(module, layer)]
            return found._replace(bits=bits, group=group)
        return found

    return hints


def _overrides(section: Mapping[str, Any]) -> Iterable[tuple[tuple[str, int], tuple[int, int]]]:
    """((module, layer), (bits, group size)) for every module a config names by its path: MLX's beside the defaults,
    auto-round's under `extra_config`."""
    extra = section.get("extra_config")
    for holder in (section, extra if isinstance(extra, Mapping) else {}):
        for path, value in holder.items():
            if isinstance(value, Mapping) and any(_width(value)):
                template = template_of(path)
                start = layer_place(f"{template}.weight").start
                number = path[start:].partition(".")[0] if start > 0 else ""
                yield (template, int(number) if number.isdecimal() and len(number) < 10 else NO_LAYER), _width(value)


def _width(section: Mapping[str, Any]) -> tuple[int, int]:
    """(bits, group size) under whichever names a packer gives them; HQQ nests them two levels down."""
    for key in ("quant_config", "weight_quant_params"):
        inner = section.get(key)
        if isinstance(inner, Mapping):
            return _width(inner)
    bits = (_small(section.get(key)) for key in ("bits", "w_bit", "nbits"))
    groups = (_small(section.get(key)) for key in ("group_size", "q_group_size"))
    return next(filter(None, bits), 0), next(filter(None, groups), 0)


def _kinds(metadata: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """(tensor name, class) of every tensor subclass torchao flattened into this file."""
    for name, text in metadata.items():
        found = re.match(r'\{"_type": "(\w{1,80})"', text)
        if found:
            yield name, found[1]


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


def _group_finder(groups: Sequence[tuple[str, ...]]) -> Callable[[str], int | None]:
    """A function from a module to the first group whose targets name it: a class name holds for every linear layer, a
    name or `re:` pattern for what it matches. Patterns come from a stranger's file, so `re:` ones are read as globs.

    Raises:
        BadConfigError: more patterns than can be tried on every module in good time.
    """
    names: dict[str, int] = {}
    patterns: list[tuple[int, re.Pattern[str]]] = []
    everywhere: list[int] = []
    for number, targets in enumerate(groups):
        for target in targets:
            if target.startswith("re:"):
                for glob in _globs(target[3 : 3 + LONGEST_PATTERN]):
                    patterns += [(number, re.compile(fnmatch.translate(each))) for each in (glob, f"*{glob}")]
            elif "." not in target:
                everywhere.append(number)
            else:
                names.setdefault(target, number)
        if len(patterns) > 2 * MOST_PATTERNS:
            problem = f"config_groups hold more than {MOST_PATTERNS} patterns."
            raise BadConfigError(problem, file="config.json", advice="Mend the config, or count without one.")

    @lru_cache(maxsize=16_384)
    def find(module: str) -> int | None:
        matching = next((number for number, pattern in patterns if pattern.match(module)), None)
        found = [number for number in (names.get(module), matching, *everywhere[:1]) if number is not None]
        return min(found, default=None)

    return find


def _globs(pattern: str) -> list[str]:
    """The globs a plain regular expression stands for: alternatives written out, wildcards and digits as `*`."""
    plain = re.sub(r"\\([.\-])", r"\1", pattern.strip("^$"))
    plain = re.sub(r"\.[*+]|\\[dw][*+]?|\[0-9\][*+]?", "*", plain)
    found = [plain]
    while len(found) < MOST_ALTERNATIVES and (group := re.search(r"\((?:\?:)?([^()]*)\)", found[0])):
        found = [text.replace(group[0], choice, 1) for text in found for choice in group[1].split("|")]
    return found[:MOST_ALTERNATIVES]
