"""Tell each layer's token mixer (attention, MLA, linear, SSM) from its tensors, and its KV cache per token."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from moegauge.counting.config import Facts
from moegauge.counting.counts import Counts
from moegauge.counting.packings import Shape
from moegauge.shape import Attention

KV_ELEMENT_BYTES = 2  # bf16
UNKNOWN = "unknown"

# The first row whose modules occur in a layer names its kind. Last components of module names.
KINDS: tuple[tuple[str, frozenset[str]], ...] = (
    ("mla", frozenset(("kv_a_proj_with_mqa", "wkv_a_with_mqa", "kv_b_proj"))),
    ("linear", frozenset(("A_log", "in_proj_qkvz", "in_proj_qkv", "output_gate", "conv"))),
    ("gqa", frozenset(("k_proj", "wk", "k", "qkv_proj", "query_key_value", "Wqkv", "wk_dv", "c_attn"))),
)
# Queries, keys and values in one matrix: the widths of each are the config's word alone.
FUSED = ("qkv_proj", "query_key_value", "Wqkv", "c_attn")
_KEYS, _VALUES = ("k_proj", "wk", "wk_dv"), ("v_proj", "wv", "wv_dv")


class Mixer(NamedTuple):
    """The token mixer of one layer.

    Attributes:
        modules: last component of every module's name -> logical shape of its largest tensor.
        copies: how many of it a layer has; two in LongCat-Flash.
    """

    modules: dict[str, Shape]
    copies: int = 1


def layer_mixers(census: Counts) -> dict[int, Mixer]:
    """Layer -> its token mixer, for the decoder's layers."""
    found: dict[int, dict[str, Shape]] = {n: {} for n in range(census.layers)}
    copies: dict[int, int] = {}
    for group in census.groups:
        if group.owner == "other" and group.layer in found:
            found[group.layer].setdefault(UNKNOWN, ())  # placed by structure: it may be the mixer
        if group.owner == "attention" and group.layer in found and ".indexer" not in group.module:
            held = found[group.layer]
            name = group.module.rpartition(".")[2]
            held[name] = max(held.get(name, ()), group.logical or (), key=len)
            if ".self_attn.#." in group.module:
                copies[group.layer] = max(copies.get(group.layer, 1), group.tensors)
    return {layer: Mixer(modules, copies.get(layer, 1)) for layer, modules in found.items()}


def kind_of(mixer: Mixer, layer: int, facts: Facts) -> str:
    """`mla`, `gqa`, `linear`, `none` for a layer without a token mixer, `unknown` for one no row names. Projections
    alike in both are linear attention's where the config says so."""
    if not mixer.modules:
        return "none"
    kind = next((kind for kind, names in KINDS if names.intersection(mixer.modules)), UNKNOWN)
    said = facts.kinds[layer] if layer < len(facts.kinds) else ""
    return "linear" if (kind, said) == ("gqa", "linear_attention") else kind


class Widths(NamedTuple):
    """Heads and elements of one head, of attention with a key and a value per key/value head."""

    heads: int
    kv_heads: int
    key: int
    value: int

    @property
    def fused(self) -> int:
        """Rows of queries, keys and values in one matrix."""
        return self.heads * self.key + self.kv_heads * (self.key + self.value)


def _widths(facts: Facts) -> Widths | None:
    """What the config says; None when it lacks heads or their size."""
    width = facts.head_dim or (facts.hidden // facts.heads if facts.hidden and facts.heads else None)
    if facts.heads is None or width is None:
        return None
    return Widths(facts.heads, facts.kv_heads or facts.heads, width, facts.value_dim or width)


def _contradiction(mixer: Mixer, widths: Widths) -> str | None:
    """A fused projection, either way round, that is not as large as the config's heads make it."""
    for name in FUSED:
        shape = mixer.modules.get(name, ())
        if len(shape) == 2 and widths.fused not in shape:
            heads = f"{widths.heads} heads and {widths.kv_heads} kv heads of {widths.key}"
            return f"{name} has {shape[0]:,} rows, but {heads} make {widths.fused:,}"
    return None


def describe(mixer: Mixer, layer: int, facts: Facts) -> Attention | None:
    """The attention of one layer without its matrices; None when the config lacks its widths, or they contradict the
    fused projection.

    MLA caches the compressed latent and the shared rotary key, kv_lora_rank + qk_rope_head_dim elements (DeepSeek-V2,
    section 2.1.2, arXiv 2405.04434); GQA caches a key and a value per key/value head, as wide as the projections that
    make them. A kind no row names is described as `none`: its matrices are read all the same.
    """
    kind = kind_of(mixer, layer, facts)
    if kind == "linear":
        return Attention("linear", state_elements=facts.state_elements)
    if kind in ("none", UNKNOWN):
        return Attention("none")
    heads = facts.heads
    if heads is None:
        return None
    window = facts.windows[layer] if layer < len(facts.windows) else None
    if kind == "mla":
        if facts.kv_rank is None or facts.rope_dim is None:
            return None
        cached = facts.kv_rank + facts.rope_dim
        return Attention("mla", heads, 1, cached, facts.kv_rank, cached * mixer.copies, window)
    widths = _widths(facts)
    if widths is None or _contradiction(mixer, widths):
        return None
    _, kv_heads, width, value = widths
    described = Attention("gqa", heads, kv_heads, width, value, kv_heads * (width + value), window)
    keys = next((mixer.modules[name] for name in _KEYS if len(mixer.modules.get(name, ())) == 2), None)
    values = next((mixer.modules[name] for name in _VALUES if len(mixer.modules.get(name, ())) == 2), keys)
    if keys and values:
        described = replace(described, cache_elements=keys[0] + values[0])
    return described


def kv_bytes_per_token(census: Counts) -> tuple[int | None, int | None]:
    """KV bytes in bf16 per token of context: (within every window, beyond all windows); None when the config lacks the
    widths or a layer's attention is of no known kind."""
    near = far = 0
    for layer, mixer in layer_mixers(census).items():
        attention = describe(mixer, layer, census.facts)
        if attention is None or kind_of(mixer, layer, census.facts) == UNKNOWN:
            return None, None
        near += attention.cache_elements
        far += attention.cache_elements if attention.window is None else 0
    return near * KV_ELEMENT_BYTES, far * KV_ELEMENT_BYTES


def why_no_kv(census: Counts) -> str:
    """Why `kv_bytes_per_token` gives nothing, for a person."""
    widths = _widths(census.facts)
    for layer, mixer in layer_mixers(census).items():
        if widths is not None and kind_of(mixer, layer, census.facts) == "gqa":
            found = _contradiction(mixer, widths)
            if found:
                return f"layer {layer}'s {found}"
    return "the config lacks attention widths, or a layer's attention is unknown"
