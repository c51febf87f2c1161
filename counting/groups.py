"""Group tensors that are equal but for the numbers in their names: 91,991 become about two thousand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moegauge.counting.config import Facts
from moegauge.counting.families import Rule
from moegauge.counting.group import NO_LAYER, Group
from moegauge.counting.headers.header import Header
from moegauge.counting.packings import Hints, Part, Shape
from moegauge.counting.roles import DECODER_ROLES, LayerPlace, role_of, without_experts
from moegauge.counting.shape_tensors import read_shapes
from moegauge.counting.storage import MAIN_LEAVES, Unpacked, split_leaf, unpack
from moegauge.counting.structure import Module, Numbering, find_numbering, place
from moegauge.limits import MOST_MODULES, MOST_PLACED

Tensor = tuple[str, str, Shape]  # name, dtype, shape
Hinting = Callable[[str, int], Hints]


@dataclass(slots=True)
class Collected:
    """Every tensor of a checkpoint, alike ones together.

    Attributes:
        groups: with role, format and logical shape.
        inferred: templates whose role follows from structure, not from a rule; sorted.
    """

    groups: list[Group]
    inferred: list[str]


def collect(
    headers: Sequence[Header],
    hints: Hinting,
    facts: Facts,
    read: Callable[[int, int], bytes] | None = None,
    *,
    configured: bool = True,
    rules: Sequence[Rule] = (),
) -> Collected:
    """Every tensor of `headers` in groups, with role, format and logical shape.

    Args:
        headers: validated headers of one checkpoint.
        hints: what the config says of a module in a layer, see `moegauge.counting.quant_config`.
        facts: what the config says of layers and experts.
        read: the bytes of one tiny tensor by shard and position; asked for shapes that are data, where nothing else
            says them. None leaves those as upper bounds.
        configured: there was a config; without one, names no rule knows are in doubt.
        rules: the user's own, tried before the shipped ones.
    """
    counts: Counter[Tensor] = Counter()
    for header in headers:
        # Experts' numbers go first: what is left differs in layer and matrix alone, some thousand names.
        counts.update(zip(without_experts(header.names), header.dtypes, header.shapes, strict=True))
    resolver = _Resolver(hints, facts, rules)
    numbering = Numbering()
    modules = _modules(counts, headers, numbering)
    resolver.resolve(modules)
    if len(modules) > MOST_PLACED:  # hostile: what no rule knows stays in doubt
        configured = False
    if configured and any(group.owner == "unclassified" for module in modules for group in module):
        numbering = find_numbering(counts.keys(), facts)
        if numbering != Numbering():
            modules = _modules(counts, headers, numbering)
            resolver.resolve(modules)
    inferred = place(modules, facts) if configured else []
    found = [group for module in modules for group in module]
    bounds = [group for group in found if not group.exact]
    if bounds and read is not None:
        read_shapes(bounds, headers, read)
    return Collected(found, inferred)


def _modules(counts: Counter[Tensor], headers: Sequence[Header], numbering: Numbering) -> list[Module]:
    """The tensors of each module in each layer. Where copies of a module differ (an expert left unpacked, experts of
    several widths), those alike make a module of their own: a scale belongs to the tensor beside it."""
    templates = [numbering.template(name) for name, _, _ in counts]
    present = set(templates)
    split = {template: (*split_leaf(template, present), numbering.place(template)) for template in present}
    modules: dict[tuple[str, str], dict[Tensor, Group]] = {}
    for template, ((name, dtype, shape), tensors) in zip(templates, counts.items(), strict=True):
        module, leaf, (start, stack) = split[template]
        number = name[start:].partition(".")[0] if start > 0 else ""
        alike = modules.setdefault((module, number), {})
        _add(alike, (leaf, dtype, shape), tensors, module, number, stack)
    mixed = {key for key, alike in modules.items() if "#" in key[0] and _is_mixed(alike)}
    if not mixed:
        return [list(alike.values()) for alike in modules.values()]
    apart = _copies_apart(mixed, headers, numbering, split)
    whole = [list(alike.values()) for key, alike in modules.items() if key not in mixed]
    return [*whole, *apart]


def _add(alike: dict[Tensor, Group], tensor: Tensor, tensors: int, module: str, number: str, stack: str) -> None:
    group = alike.get(tensor)
    if group is None:
        layer = int(number) if number.isdecimal() and len(number) < 10 else NO_LAYER
        leaf, dtype, shape = tensor
        group = alike[tensor] = Group(module, leaf, layer, stack, dtype, shape, 0)
    group.tensors += tensors


def _is_mixed(alike: dict[Tensor, Group]) -> bool:
    """True when a module's copies are not all alike: a leaf in two dtypes or shapes, or leaves of unequal number."""
    leaves = {leaf for leaf, _, _ in alike}
    return len(leaves) < len(alike) or len({group.tensors for group in alike.values()}) > 1


def _copies_apart(
    mixed: set[tuple[str, str]],
    headers: Sequence[Header],
    numbering: Numbering,
    split: dict[str, tuple[str, str, LayerPlace]],
) -> list[Module]:
    """The tensors of modules whose copies differ, copies of the same tensors together."""
    heads = tuple({module.partition("#")[0] for module, _ in mixed})
    copies: dict[tuple[str, str, str], list[Tensor]] = {}
    stacks: dict[str, str] = {}
    for header in headers:
        for name, dtype, shape in zip(header.names, header.dtypes, header.shapes, strict=True):
            if not name.startswith(heads):
                continue
            template = numbering.template(name)
            found = split.get(template)
            if found is None:
                continue
            module, leaf, (start, stack) = found
            number = name[start:].partition(".")[0] if start > 0 else ""
            if (module, number) in mixed:
                stacks[module] = stack
                path = name[: len(name) - len(leaf)]
                copies.setdefault((module, number, path), []).append((leaf, dtype, shape))
    variants: dict[tuple[str, str, tuple[Tensor, ...]], dict[Tensor, Group]] = {}
    for (module, number, _), tensors in copies.items():
        alike = variants.setdefault((module, number, tuple(sorted(tensors))), {})
        for tensor in tensors:
            _add(alike, tensor, 1, module, number, stacks[module])
    return [list(alike.values()) for alike in variants.values()]


class _Resolver:
    """Gives the groups of one module their roles and formats; modules alike in all but the layer are solved once."""

    def __init__(self, hints: Hinting, facts: Facts, rules: Sequence[Rule] = ()) -> None:
        self.rules = [(rule.role, re.compile(rule.pattern)) for rule in rules]
        self.hints = hints
        self.facts = facts
        self.known: dict[tuple[Hints, tuple[Part, ...]], list[Unpacked | None]] = {}
        self.roles: dict[str, str] = {}

    def role(self, module: str) -> str:
        """The role of a module's template. Past MOST_MODULES nothing is matched any more: no model has as many, and
        matching a hostile file's 500,000 would take minutes."""
        if module not in self.roles:
            own = next((role for role, pattern in self.rules if pattern.fullmatch(module)), None)
            self.roles[module] = own or (role_of(module) if len(self.roles) < MOST_MODULES else "unclassified")
        return self.roles[module]

    def resolve(self, modules: list[Module]) -> None:
        """Fill in role, owner, format, rule and logical shape of every group."""
        for module in modules:
            self._resolve(module)

    def _resolve(self, groups: Module) -> None:
        """Fill in role, owner, format, rule and logical shape of the groups of one module in one layer."""
        module = groups[0].module
        listed = tuple(Part(g.leaf, g.dtype, g.shape) for g in groups)
        hints = self.hints(module, groups[0].layer)
        answers = self.known.get((hints, listed))
        if answers is None:
            parts = {part.leaf: part for part in listed}
            answers = [unpack(part, parts, hints) for part in listed]
            claimed = {leaf for answer in answers if answer for leaf in answer.claimed}
            # A tensor that looks like a scale but describes no sibling (`router.scale`) is a weight of its own.
            answers = [
                unpack(part._replace(leaf=""), {}, Hints()) if answer is None and part.leaf not in claimed else answer
                for part, answer in zip(listed, answers, strict=True)
            ]
            self.known[(hints, listed)] = answers
        claims: dict[str, tuple[Group, Unpacked]] = {}
        for group, answer in zip(groups, answers, strict=True):
            if answer is not None:
                for leaf in answer.claimed:
                    claims.setdefault(leaf, (group, answer))
        for group, answer in zip(groups, answers, strict=True):
            claim = claims.get(group.leaf)
            named = self.role(module) if claim or group.leaf in MAIN_LEAVES else "unclassified"
            role = self.place(group, self.role(group.template) if named == "unclassified" else named)
            group.owner = role
            if claim is not None:
                group.role, group.format, group.rule = "quant_meta", claim[1].format, f"describes {claim[0].leaf}"
            elif answer is not None and role not in ("buffer", "quant_meta"):
                group.role, group.format, group.rule = role, answer.format, answer.rule
                group.logical, group.exact = answer.shape, answer.exact
            elif role in ("buffer", "quant_meta"):
                group.role, group.format, group.rule = role, role, "named so"
            else:
                # No layout explains these bits, so no role is granted either: guessing would be a wrong count.
                group.role, group.format, group.rule = "unclassified", "unknown", "no layout fits"
                group.logical = group.shape

    def place(self, group: Group, role: str) -> str:
        """`role`, unless the group's layer lies past the decoder: then it is multi-token prediction."""
        appended = self.facts.is_appended(group.stack, group.layer)
        return "mtp" if appended and role in DECODER_ROLES else role
