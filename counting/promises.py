"""Config against headers: every promise of the config that the tensors break, as a sentence that names both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moegauge.counting.counts import Counts
from moegauge.counting.group import NO_LAYER
from moegauge.counting.packings import PLAIN
from moegauge.counting.quant_config import quantisation

SHOWN_LAYERS = 4
_WITH_HEAD = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "unnamed")


def broken_promises(counts: Counts) -> Iterator[str]:
    """A warning for each promise of the config that the headers do not keep."""
    if not counts.configured:
        return
    yield from _experts(counts)
    yield from _layers(counts)
    yield from _head(counts)
    yield from _widths(counts)
    yield from _modalities(counts)
    yield from _storage(counts)


def _experts(counts: Counts) -> Iterator[str]:
    facts = counts.facts
    if facts.expert_counts and not counts.pools:
        promised = _numbers(facts.expert_counts)
        yield f"{facts.spelling('experts')} is {promised}, but no tensor is a routed expert: none is counted."
        return
    if counts.pools and not facts.expert_counts:
        held = counts.common("count") or "routed"
        yield f"config.json names no number of experts, but {held} experts are stored in {counts.moe_layers} layers."
    present = {pool.layer for pool in counts.pools}
    missing = sorted(layer for layer in facts.sparse_layers if layer not in present)
    if missing and counts.pools:
        yield f"config.json makes {_listed(missing)} mixture-of-experts, but no routed expert is stored there."
    extra = sorted(layer for layer in present if layer in facts.dense_layers)
    if extra:
        yield f"config.json makes {_listed(extra)} dense, but routed experts are stored there."


def _layers(counts: Counts) -> Iterator[str]:
    facts = counts.facts
    appended: dict[int, set[str]] = {}
    decoder: set[str] = set()
    for group in counts.groups:
        if group.layer == NO_LAYER or not group.stack:
            continue
        if facts.is_appended(group.stack, group.layer) and group.role == "mtp":
            appended.setdefault(group.layer, set()).add(group.template)
        elif group.layer >= 0 and group.role not in ("mtp", "vision", "audio"):
            decoder.add(group.template)
    # A module of multi-token prediction has tensors no decoder layer has: what joins the token and the hidden state.
    plain = sorted(layer for layer, templates in appended.items() if templates <= decoder)
    if plain:
        promised = f"{facts.spelling('layers')} is {facts.layers}"
        yield (
            f"{promised}, but the headers hold {_listed(plain)} too, without a module of multi-token prediction: "
            "counted as mtp, but perhaps decoder layers the config forgets."
        )
    if facts.mtp_layers and not counts.parameters("mtp") and not counts.checkpoint.may_be_part:
        promised = f"{facts.spelling('mtp_layers')} is {facts.mtp_layers}"
        yield f"{promised}, but no tensor of multi-token prediction (mtp) is stored."


def _head(counts: Counts) -> Iterator[str]:
    if counts.embedding is None or counts.checkpoint.may_be_part:
        return
    stored = any(group.role == "lm_head" for group in counts.groups)
    field = counts.facts.spelling("tied")
    if counts.facts.tied and stored:
        yield f"{field} is true, yet an LM head lies beside the embedding: both are stored, both are counted."
    named = (counts.checkpoint.config or {}).get("architectures")
    architectures = named if isinstance(named, list) and named else ["unnamed"]
    generates = any(str(name).endswith(_WITH_HEAD) for name in architectures)  # a reward model or a bare stack has none
    if counts.facts.tied is False and not stored and generates:
        yield f"{field} is false, but no LM head is stored: the embedding is counted as the head too."


def _widths(counts: Counts) -> Iterator[str]:
    facts = counts.facts
    table = counts.embedding
    if table is not None and table.logical and facts.hidden and facts.vocabulary:
        if facts.hidden not in table.logical:
            yield f"{facts.spelling('hidden')} is {facts.hidden}, but the embedding is {list(table.logical)}."
        elif max(table.logical) < facts.vocabulary:
            yield f"{facts.spelling('vocabulary')} is {facts.vocabulary}, but the embedding is {list(table.logical)}."
    for pool in counts.pools:
        dims = {
            d for g in pool.groups if g.logical and len(g.logical) > 1 and g.role == "routed_expert" for d in g.logical
        }
        width = facts.expert_width
        if dims and width and pool.modality == "text" and not dims & {width, 2 * width, width * (pool.count or 1)}:
            field = facts.spelling("expert_widths")
            yield f"{field} is {width}, but layer {pool.layer} has no expert as wide: sides are {_numbers(dims)}."
            return


def _modalities(counts: Counts) -> Iterator[str]:
    for name, section in sorted(counts.facts.modalities.items()):
        if not counts.parameters(name) and not counts.checkpoint.may_be_part:
            yield f"config.json has {section}, but no tensor of {name} is stored."


def _storage(counts: Counts) -> Iterator[str]:
    empty = sum(group.tensors for group in counts.groups if 0 in group.shape)
    if empty:
        yield (
            f"{empty:,} tensors are empty: weights that were partitioned (DeepSpeed ZeRO-3) when they were saved are "
            "not in this checkpoint."
        )
    adapters = sum(group.tensors for group in counts.groups if ".lora_" in group.template)
    if adapters:
        yield f"{adapters:,} tensors are a LoRA adapter's, not merged: they are counted as dense."
    method = quantisation(counts.checkpoint.config, counts.checkpoint.quant_config).get("quant_method")
    formats = {group.format for group in counts.groups if group.parameters}
    if isinstance(method, str) and formats and formats <= set(PLAIN.values()):
        stored = ", ".join(sorted(formats))
        yield f"quant_method is {method[:40]!r}, but every weight is stored in {stored}."


def _listed(layers: list[int]) -> str:
    """`layers 3, 4, 5, 6 and 20 more`."""
    shown = ", ".join(map(str, layers[:SHOWN_LAYERS]))
    more = f" and {len(layers) - SHOWN_LAYERS} more" if len(layers) > SHOWN_LAYERS else ""
    return f"layer{'s' if len(layers) > 1 else ''} {shown}{more}"


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))
