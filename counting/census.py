"""The census: what a checkpoint holds, by role and format, and what one token uses of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from moegauge.counting.config import Facts, read_facts
from moegauge.counting.errors import BadConfigError
from moegauge.counting.groups import NO_LAYER, Group, collect
from moegauge.counting.mixers import kv_bytes_per_token
from moegauge.counting.pools import Pool, find_pools
from moegauge.counting.quant_config import hints_for
from moegauge.counting.roles import DENSE_ROLES, ROLES
from moegauge.counting.sources.checkpoint import Checkpoint
from moegauge.errors import CheckpointError

if TYPE_CHECKING:
    from moegauge.shape import ModelShape


@dataclass(slots=True)
class Census:
    """The count of one checkpoint. All counts are exact integers; bytes are as stored.

    Attributes:
        checkpoint: where it came from.
        facts: what its config says.
        groups: every tensor, alike ones together, with role, format and logical shape.
        pools: the routed experts, per layer.
        warnings: what the reader of the numbers must know.
    """

    checkpoint: Checkpoint
    facts: Facts
    groups: list[Group]
    pools: list[Pool]
    warnings: list[str] = field(default_factory=list)

    # Parameters: logical weights after unpacking.

    def parameters(self, *roles: str) -> int:
        """Logical parameters of these roles."""
        return sum(g.parameters for g in self.groups if g.role in roles)

    @property
    def dense(self) -> int:
        """Parameters every token of the decoder uses: embedding and head, attention, dense and shared MLPs, routers,
        norms."""
        return self.parameters(*DENSE_ROLES)

    @property
    def routed(self) -> int:
        """Parameters of the decoder's routed experts."""
        return self.parameters("routed_expert")

    @property
    def decoder(self) -> int:
        """Dense and routed: without multi-token prediction, towers and lookup tables."""
        return self.dense + self.routed

    @property
    def total(self) -> int:
        """All logical parameters of the checkpoint."""
        return sum(g.parameters for g in self.groups)

    @property
    def embedding(self) -> Group | None:
        """The input embedding's largest table."""
        tables = [g for g in self.groups if g.role == "embedding" and g.logical and len(g.logical) == 2]
        return max(tables, key=lambda g: g.parameters, default=None)

    @property
    def tied(self) -> bool:
        """True when no LM head is stored: the embedding's table is the head."""
        return self.embedding is not None and not any(g.role == "lm_head" for g in self.groups)

    # Active: what one token uses.

    def routed_share(self, pool_sizes: list[int]) -> int | None:
        """Sum over the pools of size x top_k / experts; None when some pool's top_k is unknown."""
        total = Fraction(0)
        for pool, size in zip(self.pools, pool_sizes, strict=True):
            if pool.share is None:
                return None
            total += size * pool.share
        return round(total)

    @property
    def active_routed(self) -> int | None:
        """Parameters of the routed experts one token uses."""
        return self.routed_share([p.parameters for p in self.pools])

    @property
    def active(self) -> int | None:
        """Dense plus the routed experts one token uses; the input embedding is included."""
        routed = self.active_routed
        return None if routed is None else self.dense + routed

    @property
    def active_without_embedding(self) -> int | None:
        """`active` without an untied input embedding, of which a step reads one row."""
        if self.active is None or self.tied:
            return self.active
        return self.active - self.parameters("embedding")

    @property
    def active_stored_elements(self) -> int | None:
        """Stored elements one token uses by the published estimate's convention: every element of the main model,
        scales and buffers included, routed ones times top_k / experts, multi-token prediction left out."""
        main = {*DENSE_ROLES, "buffer", "quant_meta"}
        dense = sum(g.elements for g in self.groups if g.owner in main)
        routed = self.routed_share([sum(g.elements for g in p.groups) for p in self.pools])
        return None if routed is None else dense + routed

    @property
    def dense_bytes(self) -> int:
        """Bytes every step reads at batch 1 whatever the routing: as stored, scales included, the embedding as one
        row (and whole once more where it is also the head)."""
        total = sum(g.read_bytes for g in self.groups if g.owner in DENSE_ROLES)
        table = self.embedding
        if table is None or table.logical is None:
            return total
        whole = sum(g.read_bytes for g in self.groups if g.owner == "embedding")
        row = table.read_bytes // (table.tensors * table.logical[0])
        return total + row - (0 if self.tied else whole)

    @property
    def routed_bytes(self) -> int | None:
        """Bytes of the routed experts one token reads, scales included."""
        return self.routed_share([sum(g.read_bytes for g in p.groups) for p in self.pools])

    # Layers.

    @property
    def layers(self) -> int:
        """Decoder layers: what the config says, else what the names hold."""
        if self.facts.layers is not None:
            return self.facts.layers
        return 1 + max((g.layer for g in self.groups if g.owner in (*DENSE_ROLES, "routed_expert")), default=NO_LAYER)

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return len({(p.groups[0].stack, p.layer) for p in self.pools})

    def common(self, name: str) -> int | None:
        """The most common `count` or `top_k` of the pools."""
        values = Counter(getattr(p, name) for p in self.pools if getattr(p, name) is not None)
        return values.most_common(1)[0][0] if values else None

    def model_shape(self) -> ModelShape:
        """The checkpoint as a decode step sees it.

        Raises:
            ShapeError: the count lacks what a step needs: top_k, attention widths, an embedding.
        """
        from moegauge.counting.model_shape import build

        return build(self)

    # Sums for people and machines.

    def by_role(self) -> dict[str, dict[str, int]]:
        """Parameters, stored elements and bytes of every role that occurs."""
        return _sums(self.groups, lambda g: g.role, ROLES)

    def by_format(self) -> dict[str, dict[str, int]]:
        """Parameters, stored elements and bytes of every storage format, its scales included."""
        return _sums(self.groups, lambda g: g.format)

    def unclassified(self) -> list[str]:
        """Names no rule knows, numbers as `#`."""
        return sorted({g.template for g in self.groups if g.role == "unclassified"})

    def to_json(self, *, per_layer: bool = False) -> dict[str, Any]:
        """The document of `moegauge count --json`, schema `moegauge.count/1`."""
        from moegauge.counting.census_json import document

        return document(self, per_layer=per_layer)


def _sums(groups: list[Group], key: Any, order: tuple[str, ...] = ()) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for group in groups:
        row = found.setdefault(key(group), {"parameters": 0, "elements": 0, "bytes": 0})
        row["parameters"] += group.parameters
        row["elements"] += group.elements
        row["bytes"] += group.bytes
    rank = {name: i for i, name in enumerate(order)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], len(rank)), -item[1]["bytes"], item[0])))


def take_census(checkpoint: Checkpoint, *, top_k: int | None = None) -> Census:
    """Count an opened checkpoint.

    Args:
        checkpoint: validated headers and the documents beside them.
        top_k: experts a token uses, where the config does not say or is not believed.

    Raises:
        CheckpointError: config and headers contradict each other, or the bytes do not reconcile.
    """
    config = checkpoint.config or checkpoint.documents.get("params.json")  # Mistral's own layout has no config.json
    facts = read_facts(config)
    hints = hints_for(config, checkpoint.quant_config, [h.metadata for h in checkpoint.headers])
    groups = collect(checkpoint.headers, hints, facts.layers, checkpoint.read_bytes)
    counted, stored = sum(g.bytes for g in groups), sum(h.data_bytes for h in checkpoint.headers)
    if counted != stored:
        raise CheckpointError(
            f"{checkpoint.name}: roles hold {counted:,} bytes, the files {stored:,}.",
            advice="This is a bug; report it.",
        )
    warnings = list(checkpoint.warnings)
    try:
        pools = find_pools(groups, facts, top_k)
        _check_layers(groups, facts)
    except BadConfigError as error:
        if checkpoint.kind != "file":
            raise
        pools = find_pools(groups, facts, top_k, partial=True)
        warnings.append(f"this file is part of a checkpoint and counted alone: {error.message}")
    census = Census(checkpoint, facts, groups, pools, warnings)
    census.warnings.extend(_remarks(census))
    return census


def _check_layers(groups: list[Group], facts: Facts) -> None:
    """Every layer the config promises is there."""
    if facts.layers is None:
        return
    numbered = [g for g in groups if g.layer != NO_LAYER and "coder" not in g.stack]
    present = {g.layer for g in numbered if g.owner in (*DENSE_ROLES, "routed_expert", "unclassified")}
    missing = [n for n in range(facts.layers) if n not in present]
    if present and missing:
        raise BadConfigError(
            f"{facts.field('layers')} is {facts.layers}, but no tensor belongs to layer {missing[0]}.",
            file="config.json",
            advice="The config belongs to another checkpoint, or a shard is missing.",
        )


def _remarks(census: Census) -> list[str]:
    """What the reader of the numbers must know."""
    out = []
    facts = census.facts
    if not census.checkpoint.config and "params.json" not in census.checkpoint.documents:
        out.append("no config.json: layers are counted from names, multi-token prediction may be among them.")
    if census.pools and census.active is None:
        out.append("experts per token unknown, so active counts are missing: give --top-k.")
    if facts.zero_experts:
        out.append(
            f"{facts.zero_experts} of the router's choices have no weights: active counts are the mean under uniform "
            "routing."
        )
    if census.checkpoint.config and kv_bytes_per_token(census)[0] is None:
        out.append("the KV cache is not given: the config lacks attention widths, or a layer's attention is unknown.")
    if any("encoder" in p.groups[0].stack for p in census.pools):
        out.append("encoder and decoder stacks are counted together; a generated token uses the decoder's alone.")
    if any(not g.exact for g in census.groups):
        out.append("some packed widths are upper bounds: their weight_shape could not be read.")
    if facts.tied and any(g.role == "lm_head" for g in census.groups):
        out.append("the config ties the LM head to the embedding, yet both are stored: both are counted.")
    return out
