"""Read config.json: layers, experts per token, attention widths, sliding windows.

Every family spells these differently; `FIELDS` lists the spellings. A field that is present must be a sane whole
number: a config is someone else's text, and a wrong `top_k` silently changes every active count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from moegauge.counting.errors import BadConfigError, shown
from moegauge.counting.families import FAMILY_FACTS

# Largest value any of these fields can sanely hold; a vocabulary or a width is far below 2^31.
LARGEST = 2**31 - 1

# Our name -> the config's spellings, in order of trust.
FIELDS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layers", "num_layers", "n_layer"),
    "hidden": ("hidden_size", "d_model", "n_embd", "dim"),
    "experts": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts", "num_moe_experts"),
    "top_k": (
        "num_experts_per_tok",
        "num_experts_per_token",
        "experts_per_token",
        "moe_topk",
        "moe_k",
        "moe_top_k",
        "top_k_experts",
        "num_selected_experts",
        "moe_router_topk",
    ),
    "zero_experts": ("zero_expert_num",),
    "heads": ("num_attention_heads", "n_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_attention_groups", "n_kv_heads", "kv_n_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "attention_head_dim", "kv_channels", "d_kv"),
    "value_dim": ("v_head_dim",),
    "kv_rank": ("kv_lora_rank",),
    "rope_dim": ("qk_rope_head_dim",),
    "window": ("sliding_window", "sliding_window_size"),
    "chunk": ("attention_chunk_size",),
    "vocabulary": ("vocab_size",),
    "expert_widths": ("moe_intermediate_size",),
}

# Elements of recurrent state of one linear-attention or state-space layer: the product of the first row that is whole.
STATE_FIELDS: tuple[tuple[str, ...], ...] = (
    ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"),  # Qwen3-Next, Qwen3.5: gated delta rule
    ("mamba_num_heads", "mamba_head_dim", "ssm_state_size"),  # Nemotron-H: Mamba-2
    ("mamba_n_heads", "mamba_d_head", "mamba_d_state"),  # Granite: Mamba-2
    ("linear_num_heads", "linear_head_dim", "linear_head_dim"),  # GLM-5-Next, Kimi Linear: delta attention
    ("mamba_expand", "hidden_size", "mamba_d_state"),  # Jamba: Mamba-1
)

# Where multimodal and composite configs keep the text decoder's, outermost first.
TEXT_SECTIONS = ("thinker_config", "text_config", "language_config", "llm_config")
# Where DBRX and Mistral's params.json keep part of them; the config's own fields win over these.
PART_SECTIONS = ("ffn_config", "attn_config", "moe")

# Fields that may be zero or null and then mean "none".
OPTIONAL = frozenset(
    (
        "zero_experts",
        "window",
        "chunk",
        "experts",
        "top_k",
        "head_dim",
        "value_dim",
        "kv_rank",
        "rope_dim",
        "expert_widths",
    )
)


@dataclass(frozen=True, slots=True)
class Facts:
    """The fields of one config that counting needs; None where the config does not say.

    Attributes:
        family: the outermost `model_type`.
        layers: decoder layers; tensors of layers at or past it belong to multi-token prediction.
        experts, top_k: routed experts of a layer and how many a token uses; lists where layers or pools differ.
        zero_experts: experts without weights a router may choose (LongCat-Flash).
        hidden, heads, kv_heads, head_dim, value_dim, kv_rank, rope_dim, vocabulary: widths and counts.
        expert_widths: width of the experts of each modality, [text, vision], where the config gives two.
        windows: per layer, the tokens a step looks back at most; None is all of them; empty when not said.
        kinds: per layer, the config's word for it (`layer_types` and its like); empty when not said.
        state_elements: elements of recurrent state of one linear layer; 0 when not said.
        tied: input embedding and LM head are one table; None when the config does not say.
        names: our name -> the field it was read from, for messages.
    """

    family: str = ""
    layers: int | None = None
    experts: int | tuple[int, ...] | None = None
    top_k: int | tuple[int, ...] | None = None
    zero_experts: int = 0
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    value_dim: int | None = None
    kv_rank: int | None = None
    rope_dim: int | None = None
    vocabulary: int | None = None
    expert_widths: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    kinds: tuple[str, ...] = ()
    state_elements: int = 0
    tied: bool | None = None
    names: Mapping[str, str] | None = None

    def field(self, name: str) -> str:
        """The config's own spelling of our field `name`."""
        return (self.names or {}).get(name, FIELDS[name][0])


def read_facts(config: Mapping[str, Any] | None) -> Facts:
    """The facts of a decoded config.json; an absent config gives empty facts.

    Raises:
        BadConfigError: a field is no whole number in range, or `top_k` exceeds the experts.
    """
    if not config:
        return Facts()
    sections = list(_sections(config))
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for ours, spellings in FIELDS.items():
        for section in sections:
            found = next((s for s in spellings if section.get(s) is not None), None)
            if found is not None:
                values[ours] = _number(found, section[found], optional=ours in OPTIONAL)
                names[ours] = found
                break
    family = config.get("model_type")
    family = shown(family) if isinstance(family, str) else ""
    for ours, value in FAMILY_FACTS.get(family, {}).items():
        values.setdefault(ours, value)
    _check(values, names)
    layers = values.get("layers")
    kinds = _strings(sections, ("layer_types", "layers_block_type"))
    tied = next((s["tie_word_embeddings"] for s in sections if isinstance(s.get("tie_word_embeddings"), bool)), None)
    return Facts(
        family=family,
        layers=layers,
        experts=values.get("experts") or None,
        top_k=values.get("top_k") or None,
        zero_experts=_single(values.get("zero_experts")) or 0,
        **{
            name: _single(values.get(name))
            for name in ("hidden", "heads", "kv_heads", "head_dim", "value_dim", "kv_rank", "rope_dim", "vocabulary")
        },
        expert_widths=values["expert_widths"] if isinstance(values.get("expert_widths"), tuple) else (),
        windows=_windows(sections, values, kinds, layers),
        kinds=kinds,
        state_elements=_state(sections),
        tied=tied,
        names=names,
    )


def _sections(config: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """The config's sections, the innermost text section first: its fields win over the outer ones."""
    inner: list[Mapping[str, Any]] = []
    for key in TEXT_SECTIONS:
        section = config.get(key)
        if isinstance(section, Mapping):
            inner.extend(_sections(section))
    parts = [config[key] for key in PART_SECTIONS if isinstance(config.get(key), Mapping)]
    return [*inner, config, *parts]


def _number(field: str, value: Any, *, optional: bool) -> int | tuple[int, ...]:
    """`value` as a whole number, or a tuple of them for a per-layer list."""
    if isinstance(value, list):
        if not value or len(value) > 10_000:
            raise _bad(field, value, "an empty or endless list")
        return tuple(_whole(field, v, optional=optional) for v in value)
    return _whole(field, value, optional=optional)


def _whole(field: str, value: Any, *, optional: bool) -> int:
    low = 0 if optional else 1
    if type(value) is not int or not low <= value <= LARGEST:
        raise _bad(field, value, f"not a whole number from {low} to {LARGEST:,}")
    return value


def _bad(field: str, value: Any, why: str) -> BadConfigError:
    return BadConfigError(
        f"{field} is {shown(repr(value))}, {why}.",
        file="config.json",
        advice="Mend the config, or count without one.",
    )


def _single(value: int | tuple[int, ...] | None) -> int | None:
    return value[0] if isinstance(value, tuple) else value


def _check(values: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """top_k never exceeds the experts."""
    experts, top_k = values.get("experts"), values.get("top_k")
    if not experts or not top_k:
        return
    most = max(experts) if isinstance(experts, tuple) else experts
    used = max(top_k) if isinstance(top_k, tuple) else top_k
    if used > most:
        raise BadConfigError(
            f"{names.get('top_k', 'top_k')} is {used}, more than {names['experts']} = {most}.",
            file="config.json",
            advice="Mend the config: a token cannot use more experts than there are.",
        )


def _strings(sections: Iterable[Mapping[str, Any]], keys: Iterable[str]) -> tuple[str, ...]:
    for section in sections:
        for key in keys:
            value = section.get(key)
            if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
                return tuple(value)
    return ()


def _state(sections: Iterable[Mapping[str, Any]]) -> int:
    """The product of the first row of STATE_FIELDS that some section holds whole."""
    for section in sections:
        for row in STATE_FIELDS:
            values = [section.get(name) for name in row]
            if all(type(value) is int and 0 < value <= LARGEST for value in values):
                return prod(values)  # type: ignore[arg-type]  # all are int, as the line above says
    return 0


def _windows(
    sections: list[Mapping[str, Any]], values: Mapping[str, Any], kinds: tuple[str, ...], layers: int | None
) -> tuple[int | None, ...]:
    """The look-back of each layer. `layer_types` says which layers slide; without it, a window holds everywhere
    unless `use_sliding_window` is false."""
    window, chunk = _single(values.get("window")), _single(values.get("chunk"))
    if kinds:
        look = {"sliding_attention": window, "chunked_attention": chunk, "sliding": window}
        return tuple(look.get(kind) for kind in kinds)
    if window is None or layers is None:
        return ()
    pattern = next((s["hybrid_layer_pattern"] for s in sections if s.get("hybrid_layer_pattern")), None)
    if isinstance(pattern, list) and len(pattern) == layers:  # MiMo: 1 slides, 0 looks back all the way
        return tuple(window if flag == 1 else None for flag in pattern)
    if any(section.get("use_sliding_window") is False for section in sections):
        return ()
    return (window,) * layers
