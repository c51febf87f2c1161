"""Group tensors that are equal but for the numbers in their names: 91,991 become about two thousand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from moegauge.counting.group import NO_LAYER, Group
from moegauge.counting.headers.header import Header
from moegauge.counting.packings import Hints, Part, Shape
from moegauge.counting.roles import DECODER_ROLES, LayerPlace, layer_place, role_of, template_of, without_experts
from moegauge.counting.shape_tensors import read_shapes
from moegauge.counting.storage import MAIN_LEAVES, Unpacked, split_leaf, unpack

MOST_MODULES = 10_000  # distinct module names of one checkpoint; the largest known has some hundred


def collect(
    headers: Sequence[Header],
    hints: Callable[[str], Hints],
    layers: int | None,
    read: Callable[[int, int], bytes] | None = None,
) -> list[Group]:
    """Every tensor of `headers` in groups, with role, format and logical shape.

    Args:
        headers: validated headers of one checkpoint.
        hints: what the config says of a module, see `moegauge.counting.quant_config`.
        layers: decoder layers; those at or past it are multi-token prediction. None when unknown.
        read: the bytes of one tiny tensor by shard and position; asked for shapes that are data, where nothing else
            says them. None leaves those as upper bounds.
    """
    counts: Counter[tuple[str, str, Shape]] = Counter()
    for header in headers:
        # Experts' numbers go first: what is left differs in layer and matrix alone, some thousand names.
        counts.update(zip(without_experts(header.names), header.dtypes, header.shapes, strict=True))
    modules: dict[tuple[str, str], dict[tuple[str, str, Shape], Group]] = {}
    split: dict[str, tuple[str, str, LayerPlace]] = {}
    for (name, dtype, shape), tensors in counts.items():
        template = template_of(name)
        if template not in split:
            split[template] = (*split_leaf(template), layer_place(template))
        module, leaf, (start, stack) = split[template]
        number = name[start:].partition(".")[0] if start > 0 else ""
        alike = modules.setdefault((module, number), {})
        group = alike.get((leaf, dtype, shape))
        if group is None:
            layer = int(number) if number.isdecimal() else NO_LAYER
            group = alike[(leaf, dtype, shape)] = Group(module, leaf, layer, stack, dtype, shape, 0)
        group.tensors += tensors
    resolver = _Resolver(hints, layers)
    for groups in modules.values():
        resolver.resolve(list(groups.values()))
    found = [group for groups in modules.values() for group in groups.values()]
    bounds = [group for group in found if not group.exact]
    if bounds and read is not None:
        read_shapes(bounds, headers, read)
    return found


def _beside(part: Part, listed: tuple[Part, ...]) -> dict[str, Part]:
    """The tensors beside `part`, by leaf. Where experts of one module come in several sizes, every leaf has as many
    groups, and the sizes go together in order."""
    if len(listed) == 1:
        return {part.leaf: part}
    alike = sorted((other for other in listed if other.leaf == part.leaf), key=lambda other: other.shape)
    rank = alike.index(part)
    found: dict[str, Part] = {}
    for leaf in {other.leaf for other in listed}:
        group = sorted((other for other in listed if other.leaf == leaf), key=lambda other: other.shape)
        found[leaf] = group[rank] if len(group) == len(alike) else group[0]
    return {**found, part.leaf: part}


class _Resolver:
    """Gives the groups of one module their roles and formats; modules alike in all but the layer are solved once."""

    def __init__(self, hints: Callable[[str], Hints], layers: int | None) -> None:
        self.hints = hints
        self.layers = layers
        self.known: dict[tuple[str, tuple[Part, ...]], list[Unpacked | None]] = {}
        self.roles: dict[str, str] = {}

    def role(self, module: str) -> str:
        """The role of a module's template. Past MOST_MODULES nothing is matched any more: no model has as many, and
        matching a hostile file's 500,000 would take minutes."""
        if module not in self.roles:
            self.roles[module] = role_of(module) if len(self.roles) < MOST_MODULES else "unclassified"
        return self.roles[module]

    def resolve(self, groups: list[Group]) -> None:
        """Fill in role, owner, format, rule and logical shape of the groups of one module in one layer."""
        module = groups[0].module
        listed = tuple(Part(g.leaf, g.dtype, g.shape) for g in groups)
        answers = self.known.get((module, listed))
        if answers is None:
            answers = [unpack(part, _beside(part, listed), self.hints(module)) for part in listed]
            claimed = {leaf for answer in answers if answer for leaf in answer.claimed}
            # A tensor that looks like a scale but describes no sibling (`router.scale`) is a weight of its own.
            answers = [
                unpack(part._replace(leaf=""), {}, Hints()) if answer is None and part.leaf not in claimed else answer
                for part, answer in zip(listed, answers, strict=True)
            ]
            self.known[(module, listed)] = answers
        claims: dict[str, tuple[Group, Unpacked]] = {}
        for group, answer in zip(groups, answers, strict=True):
            if answer is not None:
                for leaf in answer.claimed:
                    claims.setdefault(leaf, (group, answer))
        for group, answer in zip(groups, answers, strict=True):
            claim = claims.get(group.leaf)
            role = self.place(group, self.role(module if claim or group.leaf in MAIN_LEAVES else group.template))
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
        appended = self.layers is not None and group.layer >= self.layers
        if appended and role in DECODER_ROLES and "coder" not in group.stack:  # encoder.*, decoder.*: other numbering
            return "mtp"
        return role
