"""The census of a checkpoint: parameters and bytes by role and format, and what one token uses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moegauge.counting.census_json import document
from moegauge.counting.config import Facts, read_facts
from moegauge.counting.counts import Counts
from moegauge.counting.errors import AdapterError, BadConfigError
from moegauge.counting.families import Rule
from moegauge.counting.group import NO_LAYER, Group
from moegauge.counting.groups import collect
from moegauge.counting.mixers import kv_bytes_per_token, why_no_kv
from moegauge.counting.model_shape import build
from moegauge.counting.pools import drop_second_layout, find_pools
from moegauge.counting.promises import broken_promises
from moegauge.counting.quant_config import hints_for
from moegauge.counting.roles import DENSE_ROLES
from moegauge.counting.sources.checkpoint import Checkpoint
from moegauge.errors import CheckpointError
from moegauge.shape import ModelShape
from moegauge.text import shown

SHOWN_NAMES = 3


@dataclass(slots=True)
class Census(Counts):
    """The counts of one checkpoint, and what is made of them."""

    def model_shape(self) -> ModelShape:
        """The checkpoint as a decode step sees it.

        Raises:
            ShapeError: the count lacks what a step needs: top_k, attention widths, an embedding.
        """
        return build(self)

    def to_json(self, *, per_layer: bool = False) -> dict[str, Any]:
        """The document of `moegauge count --json`, schema `moegauge.count/1`."""
        return document(self, per_layer=per_layer)


def take_census(checkpoint: Checkpoint, *, top_k: int | None = None, rules: Sequence[Rule] = ()) -> Census:
    """Count an opened checkpoint.

    Args:
        checkpoint: validated headers and the documents beside them.
        top_k: experts a token uses, where the config does not say or is not believed.
        rules: roles of names the shipped rules do not know; see `moegauge.counting.rules`.

    Raises:
        CheckpointError: config and headers contradict each other, or the bytes do not reconcile.
    """
    refuse_adapter(checkpoint)
    config = checkpoint.config or checkpoint.documents.get("params.json")  # Mistral's own layout has no config.json
    facts = read_facts(config)
    hints = hints_for(config, checkpoint.quant_config, [h.metadata for h in checkpoint.headers])
    collected = collect(checkpoint.headers, hints, facts, checkpoint.read_bytes, configured=bool(config), rules=rules)
    groups = collected.groups
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
        if not checkpoint.may_be_part:
            raise
        pools = find_pools(groups, facts, top_k, partial=True)
        warnings.append(f"this file is part of a checkpoint and counted alone: {error.message}")
    warnings += drop_second_layout(pools, groups)
    census = Census(checkpoint, facts, groups, pools, warnings, collected.inferred)
    census.warnings.extend(_remarks(census))
    return census


_ADAPTER = re.compile(r"\.(?:lora_|hada_|lokr_|ia3_l|oft_|vera_|boft_|ln_tuning)")


def refuse_adapter(checkpoint: Checkpoint) -> None:
    """An adapter alone has no experts to count: its tensors are updates of another model's.

    Raises:
        AdapterError: every matrix is an adapter's.
    """
    names = [name for header in checkpoint.headers for name in header.names[:1000]]
    if not _ADAPTER.search("\n".join(names)):
        return
    updates = sum(1 for name in names if _ADAPTER.search(name))
    if 2 * updates < len(names):
        return
    base = checkpoint.documents.get("adapter_config.json", {}).get("base_model_name_or_path")
    of = f" of {shown(base)}" if isinstance(base, str) and base else ""
    raise AdapterError(
        f"is a LoRA adapter{of}, not a model: its tensors are updates of the base model's.",
        file=checkpoint.name,
        advice="Count the base model; or merge the adapter into it first.",
    )


def _check_layers(groups: list[Group], facts: Facts) -> None:
    """Every layer the config promises is there."""
    if facts.layers is None:
        return
    numbered = [g for g in groups if g.layer != NO_LAYER and "coder" not in g.stack]
    present = {g.layer for g in numbered if g.owner in (*DENSE_ROLES, "routed_expert", "unclassified")}
    missing = [n for n in range(facts.layers) if n not in present]
    if present and missing:
        raise BadConfigError(
            f"{facts.spelling('layers')} is {facts.layers}, but no tensor belongs to layer {missing[0]}.",
            file="config.json",
            advice="The config belongs to another checkpoint, or a shard is missing.",
        )


def _remarks(census: Census) -> list[str]:
    """What the reader of the numbers must know."""
    out = []
    facts = census.facts
    if not census.configured:
        out.append("no config.json: layers are counted from names, multi-token prediction may be among them.")
    if census.pools and census.active is None:
        out.append("experts per token unknown, so active counts are missing: give --top-k.")
    if facts.zero_experts:
        out.append(
            f"{facts.zero_experts} of the router's choices have no weights: active counts are the mean under uniform "
            "routing."
        )
    if census.checkpoint.config and kv_bytes_per_token(census)[0] is None:
        out.append(f"the KV cache is not given: {why_no_kv(census)}.")
    if any("encoder" in p.groups[0].stack for p in census.pools):
        out.append("encoder and decoder stacks are counted together; a generated token uses the decoder's alone.")
    if any(not g.exact for g in census.groups):
        out.append("some packed widths are upper bounds: their weight_shape could not be read.")
    if census.inferred:
        names = set(census.inferred)
        tensors = sum(g.tensors for g in census.groups if g.template in names)
        listed = ", ".join(shown(name) for name in census.inferred[:SHOWN_NAMES])
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        out.append(f"{tensors:,} tensors placed by structure, no rule knows their names: {listed}{more}.")
    out.extend(broken_promises(census))
    return out
