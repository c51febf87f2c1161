"""What each layer mixes tokens with, told from its tensors, and what it caches per token of context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moegauge.counting.facts import Facts
from moegauge.shape import Attention

if TYPE_CHECKING:
    from moegauge.counting.census import Census

KV_ELEMENT_BYTES = 2  # bf16

# The first row whose modules occur in a layer names its kind. Endings of module names, numbers as `#`.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mla", (".kv_a_proj_with_mqa", ".kv_b_proj")),
    ("linear", (".in_proj_qkvz", ".in_proj_qkv", ".A_log", ".dt_bias", ".conv1d", ".slope_rate")),
    ("gqa", (".k_proj", ".qkv_proj", ".query_key_value", ".Wqkv", ".k", ".key", ".wk")),
)


def layer_kinds(census: Census) -> dict[int, str]:
    """Layer number -> `mla`, `gqa`, `linear` or `none`, for the decoder's layers."""
    ends: dict[int, set[str]] = {}
    for group in census.groups:
        if group.owner in ("attention", "norm") and 0 <= group.layer < census.layers:
            ends.setdefault(group.layer, set()).add("." + group.module.rpartition(".")[2])
    return {
        layer: next((kind for kind, modules in KINDS if found.intersection(modules)), "none")
        for layer, found in ends.items()
    }


def describe(kind: str, layer: int, facts: Facts) -> Attention | None:
    """The attention of one layer without its matrices; None when the config lacks its widths.

    MLA caches the compressed latent and the shared rotary key, kv_lora_rank + qk_rope_head_dim elements (DeepSeek-V2,
    section 2.1.2, arXiv 2405.04434); GQA caches a key and a value per key/value head.
    """
    if kind in ("none", "linear"):
        return Attention(kind)
    heads = facts.heads
    if heads is None:
        return None
    if kind == "mla":
        if facts.kv_rank is None or facts.rope_dim is None:
            return None
        cached = facts.kv_rank + facts.rope_dim
        return Attention("mla", heads, 1, cached, facts.kv_rank, cached)
    width = facts.head_dim or (facts.hidden // heads if facts.hidden else None)
    if width is None:
        return None
    kv_heads, value = facts.kv_heads or heads, facts.value_dim or width
    window = facts.windows[layer] if layer < len(facts.windows) else None
    return Attention("gqa", heads, kv_heads, width, value, kv_heads * (width + value), window)


def kv_bytes_per_token(census: Census) -> tuple[int | None, int | None]:
    """KV bytes in bf16 per token of context: (within every window, beyond all windows); None without a config."""
    near = far = 0
    for layer, kind in layer_kinds(census).items():
        attention = describe(kind, layer, census.facts)
        if attention is None:
            return None, None
        near += attention.cache_elements
        far += attention.cache_elements if attention.window is None else 0
    return near * KV_ELEMENT_BYTES, far * KV_ELEMENT_BYTES
