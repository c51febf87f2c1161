"""Find pools of routed experts: which tensors of a layer make one, its experts, and how many a token uses."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from moegauge.counting.config import Facts
from moegauge.counting.errors import BadConfigError
from moegauge.counting.group import NO_LAYER, Group
from moegauge.text import shown


@dataclass(slots=True)
class ExpertPool:
    """The routed experts of one layer that share a router.

    Attributes:
        layer: the layer's number.
        name: the module that holds them, numbers as `#`.
        groups: every tensor of theirs, scales included.
        count: experts; None when neither names nor config say.
        top_k: experts a token uses; None when the config does not say.
        zero_experts: further experts the router may choose that have no weights.
        modality: `text`, or `vision` for experts only image tokens use (ERNIE-4.5-VL).
    """

    layer: int
    name: str
    groups: list[Group]
    count: int | None = None
    top_k: int | None = None
    zero_experts: int = 0
    modality: str = "text"

    @property
    def parameters(self) -> int:
        """Logical parameters of all experts."""
        return sum(g.parameters for g in self.groups)

    @property
    def share(self) -> Fraction | None:
        """The part of the pool one text token uses, top_k / experts; None when either is unknown."""
        if self.modality != "text":
            return Fraction(0)
        if self.count is None or self.top_k is None:
            return None
        return Fraction(self.top_k, self.count + self.zero_experts)


_EXPERTS = re.compile(r".*\.(?:v_)?experts(?=\.)")


def pool_name(module: str) -> str:
    """The module that holds the experts: `a.experts.#.gate_proj` and `a.experts.gate_up_proj` -> `a.experts`."""
    named = _EXPERTS.match(module)
    return named[0] if named else module.rpartition(".")[0].removesuffix(".#")


def find_pools(
    groups: list[Group], facts: Facts, top_k: int | None = None, *, partial: bool = False
) -> list[ExpertPool]:
    """The pools of the decoder, in layer order.

    Args:
        groups: all groups of a checkpoint.
        facts: what its config says.
        top_k: overrides the config's.
        partial: the files are only part of a checkpoint; experts may then be missing.

    Raises:
        BadConfigError: the config claims other numbers of experts than the names hold, or `top_k` exceeds them.
    """
    found: dict[tuple[str, int, str], ExpertPool] = {}
    for group in groups:
        if group.owner == "routed_expert":
            name = group.pool or pool_name(group.module)
            key = (group.stack, group.layer, name)
            found.setdefault(key, ExpertPool(group.layer, name, [])).groups.append(group)
    pools = [part for key in sorted(found, key=lambda k: (k[1], k[0], k[2])) for part in _split(found[key], facts)]
    moe_layers = sorted({pool.layer for pool in pools})
    for pool in pools:
        values = pool.name.endswith("v_experts")
        claimed = facts.value_experts if values else facts.of_layer("experts", pool.layer, moe_layers) or None
        pool.count = _count(pool, facts, claimed, partial=partial)
        chosen = facts.value_top_k if values else facts.of_layer("top_k", pool.layer, moe_layers)
        used = top_k if top_k is not None else chosen
        pool.top_k, pool.zero_experts = used or None, facts.zero_experts
        if used is not None and pool.count is not None and used > pool.count:
            raise BadConfigError(
                f"{facts.spelling('top_k')} is {used}, but layer {pool.layer} holds {pool.count} experts.",
                file="config.json" if top_k is None else "--top-k",
                advice="A token cannot use more experts than there are.",
            )
    return pools


def _split(pool: ExpertPool, facts: Facts) -> list[ExpertPool]:
    """One pool, or two where numbered experts of one module come in two sizes: ERNIE-4.5-VL numbers the experts of
    text and of images in one row and tells them apart by their width, the config's [text, vision]."""
    widths = facts.expert_widths
    if ".text_moe." in pool.name or ".vision_moe." in pool.name:
        pool.modality = "vision" if ".vision_moe." in pool.name else "text"
        return [pool]
    by_width: dict[int, list[Group]] = {}
    for group in pool.groups:
        dims = list(group.logical or group.shape)
        if facts.hidden in dims:
            dims.remove(facts.hidden)
        width = next((w for w in widths if w in dims or 2 * w in dims), 0)  # gate and up may be one matrix
        by_width.setdefault(width, []).append(group)
    if len(widths) != 2 or set(by_width) != set(widths):
        return [pool]
    return [
        ExpertPool(pool.layer, pool.name, by_width[width], modality=modality)
        for width, modality in zip(widths, ("text", "vision"), strict=True)
    ]


def _numbered(group: Group, pool: ExpertPool) -> bool:
    """True for one tensor an expert, false for one tensor of all."""
    return ".#" in group.module[len(pool.name) :]


def drop_second_layout(pools: list[ExpertPool], groups: list[Group]) -> list[str]:
    """Take experts that one pool stores twice, numbered and stacked, out of it once: the stacks become `duplicate`.

    Two pools of one layer that only one router chooses from are such a pair too: `experts` and `switch_mlp`.

    Args:
        pools: of one checkpoint; a pool that is a second copy of another is taken out.
        groups: all groups, for the routers.

    Returns:
        A warning for each pool of one kind.
    """
    found: dict[str, list[int]] = {}
    for pool in pools:
        parts = [[g for g in pool.groups if _numbered(g, pool) is numbered] for numbered in (True, False)]
        sizes = [sum(g.parameters for g in part) for part in parts]
        if min(sizes) == 0 or sizes[0] != sizes[1]:
            continue
        _set_apart(parts[1])
        pool.groups = parts[0]
        found.setdefault(pool.name, []).append(pool.layer)
    routers: Counter[tuple[str, int]] = Counter()
    for group in groups:
        if group.role == "router" and len(group.logical or ()) == 2:
            routers[(group.stack, group.layer)] += 1
    for index, pool in reversed(list(enumerate(pools))):
        place = (pool.groups[0].stack, pool.layer)
        alike = [p for p in pools[:index] if (p.groups[0].stack, p.layer) == place and p.parameters == pool.parameters]
        if alike and routers[place] == 1 and {p.count for p in alike} == {pool.count} and pool.modality == "text":
            _set_apart(pool.groups)
            del pools[index]
            found.setdefault(pool.name, []).append(pool.layer)
    return [
        f"{shown(name)}: experts are stored twice in {len(layers)} layers, numbered and stacked; they are counted once."
        for name, layers in found.items()
    ]


def _set_apart(groups: list[Group]) -> None:
    for group in groups:
        group.owner = "duplicate"
        group.role = "duplicate" if group.role == "routed_expert" else group.role


def _count(pool: ExpertPool, facts: Facts, claimed: int | None, *, partial: bool) -> int | None:
    """Experts of a pool: numbered names are counted, fused tensors have them on their first axis, and both must agree
    with the config. Experts stacked on the rows of a matrix (DBRX) are known from the config alone."""
    if pool.modality == "vision" and isinstance(facts.experts, tuple):
        claimed = facts.experts[-1]
    held: dict[str, int] = {}
    for group in pool.groups:
        if group.role != "routed_expert" or group.logical is None or group.leaf in (".bias", "_bias"):
            continue
        if _numbered(group, pool):
            # By module, not tensor: one expert may be stored in another format than the others.
            held[group.module] = held.get(group.module, 0) + group.tensors
        elif len(group.logical) == 3:
            held[group.module] = group.logical[0]
    counts = set(held.values())
    if claimed is not None and counts == {claimed, claimed + facts.zero_experts}:
        counts = {claimed}  # transformers pads gate and up of LongCat-Flash with rows for its experts without weights
    where = f"layer {pool.layer}" if pool.layer != NO_LAYER else pool.name
    if len(counts) > 1 and not partial:
        listed = ", ".join(f"{count} of {shown(name)}" for name, count in sorted(held.items()))
        raise BadConfigError(
            f"{where} holds unequal numbers of expert tensors: {listed}.",
            file=pool.name,
            advice="A shard is missing or a name is wrong.",
        )
    if not counts:
        return claimed
    count = max(counts)
    if claimed is not None and claimed != count:
        if partial:
            return claimed
        raise BadConfigError(
            f"{facts.spelling('experts')} is {claimed}, but {where} holds {count} experts.",
            file="config.json",
            advice="The config belongs to another checkpoint, or a shard is missing.",
        )
    return count
