"""What a checkpoint holds and what one token uses of it, summed from its groups and pools."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from moegauge.counting.config import Facts
from moegauge.counting.group import NO_LAYER, Group
from moegauge.counting.pools import ExpertPool
from moegauge.counting.roles import DENSE_ROLES, ROLES
from moegauge.counting.sources.checkpoint import Checkpoint


@dataclass(slots=True)
class Counts:
    """The count of one checkpoint. All counts are exact integers; bytes are as stored.

    Attributes:
        checkpoint: where it came from.
        facts: what its config says.
        groups: every tensor, alike ones together, with role, format and logical shape.
        pools: the routed experts, per layer.
        warnings: what the reader of the numbers must know.
        inferred: names whose role follows from structure, not from a rule; numbers as `#`.
    """

    checkpoint: Checkpoint
    facts: Facts
    groups: list[Group]
    pools: list[ExpertPool]
    warnings: list[str] = field(default_factory=list)
    inferred: list[str] = field(default_factory=list)

    @property
    def configured(self) -> bool:
        """True when there is a config: config.json, or Mistral's params.json."""
        return bool(self.checkpoint.config or self.checkpoint.documents.get("params.json"))

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
        beside = (g for g in self.groups if g.module == table.module and g.layer == table.layer)
        return total + sum(_row_bytes(g) for g in beside) - (0 if self.tied else whole)

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


def _row_bytes(group: Group) -> int:
    """Bytes read of a table's tensor for one row: of its weights, of scales or of blocks of scales; a scalar whole."""
    return group.read_bytes // (group.tensors * (group.shape or (1,))[0] or 1)


def _sums(groups: list[Group], key: Any, order: tuple[str, ...] = ()) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for group in groups:
        row = found.setdefault(key(group), {"parameters": 0, "elements": 0, "bytes": 0})
        row["parameters"] += group.parameters
        row["elements"] += group.elements
        row["bytes"] += group.bytes
    rank = {name: i for i, name in enumerate(order)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], len(rank)), -item[1]["bytes"], item[0])))
