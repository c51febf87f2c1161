"""Read config.json: layers, experts per token, attention widths, sliding windows.

Every family spells these differently; `FIELDS` lists the spellings, and a field of experts that none of them names is
known by its words (`num_*_experts`, `*experts_per_tok*`). Values may differ by layer. A field that is present must be a
sane whole number: a config is someone else's text, and a wrong `top_k` silently changes every active count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from moegauge.counting.errors import BadConfigError
from moegauge.counting.families import FAMILY_FACTS
from moegauge.limits import CONFIG_LARGEST, CONFIG_SECTIONS, MOST_LAYERS
from moegauge.text import shown

# Largest value any of these fields can sanely hold; a vocabulary or a width is far below 2^31.

# Our name -> the config's spellings, in order of trust.
FIELDS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layers", "num_layers", "n_layer"),
    "hidden": ("hidden_size", "d_model", "n_embd", "dim"),
    "experts": (
        "n_routed_experts",
        "num_local_experts",
        "num_experts",
        "moe_num_experts",
        "num_moe_experts",
        "num_routed_experts",
        "n_experts",
        "num_total_experts",
    ),
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
        "n_activated_experts",
        "num_activated_experts",
        "num_active_experts",
        "router_top_k",
    ),
    "zero_experts": ("zero_expert_num",),
    "value_experts": ("mova_num_experts",),
    "value_top_k": ("mova_num_experts_per_tok",),
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
# Widths of a feed-forward part, and layers of multi-token prediction: hints, so nonsense in them is passed over.
_WIDTHS = (
    *("moe_intermediate_size", "ffn_hidden_size", "expert_hidden_dim", "expert_ffn_hidden_size"),
    *("intermediate_size", "moe_hidden_size", "expert_inner_dim", "n_inner", "ffn_dim", "d_ff"),
)
_MTP_LAYERS = (
    *("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules", "num_mtp_layers", "mtp_num_layers"),
    *("n_mtp_layers", "num_mtp_heads"),
)
# Words of a field's name that make it no count of a layer's routed experts.
_NOT_A_COUNT = frozenset(
    (
        *("per", "shared", "share", "group", "groups", "selected", "active", "activated", "used", "topk", "top", "k"),
        *(
            "zero",
            "null",
            "copy",
            "redundant",
            "physical",
            "hidden",
            "dim",
            "intermediate",
            "capacity",
            "width",
            "size",
        ),
        *("draft", "mtp", "nextn", "dspark", "parallel", "layer", "layers", "dense", "constant", "identity"),
    )
)
# What a per-layer field is called beside the uniform one: `n_routed_experts_per_layer`.
_PER_LAYER = re.compile(r"^(?:per_layer_|layerwise_|layer_)|(?:_(?:per|by|each|in)_(?:moe_)?layers?|_list)$")
# What our fields are called where the rest says the context: `experts_per_layer`, `top_k` of a section `moe`.
_SHORT = {"experts": ("experts", "expert"), "top_k": ("top_k", "topk")}
# Sections that are no part of the text decoder.
_OTHER_MODALITY = re.compile(r"vis(?:ion|ual)|vit|image|audio|speech|talker|code2?wav|tts|draft|mtp|quant|projector")

# Elements of recurrent state of one linear-attention or state-space layer: the product of the first row that is whole.
STATE_FIELDS: tuple[tuple[str, ...], ...] = (
    ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"),  # Qwen3-Next, Qwen3.5: gated delta rule
    ("mamba_num_heads", "mamba_head_dim", "ssm_state_size"),  # Nemotron-H: Mamba-2
    ("mamba_n_heads", "mamba_d_head", "mamba_d_state"),  # Granite: Mamba-2
    ("linear_num_heads", "linear_head_dim", "linear_head_dim"),  # GLM-5-Next, Kimi Linear: delta attention
    ("mamba_expand", "hidden_size", "mamba_d_state"),  # Jamba: Mamba-1
)

# Where multimodal and composite configs keep the text decoder's, outermost first.
TEXT_SECTIONS = (
    *("thinker_config", "text_config", "text", "language_config", "llm_config", "language_model_config", "lm_config"),
    *("text_model_config", "decoder_config", "llm", "language_model"),
)
# Where DBRX and Mistral's params.json keep part of them; the config's own fields win over these.
PART_SECTIONS = ("ffn_config", "attn_config", "moe", "moe_config", "moe_args")
# Lists of one section per layer, or sections by layer number.
LAYER_SECTIONS = ("block_configs", "per_layer_config", "layer_configs", "layers_config", "blocks_config")

# Fields of the whole decoder: no list by layer can be meant.
_ONE = frozenset(name for ours in ("layers", "hidden", "vocabulary") for name in FIELDS[ours])

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
        "value_experts",
        "value_top_k",
    )
)


@dataclass(frozen=True, slots=True)
class Facts:
    """The fields of one config that counting needs; None where the config does not say.

    Attributes:
        family: the outermost `model_type`.
        layers: decoder layers; tensors of layers at or past it belong to multi-token prediction.
        experts, top_k: routed experts of a layer and how many a token uses; lists where layers or pools differ.
        value_experts, value_top_k: the same of routed value projections in attention (K2-Horizon).
        by_layer: our name (`experts`, `top_k`) -> layer -> value, where the config says them layer by layer.
        sparse: layer -> whether it has routed experts, where the config says so.
        zero_experts: experts without weights a router may choose (LongCat-Flash).
        hidden, heads, kv_heads, head_dim, value_dim, kv_rank, rope_dim, vocabulary: widths and counts.
        expert_widths: width of the experts of each modality, [text, vision], where the config gives two.
        expert_width: width of every expert, where the config gives one.
        widths: every width the config gives for a feed-forward part, one number each.
        mtp_layers: layers or modules of multi-token prediction the config promises.
        modalities: `vision`, `audio` -> the config's section for it.
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
    value_experts: int | None = None
    value_top_k: int | None = None
    by_layer: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    sparse: Mapping[int, bool] = field(default_factory=dict)
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
    expert_width: int | None = None
    widths: tuple[int, ...] = ()
    mtp_layers: int = 0
    modalities: Mapping[str, str] = field(default_factory=dict)
    windows: tuple[int | None, ...] = ()
    kinds: tuple[str, ...] = ()
    state_elements: int = 0
    tied: bool | None = None
    names: Mapping[str, str] | None = None

    def spelling(self, name: str) -> str:
        """The config's own spelling of our field `name`."""
        return (self.names or {}).get(name) or FIELDS.get(name, (name,))[0]

    def is_appended(self, stack: str, layer: int) -> bool:
        """True when a layer lies past the decoder, and so belongs to multi-token prediction. An encoder and a decoder
        beside it are numbered each for itself."""
        return self.layers is not None and layer >= self.layers and "coder" not in stack

    def of_layer(self, name: Literal["experts", "top_k"], layer: int, moe_layers: Sequence[int] = ()) -> int | None:
        """A field that may hold one number, one for each layer, or one for each of `moe_layers`."""
        listed = self.by_layer.get(name, {})
        if layer in listed:
            return listed[layer]
        value = self.experts if name == "experts" else self.top_k
        if not isinstance(value, tuple):
            return value
        if len(value) == self.layers and 0 <= layer < len(value):
            return value[layer]
        if len(value) == len(moe_layers) and layer in moe_layers and len(self.expert_widths) != 2:
            return value[moe_layers.index(layer)]
        return value[0]

    @property
    def sparse_layers(self) -> frozenset[int]:
        """The layers the config says have routed experts; empty where it says nothing."""
        return frozenset(layer for layer, sparse in self.sparse.items() if sparse)

    @property
    def dense_layers(self) -> frozenset[int]:
        """The layers the config says have none."""
        return frozenset(layer for layer, sparse in self.sparse.items() if not sparse)

    @property
    def expert_counts(self) -> frozenset[int]:
        """Every number of routed experts the config names for some layer, experts without weights added or not."""
        counts = {self.experts} if isinstance(self.experts, int) else {*(self.experts or ()), sum(self.experts or ())}
        counts |= set(self.by_layer.get("experts", {}).values())
        if len(self.expert_widths) == 2 and isinstance(self.experts, int):
            counts.add(2 * self.experts)  # two modalities, numbered in one row
        return frozenset(n + extra for n in counts if n > 1 for extra in {0, self.zero_experts})


def read_facts(config: Mapping[str, Any] | None) -> Facts:
    """The facts of a decoded config.json; an absent config gives empty facts.

    Raises:
        BadConfigError: a field is no whole number in range, or `top_k` exceeds the experts.
    """
    if not config:
        return Facts()
    sections = _sections(config)
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for ours, spellings in FIELDS.items():
        for section in sections:
            found = next((s for s in spellings if section.get(s) is not None), None)
            if found is not None and isinstance(section[found], Mapping) and ours in _SHORT:
                continue  # by layer: see `_by_layer`
            if found is not None:
                values[ours] = _number(found, section[found], optional=ours in OPTIONAL)
                names[ours] = found
                break
    for ours, named in _WORDED.items():
        for section in sections:
            found = next((key for key, value in section.items() if ours not in values and named(key, value)), None)
            if found is not None:
                values[ours], names[ours] = _number(found, section[found], optional=True), found
    family = config.get("model_type")
    family = shown(family) if isinstance(family, str) else ""
    for ours, value in FAMILY_FACTS.get(family, {}).items():
        values.setdefault(ours, value)
    by_layer = _by_layer(sections, values, names)
    _check(values, names)
    layers = values.get("layers")
    kinds = _strings(sections, ("layer_types", "layers_block_type"))
    groups = _layer_groups(sections, _single(layers))
    tied = {s[key]: key for s in sections for key in _TIED if isinstance(s.get(key), bool)}
    names["tied"] = next(iter(tied.values()), _TIED[0])
    widths = (section.get(key) for section in sections for key in _WIDTHS)
    promised = ((key, section.get(key)) for section in sections for key in _MTP_LAYERS)
    names["mtp_layers"], mtp_layers = next(
        ((k, n) for k, n in promised if type(n) is int and n > 0), (_MTP_LAYERS[0], 0)
    )
    kept = list(_kept(config))
    return Facts(
        family=family,
        layers=layers,
        experts=values.get("experts") or None,
        top_k=values.get("top_k") or None,
        by_layer=by_layer,
        sparse=_sparse(sections, by_layer.get("experts", {}), layers),
        zero_experts=_single(values.get("zero_experts")) or 0,
        **{
            name: _single(values.get(name))
            for name in (
                "value_experts",
                "value_top_k",
                "hidden",
                "heads",
                "kv_heads",
                "head_dim",
                "value_dim",
                "kv_rank",
                "rope_dim",
                "vocabulary",
            )
        },
        expert_widths=values["expert_widths"] if isinstance(values.get("expert_widths"), tuple) else (),
        expert_width=values["expert_widths"] if isinstance(values.get("expert_widths"), int) else None,
        widths=tuple(dict.fromkeys(width for width in widths if type(width) is int and width > 0)),
        mtp_layers=mtp_layers,
        modalities={name: key for name, words in _MODALITIES.items() for key in kept if words.search(key)},
        windows=_windows(sections, values, kinds, layers),
        kinds=kinds or groups,
        state_elements=_state(sections) or (_head_state(values) if groups else 0),
        tied=next(iter(tied)) if len(tied) == 1 else None,
        names=names,
    )


_TIED = ("tie_word_embeddings", "tied_embeddings", "tie_embeddings")
_MODALITIES = {
    "vision": re.compile(
        r"^(?:.*_)?(?:vision|visual|vit|image_encoder)(?:_.*)?_?config$|^(?:vision_encoder|vision|visual)$"
    ),
    "audio": re.compile(r"^(?:.*_)?(?:audio|speech|talker)(?:_.*)?_?config$|^(?:audio_encoder|audio)$"),
}


def _kept(config: Mapping[str, Any]) -> Iterable[str]:
    """Names of the non-empty sections of a config and of a thinker's, one level down."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield key
            if key == "thinker_config":
                yield from _kept(value)


def _counts_experts(key: str, value: Any) -> bool:
    """True when a field no spelling lists is a number of routed experts: `moe_expert_num`, `num_ffn_experts`."""
    words = set(key.lower().split("_"))
    return bool(
        words & {"expert", "experts"}
        and words & {"num", "n", "number", "count", "total"}
        and not words & _NOT_A_COUNT
        and _sane(value, least=2)
    )


def _counts_chosen(key: str, value: Any) -> bool:
    """True when a field no spelling lists says how many experts a token uses: `top_k_routed_experts`."""
    text = key.lower()
    words = set(text.split("_"))
    chosen = words & {"topk", "selected", "active", "activated", "used", "chosen"} or re.search(r"per_tok|top_k", text)
    about = words & {"expert", "experts", "moe", "router"}
    return bool(
        chosen and about and not words & {"group", "groups", "shared", "zero", "prob"} and _sane(value, least=1)
    )


_WORDED: dict[str, Callable[[str, Any], bool]] = {"experts": _counts_experts, "top_k": _counts_chosen}


def _sane(value: Any, *, least: int) -> bool:
    """A whole number in range, or a list of them."""
    listed = value if isinstance(value, list) and value else [value]
    return all(type(v) is int and 0 <= v <= CONFIG_LARGEST for v in listed) and max(listed) >= least


def _sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The config's sections, the innermost text section first: its fields win over the outer ones. A section of a
    name nobody lists is the text decoder's when the listed ones say neither layers nor experts."""
    found = _listed_sections(config)
    keys = {*FIELDS["layers"], *FIELDS["experts"]}
    if not any(section.get(key) is not None for section in found for key in keys):
        others = (v for key, v in config.items() if not _OTHER_MODALITY.search(key) and isinstance(v, Mapping))
        found = [*(inner for value in others for inner in _listed_sections(value)), *found]
    if any(_says_experts(section) for section in found) or any(key in s for s in found for key in LAYER_SECTIONS):
        return found
    return [*found, *_nested_experts(config)]


def _says_experts(section: Mapping[str, Any]) -> bool:
    return any(key in FIELDS["experts"] or _names("experts", key) for key, n in section.items() if n is not None)


def _nested_experts(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The experts of a section at any depth (`model.block.feed_forward_moe` of OLMo-core), as a section of our
    spellings. Empty where two sections differ: layers may, and nothing says which."""
    found: list[dict[str, Any]] = []
    inner = [config]
    for _ in range(CONFIG_SECTIONS):
        inner = [
            v for s in inner for key, v in s.items() if isinstance(v, Mapping) and not _OTHER_MODALITY.search(str(key))
        ]
        for section in filter(_says_experts, inner):
            said = {"num_experts": _within(section, "experts"), "moe_top_k": _within(section, "top_k", short=True)}
            # Beside its experts a section's width is theirs, unless it says layers: then it is a whole decoder.
            width = None if any(key in section for key in FIELDS["layers"]) else section.get("hidden_size")
            found.append({**said, "moe_intermediate_size": width})
    return found[:1] if all(said == found[0] for said in found) else []


def _listed_sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    inner: list[Mapping[str, Any]] = []
    for key in TEXT_SECTIONS:
        section = config.get(key)
        if isinstance(section, Mapping):
            inner.extend(_listed_sections(section))
    parts = [(key, config[key]) for key in PART_SECTIONS if isinstance(config.get(key), Mapping)]
    chosen = [{"moe_top_k": part[k]} for key, part in parts if "moe" in key for k in _SHORT["top_k"] if k in part]
    return [*inner, config, *(part for _, part in parts), *chosen]


def _by_layer(
    sections: list[Mapping[str, Any]], values: dict[str, Any], names: dict[str, str]
) -> dict[str, dict[int, int]]:
    """Our name -> layer -> value, from fields named per layer and from lists of one section per layer. Says
    `layers` too, where only the length of such a list does."""
    found: dict[str, dict[int, int]] = {}
    for section in reversed(sections):  # the innermost last: it wins
        for key, value in section.items():
            plain = _PER_LAYER.sub("", key)
            listed = plain != key or (isinstance(value, Mapping) and key in (*FIELDS["experts"], *FIELDS["top_k"]))
            ours = next((n for n in _SHORT if listed and (_names(n, plain) or plain in _SHORT[n])), None)
            if ours and isinstance(value, list) and len(value) != values.get("layers", len(value)):
                values.setdefault(ours, _number(key, value, optional=True))  # one for each layer that has experts
                names.setdefault(ours, key)
            elif ours and isinstance(value, Mapping | list):
                found.setdefault(ours, {}).update(_numbered(value))
                names.setdefault(ours, key)
            if key in LAYER_SECTIONS and isinstance(value, Mapping | list):
                rows = dict(_entries(value))
                if isinstance(value, list) and "layers" not in values:
                    values["layers"], names["layers"] = len(value), key
                for layer, row in rows.items():
                    for ours in ("experts", "top_k"):
                        number = _within(row, ours)
                        if number is not None:
                            found.setdefault(ours, {})[layer] = number
                            names.setdefault(ours, f"{key}[{layer}]")
    if "layers" not in values:
        for key in ("layer_types", "layers_block_type", "mlp_layer_types", "hybrid_override_pattern"):
            listed = next((s[key] for s in sections if isinstance(s.get(key), list | str) and s[key]), None)
            if listed is not None:
                values["layers"], names["layers"] = len(listed), key
                break
    return found


def _sparse(sections: list[Mapping[str, Any]], experts: Mapping[int, int], layers: int | None) -> dict[int, bool]:
    """Layer -> whether the config gives it routed experts: by number, by kind, or past the first dense ones."""
    if experts:
        return {layer: number > 0 for layer, number in experts.items()}
    kinds = _strings(sections, ("mlp_layer_types", "ffn_layer_types"))
    if kinds and set(kinds) <= {"dense", "sparse", "moe"}:
        return {layer: kind != "dense" for layer, kind in enumerate(kinds)}
    first = next((s["first_k_dense_replace"] for s in sections if type(s.get("first_k_dense_replace")) is int), None)
    every = all(s.get("moe_layer_freq") in (None, 1) for s in sections)
    if first is not None and every and layers is not None and layers <= MOST_LAYERS:
        return {layer: layer >= first for layer in range(layers)}
    return {}


def _names(ours: str, key: str) -> bool:
    """Whether a field's name is one of ours, listed or by its words."""
    return key in FIELDS[ours] or (
        key not in FIELDS["experts" if ours == "top_k" else "top_k"] and _WORDED[ours](key, 2)
    )


def _entries(value: Mapping[str, Any] | list[Any]) -> Iterable[tuple[int, Any]]:
    """(layer, entry) of a list, or of an object whose keys are layer numbers."""
    if isinstance(value, list):
        yield from enumerate(value[:MOST_LAYERS])
        return
    for key, entry in value.items():
        if str(key).isdecimal() and len(str(key)) < 6:
            yield int(key), entry


def _numbered(value: Mapping[str, Any] | list[Any]) -> dict[int, int]:
    return {layer: n for layer, n in _entries(value) if type(n) is int and 0 <= n <= CONFIG_LARGEST}


def _within(row: Any, ours: str, *, short: bool = False) -> int | None:
    """A field of one layer's section, however deep (`ffn.moe.num_local_experts`); by its short name too where the
    section is known to be about experts (`router.top_k`)."""
    if not isinstance(row, Mapping):
        return None
    for key, value in row.items():
        if (
            type(value) is int
            and 0 <= value <= CONFIG_LARGEST
            and (_names(ours, key) or (short and key in _SHORT[ours]))
        ):
            return value
    inner = (_within(value, ours, short=short) for value in row.values() if isinstance(value, Mapping))
    return next((number for number in inner if number is not None), None)


def _number(field: str, value: Any, *, optional: bool) -> int | tuple[int, ...]:
    """`value` as a whole number, or a tuple of them for a per-layer list."""
    if isinstance(value, list):
        if field in _ONE:
            raise _bad(field, value, "a list where one number is meant")
        if not value or len(value) > MOST_LAYERS:
            raise _bad(field, value, "an empty or endless list")
        return tuple(_whole(field, 0 if v is None and optional else v, optional=optional) for v in value)
    return _whole(field, value, optional=optional)


def _whole(field: str, value: Any, *, optional: bool) -> int:
    low = 0 if optional else 1
    if type(value) is not int or not low <= value <= CONFIG_LARGEST:
        raise _bad(field, value, f"not a whole number from {low} to {CONFIG_LARGEST:,}")
    return value


def _bad(field: str, value: Any, why: str) -> BadConfigError:
    return BadConfigError(
        f"{field} is {shown(repr(value))}, {why}.",
        file="config.json",
        advice="Mend the config, or count without one.",
    )


def _single(value: int | tuple[int, ...] | None) -> int | None:
    """The one number, or the first of a list that is not zero."""
    return next(filter(None, value), value[0]) if isinstance(value, tuple) else value


def _check(values: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """top_k never exceeds the experts, and layers can be counted one by one."""
    layers = _single(values.get("layers"))
    if layers is not None and layers > MOST_LAYERS:
        raise _bad(names.get("layers", "layers"), layers, f"more than {MOST_LAYERS:,}")
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
            if all(type(value) is int and 0 < value <= CONFIG_LARGEST for value in values):
                return prod(values)  # type: ignore[arg-type]  # all are int, as the line above says
    return 0


def _layer_groups(sections: Iterable[Mapping[str, Any]], layers: int | None) -> tuple[str, ...]:
    """The kind of each layer where `layer_group_size` says it (Ling and Ring linear): the last of a group and those
    past the last whole group look back at every token, the rest are linear. Empty when not said."""
    size = next((s["layer_group_size"] for s in sections if type(s.get("layer_group_size")) is int), 0)
    if size < 1 or layers is None:
        return ()
    whole = layers // size * size
    return tuple("full_attention" if (n + 1) % size == 0 or n >= whole else "linear_attention" for n in range(layers))


def _head_state(values: Mapping[str, Any]) -> int:
    """Elements of linear attention's state where each head has a key and a value of the head's size."""
    heads, width = _single(values.get("heads")), _single(values.get("head_dim"))
    if width is None and heads:
        width = (_single(values.get("hidden")) or 0) // heads
    return (heads or 0) * (width or 0) ** 2


_WINDOW_FLAGS = ("hybrid_layer_pattern", "sliding_window_layout")  # MiMo; SmallThinker


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
    pattern = next((s[key] for s in sections for key in _WINDOW_FLAGS if s.get(key)), None)
    if isinstance(pattern, list) and len(pattern) == layers:  # 1 slides, 0 looks back all the way
        return tuple(window if flag == 1 else None for flag in pattern)
    if any(section.get("use_sliding_window") is False for section in sections):
        return ()
    return (window,) * layers
