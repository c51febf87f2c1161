"""Lay out a published config as the tensors of its checkpoint: names, dtypes and shapes, no weights.

Families that transformers knows are laid out from its own module tree on the meta device, under the names its
conversion tables say the release uses. The formats of a quantised release follow from its quantisation section.
Runs where transformers and torch are installed; `make_models.py` is its only user.
"""

from __future__ import annotations

import fnmatch
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any, NamedTuple

os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
warnings.filterwarnings("ignore")

import make_family_headers as families  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.core_model_loading import revert_weight_conversion  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

Config = dict[str, Any]


class Row(NamedTuple):
    """One tensor of a checkpoint."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Laid(NamedTuple):
    """A model's tensors before quantisation, and counts taken from the module tree: the oracle of the count.

    Attributes:
        rows: every tensor a release stores, tied copies left out.
        kind: the class that made them.
        parameters, routed: parameters of the whole tree and of its expert modules.
        buffers: elements of float buffers saved beside them (correction biases).
    """

    rows: list[Row]
    kind: str
    parameters: int
    routed: int
    buffers: int


# Configs written before the family was in the library, or in its authors' own words, in the library's.


def _minimax_m1(c: Config) -> Config:
    kinds = {0: "linear_attention", 1: "full_attention"}
    return {**c, "model_type": "minimax", "layer_types": [kinds[n] for n in c["attn_type_list"]]}


def _minimax_m3(c: Config) -> Config:
    """The config at hand is the text model's; the tower is the library's default, which makes the Hub's total exact."""
    sparse = {0: "dense", 1: "sparse"}
    text = {**c, "model_type": "minimax_m3_vl_text", "mlp_layer_types": [sparse[n] for n in c["moe_layer_freq"]]}
    return {"model_type": "minimax_m3_vl", "text_config": text}


def _hunyuan(c: Config) -> Config:
    shared = c["num_shared_expert"]
    if set(shared if isinstance(shared, list) else [shared]) != {1}:
        raise ValueError("more than one shared expert")
    return {**c, "model_type": "hunyuan_v1_moe", "head_dim": c["attention_head_dim"]}


def _deepseek_inference(c: Config) -> Config:
    """The format of DeepSeek's own inference code (`inference/configs` of its repositories)."""
    names = {
        "dim": "hidden_size", "inter_dim": "intermediate_size", "moe_inter_dim": "moe_intermediate_size",
        "n_layers": "num_hidden_layers", "n_dense_layers": "first_k_dense_replace", "n_heads": "num_attention_heads",
        "n_activated_experts": "num_experts_per_tok", "n_expert_groups": "n_group", "n_limited_groups": "topk_group",
    }  # fmt: skip
    out = {names.get(k, k): v for k, v in c.items()}
    return {**out, "model_type": "deepseek_v2", "num_key_value_heads": c["n_heads"], "tie_word_embeddings": False}


TRANSLATED: dict[str | None, Callable[[Config], Config]] = {
    "kimi_k2": lambda c: {**c, "model_type": "deepseek_v3"},
    "deepseek_ref": lambda c: {**c, "model_type": "deepseek_v4", "expert_dtype": "fp8"},
    "minimax_m1": _minimax_m1,
    "minimax_m3": _minimax_m3,
    "hunyuan": _hunyuan,
    None: _deepseek_inference,
}
# Where the library's names, turned round, are not the release's.
RENAMED: dict[str, tuple[str, str]] = {
    "kimi_k25": (r"^language_model\.model\.blocks\.", "language_model.model.layers."),
    "deepseek_v4": (r"^model\.", ""),
}
# What releases store in float32: routers' correction biases, MiniMax-M1's routers (its index has 31,457,280 bytes more
# than 2 a parameter), DeepSeek-V4's hyper-connections and sinks.
FLOAT32: dict[str, re.Pattern[str]] = {
    "": re.compile(r"(e_score_correction_bias|expert_bias)$"),
    "minimax": re.compile(r"\.gate\.weight$"),
    "deepseek_v4": re.compile(r"(\.gate\.bias|\.ape|attn_sink|hc_\w+)$"),
}
# Buffers a release stores; other buffers of a tree (decays, rotary tables) are made when it is loaded.
STORED_BUFFERS = re.compile(r"(correction_bias|expert_bias|tid2eid|gate\.bias)$")
DTYPES = {"torch.float32": "BF16", "torch.bfloat16": "BF16", "torch.int64": "I64", "torch.int32": "I32"}


def translated(config: Config) -> Config:
    """The config as the library reads it, without its quantisation."""
    config = TRANSLATED.get(config.get("model_type"), dict)(config)  # `dict`: a copy
    inner = {k: translated_section(v) if isinstance(v, dict) else v for k, v in config.items()}
    return {k: v for k, v in inner.items() if k != "quantization_config"}


def translated_section(section: Config) -> Config:
    """A text section of a composite config; Kimi-K2.5 writes its own name for DeepSeek-V3's."""
    return {k: ("deepseek_v3" if k == "model_type" and v == "kimi_k2" else v) for k, v in section.items()}


def known(config: Config) -> bool:
    """True when the library has this config's family, under its own name or another."""
    family = config.get("model_type")
    if config.get("use_cla"):  # Hunyuan-Large's cross-layer attention
        return False
    return family in TRANSLATED or family in set(CONFIG_MAPPING.keys())


def defaults(family: str) -> Config:
    """The library's defaults for a family: they are those of the release its configuration class names."""
    return dict(CONFIG_MAPPING[family]().to_dict())


def module_tree(config: Config) -> Laid:
    """The tensors of the model this config makes, on the meta device, under the names of the release.

    Raises:
        KeyError: transformers does not know the config's `model_type`.
        Exception: whatever the library raises on a config it cannot build.
    """
    config = translated(config)
    made = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    kind = families.model_class(made)
    kind = kind[0] if isinstance(kind, tuple) else kind
    with torch.device("meta"):
        model = kind(made)  # type: ignore[misc]
    tied = set(model.all_tied_weights_keys)
    parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    held = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in tied and (name in parameters or STORED_BUFFERS.search(name))
    }
    padded = config.get("zero_expert_num") or 0
    surplus = 0
    if padded:  # transformers gives LongCat's experts without weights rows in gate_up_proj; the release has none
        for name, tensor in held.items():
            if name.endswith("experts.gate_up_proj"):
                surplus += tensor.numel() * padded // tensor.shape[0]
                held[name] = tensor[: tensor.shape[0] - padded]
    family = config["model_type"]
    rows = [row_of(name, tensor, family) for name, tensor in revert_weight_conversion(model, held).items()]
    if sum(prod(r.shape) for r in rows) != sum(t.numel() for t in held.values()):
        raise ValueError("the library's renaming lost or made parameters")
    return Laid(
        rows,
        kind.__name__,  # type: ignore[union-attr]
        sum(p.numel() for p in model.parameters()) - surplus,
        families.expert_parameters(model, family) - surplus,
        sum(t.numel() for n, t in held.items() if n not in parameters and t.dtype.is_floating_point),
    )


def row_of(name: str, tensor: torch.Tensor, family: str) -> Row:
    """One tensor of the tree as a release stores it."""
    if family in RENAMED:
        name = re.sub(*RENAMED[family], name)
    wide = FLOAT32[""].search(name) or (family in FLOAT32 and FLOAT32[family].search(name))
    dtype = "F32" if wide else DTYPES[str(tensor.dtype)]
    return Row(name, dtype, tuple(tensor.shape))


# Multi-token-prediction layers, which the library does not build. Each layout was found by the Hub's total of a release
# of that family, to the digit.

# One more decoder layer, a projection of [hidden; embedding] and three norms (DeepSeek-V3, section 2.2,
# arXiv 2412.19437). Value: whether the release stores copies of embedding and head with it.
APPENDED = {
    "deepseek_v3": True, "deepseek_v32": True, "glm4_moe": True,
    "glm_moe_dsa": False, "bailing_hybrid": False, "hy_v3": False, "qwen3_next": False, "qwen3_5_moe": False,
}  # fmt: skip
COPIES = ("embed_tokens.weight", "shared_head.head.weight")
# Prediction layers of releases whose config at hand is the library's defaults, which are silent about them.
SILENT = {"qwen3_next": 1, "hy_v3": 1, "longcat_flash": 1}


def prediction_layers(rows: list[Row], config: Config) -> list[Row]:
    """The rows of the multi-token-prediction layers of this release, for families whose layout of them is known."""
    text = config.get("text_config") or config
    family = config["model_type"]
    count = text.get("num_nextn_predict_layers") or text.get("mtp_num_hidden_layers") or SILENT.get(family) or 0
    if count and family in APPENDED:
        return [row for number in range(count) for row in _appended(rows, text, family, number)]
    if count == 1 and family in OWN:
        return OWN[family](rows, text)
    return []


def _layer(rows: list[Row], number: int) -> list[tuple[str, Row]]:
    """(name within the layer, row) of one decoder layer."""
    pattern = re.compile(rf"(?:^|.*\.)layers\.{number}\.(.*)")
    return [(m[1], row) for row in rows if "vis" not in row.name and (m := pattern.match(row.name))]


def _vectors(at: str, size: int, *names: str) -> list[Row]:
    return [Row(f"{at}.{name}.weight", "BF16", (size,)) for name in names]


def _appended(rows: list[Row], text: Config, family: str, number: int) -> list[Row]:
    layers, hidden = text["num_hidden_layers"], text["hidden_size"]
    # GLM-5.2's last layers share an indexer; its prediction layer has its own.
    whole = next(
        n for n in reversed(range(layers))
        if family != "glm_moe_dsa" or any(".indexer." in name for name, _ in _layer(rows, n))
    )  # fmt: skip
    first = next(row.name for row in rows if f"layers.{whole}." in row.name and "vis" not in row.name)
    at = f"{first.partition(f'layers.{whole}.')[0]}layers.{layers + number}"
    out = [row._replace(name=f"{at}.{name}") for name, row in _layer(rows, whole)]
    out.append(Row(f"{at}.eh_proj.weight", "BF16", (hidden, 2 * hidden)))
    out += _vectors(at, hidden, "enorm", "hnorm", "shared_head.norm")
    if APPENDED[family]:
        out += [Row(f"{at}.{name}", "BF16", (text["vocab_size"], hidden)) for name in COPIES]
    return out


def _deepseek_v4(rows: list[Row], text: Config) -> list[Row]:
    """A layer without compressed attention, two projections, and its own end of the hyper-connections."""
    hidden = text["hidden_size"]
    kept = [
        (n, r) for n, r in _layer(rows, 0) if ".compressor." not in n and ".indexer." not in n and "tid2eid" not in n
    ]
    out = [row._replace(name=f"mtp.0.{name}") for name, row in kept]
    out.append(Row("mtp.0.ffn.gate.bias", "F32", (text["n_routed_experts"],)))
    out += [Row(f"mtp.0.{name}.weight", "BF16", (hidden, hidden)) for name in ("e_proj", "h_proj")]
    out += _vectors("mtp.0", hidden, "enorm", "hnorm", "norm")
    return out + [r._replace(name=f"mtp.0.{r.name.rpartition('.')[2]}") for r in rows if r.name.startswith("hc_head")]


def _nemotron_h(rows: list[Row], text: Config) -> list[Row]:
    """The layers the config names, a projection of [hidden; embedding] and three norms."""
    hidden = text["hidden_size"]
    kinds = text.get("layers_block_type") or text.get("hybrid_override_pattern") or ()
    wanted = text.get("mtp_layers_block_type") or text.get("mtp_hybrid_override_pattern") or ()
    if not kinds or not wanted:
        return []
    out = [
        row._replace(name=f"mtp.layers.{at}.{name}")
        for at, kind in enumerate(wanted)
        for name, row in _layer(rows, kinds.index(kind))
    ]
    out.append(Row("mtp.layers.0.eh_proj.weight", "BF16", (hidden, 2 * hidden)))
    return out + _vectors("mtp.layers.0", hidden, "enorm", "hnorm", "final_layernorm")


def _longcat(rows: list[Row], text: Config) -> list[Row]:
    """One attention and one dense MLP of a layer, a projection, five norms and a copy of the embedding."""
    hidden, at = text["hidden_size"], "model.mtp.layers.0"
    out = [
        row._replace(name=f"{at}.{name.replace('.0.', '.', 1).replace('mlps', 'mlp')}")
        for name, row in _layer(rows, 0)
        if name.startswith(("self_attn.0.", "mlps.0."))
    ]
    out.append(Row(f"{at}.eh_proj.weight", "BF16", (hidden, 2 * hidden)))
    out += _vectors(at, hidden, "enorm.m", "hnorm.m", "input_layernorm", "post_attention_layernorm", "final_layernorm")
    return [*out, Row("model.mtp.embed_tokens.weight", "BF16", (text["vocab_size"], hidden))]


OWN: dict[str, Callable[[list[Row], Config], list[Row]]] = {
    "deepseek_v4": _deepseek_v4,
    "nemotron_h": _nemotron_h,
    "longcat_flash": _longcat,
}


# Quantised releases.

# Never quantised by any release here: tables, routers, norms, towers, and linear layers too small to be worth it.
KEPT = re.compile(
    r"embed|lm_head|^head\.|norm|router|\.gate\.|gate_weight|weights_proj|conv|visual|vision|mm_projector"
    r"|audio|compressor|\.hc_|shared_expert_gate|eh_proj|shared_head|mtp\.\d+\.[eh]_proj"
)


def stored(rows: list[Row], section: Config, expert_dtype: str | None = None) -> list[Row]:
    """`rows` as a release with this quantisation section stores them.

    Args:
        rows: the tensors in bfloat16, under release names.
        section: `quantization_config` of config.json, or `quantization` of hf_quant_config.json.
        expert_dtype: the config's word for the routed experts (DeepSeek-V4).

    Raises:
        ValueError: the section does not say which modules are quantised, or names no known format.
    """
    scheme = scheme_of(section, expert_dtype)
    out: list[Row] = []
    for row in unstacked(rows) if section.get("quant_method") != "mxfp4" else rows:
        module, _, last = row.name.rpartition(".")
        form = None
        if section.get("quant_method") == "mxfp4":
            form = "mxfp4_stack" if re.search(r"\.experts\.(gate_up_proj|down_proj)$", row.name) else None
            module = row.name
        elif last == "weight" and len(row.shape) == 2 and not KEPT.search(row.name):
            form = scheme(module)
        out.extend(PACKED[form](module, row) if form else [row])
    return out


def unstacked(rows: Iterable[Row]) -> Iterator[Row]:
    """Stacks of experts as the numbered modules every quantised export has."""
    for row in rows:
        found = re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", row.name)
        if found is None or len(row.shape) != 3:
            yield row
            continue
        experts, out_rows, columns = row.shape
        names = ("gate_proj", "up_proj") if found[2] == "gate_up_proj" else ("down_proj",)
        for expert in range(experts):
            for name in names:
                yield Row(f"{found[1]}.{expert}.{name}.weight", row.dtype, (out_rows // len(names), columns))


def _bfloat16(module: str) -> None:
    """The scheme of a release that keeps every module it does not list."""
    del module


def scheme_of(section: Config, expert_dtype: str | None) -> Callable[[str], str | None]:
    """Module name -> its format, None for bfloat16."""
    method, algorithm = section.get("quant_method"), section.get("quant_algo")
    if method == "mxfp4":
        return _bfloat16
    if "quantized_layers" in section:
        return _listed(section, expert_dtype)
    if algorithm in ("NVFP4", "FP8"):
        kept = section.get("ignore") or section.get("exclude_modules")
        if not kept:
            raise ValueError("its quantisation file does not say which modules stay in bfloat16")
        form = {"NVFP4": "nvfp4", "FP8": "fp8"}[algorithm]
        listed = re.compile("|".join(fnmatch.translate(k) for k in sorted(set(kept))))
        return lambda module: None if listed.match(module) else form
    if method == "compressed-tensors":
        weights = section["config_groups"]["group_0"]["weights"]
        form = {"int": "int4_packed", "float": "mxfp4_packed"}[weights["type"]]
        if (weights["num_bits"], weights["group_size"]) != (4, 32):
            raise ValueError(f"compressed-tensors weights of {weights['num_bits']} bits")
        patterns = [re.compile(k[3:] if k.startswith("re:") else re.escape(k)) for k in section["ignore"]]
        return lambda module: None if any(p.match(module) for p in patterns) else form
    if method == "fp8" and section.get("weight_block_size") == [128, 128]:
        kept = frozenset(section.get("modules_to_not_convert") or section.get("ignored_layers") or ())
        scales = "fp8_block_e8m0" if section.get("scale_fmt") == "ue8m0" else "fp8_block"

        def block(module: str) -> str | None:
            if module in kept or module.rpartition(".")[2] in kept:
                return None
            if expert_dtype == "fp4" and re.search(r"\.experts\.\d+\.", module):
                return "fp4_pairs"
            return scales

        return block
    raise ValueError(f"no rule for the quantisation {method or algorithm!r}")


def _listed(section: Config, expert_dtype: str | None) -> Callable[[str], str | None]:
    """modelopt's MIXED_PRECISION: a format for every module it lists; the rest as the release it was made from."""
    forms = {"NVFP4": "nvfp4", "W4A16_NVFP4": "nvfp4", "FP8": "fp8"}
    listed = {name: forms[entry["quant_algo"]] for name, entry in section["quantized_layers"].items()}
    rest = (
        scheme_of({k: v for k, v in section.items() if k not in ("quantized_layers", "quant_algo")}, expert_dtype)
        if section.get("quant_method") == "fp8"
        else _bfloat16
    )

    def form(module: str) -> str | None:
        stack = re.sub(r"\.\d+\.\w+$", "", module)  # "layers.0.ffn.experts" stands for all its experts
        return listed.get(module) or listed.get(stack) or rest(module)

    return form


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _fp8_block(module: str, row: Row) -> list[Row]:
    rows, columns = row.shape
    scales = (_ceil(rows, 128), _ceil(columns, 128))
    return [Row(f"{module}.weight", "F8_E4M3", row.shape), Row(f"{module}.weight_scale_inv", "F32", scales)]


def _fp8_block_e8m0(module: str, row: Row) -> list[Row]:
    rows, columns = row.shape
    scales = (_ceil(rows, 128), _ceil(columns, 128))
    return [Row(f"{module}.weight", "F8_E4M3", row.shape), Row(f"{module}.scale", "F8_E8M0", scales)]


def _fp4_pairs(module: str, row: Row) -> list[Row]:
    rows, columns = row.shape
    return [
        Row(f"{module}.weight", "I8", (rows, columns // 2)),
        Row(f"{module}.scale", "F8_E8M0", (rows, columns // 32)),
    ]


def _fp8(module: str, row: Row) -> list[Row]:
    scales = [Row(f"{module}.{name}", "F32", ()) for name in ("weight_scale", "input_scale")]
    return [Row(f"{module}.weight", "F8_E4M3", row.shape), *scales]


def _nvfp4(module: str, row: Row) -> list[Row]:
    rows, columns = row.shape
    return [
        Row(f"{module}.weight", "U8", (rows, columns // 2)),
        Row(f"{module}.weight_scale", "F8_E4M3", (rows, columns // 16)),
        Row(f"{module}.weight_scale_2", "F32", ()),
        Row(f"{module}.input_scale", "F32", ()),
    ]


def _int4_packed(module: str, row: Row) -> list[Row]:
    rows, columns = row.shape
    return [
        Row(f"{module}.weight_packed", "I32", (rows, columns // 8)),
        Row(f"{module}.weight_scale", "BF16", (rows, columns // 32)),
        Row(f"{module}.weight_shape", "I32", (2,)),
    ]


def _mxfp4_packed(module: str, row: Row) -> list[Row]:
    rows, columns = row.shape
    packed = Row(f"{module}.weight_packed", "U8", (rows, columns // 2))
    return [packed, Row(f"{module}.weight_scale", "U8", (rows, columns // 32))]


def _mxfp4_stack(module: str, row: Row) -> list[Row]:
    experts, inputs, outputs = row.shape  # the bfloat16 stack is transposed, the blocks are not
    blocks = Row(f"{module}_blocks", "U8", (experts, outputs, inputs // 32, 16))
    return [blocks, Row(f"{module}_scales", "U8", (experts, outputs, inputs // 32))]


PACKED: dict[str, Callable[[str, Row], list[Row]]] = {
    "fp8_block": _fp8_block,
    "fp8_block_e8m0": _fp8_block_e8m0,
    "fp4_pairs": _fp4_pairs,
    "fp8": _fp8,
    "nvfp4": _nvfp4,
    "int4_packed": _int4_packed,
    "mxfp4_packed": _mxfp4_packed,
    "mxfp4_stack": _mxfp4_stack,
}
VERSION = f"transformers {transformers.__version__}"
