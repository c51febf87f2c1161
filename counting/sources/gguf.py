"""Open a GGUF model (llama.cpp) as a checkpoint: tensor names and metadata in the spelling of transformers.

So everything behind it, roles, pools, KV cache and shapes, is the same code as for safetensors. Names are those of
llama.cpp's `gguf-py/gguf/constants.py` (TENSOR_NAMES), metadata keys those of the same file (class Keys).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from moegauge.counting import errors
from moegauge.counting.headers.ggml import GGML_TYPES
from moegauge.counting.headers.gguf import GgufHeader, Omitted, TensorInfo
from moegauge.counting.headers.header import Header
from moegauge.counting.sources.checkpoint import Checkpoint
from moegauge.counting.sources.index import check_unique
from moegauge.counting.sources.selection import INDEX_SUFFIX
from moegauge.text import shown

SUFFIX = ".gguf"
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII | re.DOTALL)
_BLOCK = re.compile(r"blk\.(?P<layer>\d{1,9})\.(?P<name>.+)", re.ASCII | re.DOTALL)
# One tensor per expert, as llama.cpp wrote Mixtral until April 2024.
_NUMBERED = re.compile(r"ffn_(?P<kind>gate|up|down)\.(?P<expert>\d{1,9})", re.ASCII)
_LEAF = re.compile(r"(?P<stem>.*?)(?P<leaf>\.(?:weight|bias|scale|input_scale))?", re.DOTALL)

# Tensors outside layers.
OUTSIDE: dict[str, str] = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "token_embd_norm": "model.embed_tokens_norm",
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "position_embd": "model.embeddings",
    "rope_freqs": "model.rotary_emb.inv_freq",
    "rope_factors_long": "model.long.rotary_emb.inv_freq",
    "rope_factors_short": "model.short.rotary_emb.inv_freq",
}
# Tensors of a layer. Norms that are not listed keep their names, which say what they are.
INSIDE: dict[str, str] = {
    **{f"attn_{n}": f"self_attn.{n}_proj" for n in ("q", "k", "v", "q_a", "q_b", "kv_b", "qkv")},
    "attn_output": "self_attn.o_proj",
    "attn_gate": "self_attn.gate_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_k_b": "self_attn.embed_q",
    "attn_v_b": "self_attn.unembed_out",
    "attn_sinks": "self_attn.sinks",
    "attn_rot_embd": "self_attn.rotary_emb.inv_freq",
    "indexer.attn_k": "self_attn.indexer.k_proj",
    "indexer.attn_q_b": "self_attn.indexer.q_b_proj",
    "indexer.proj": "self_attn.indexer.weights_proj",
    "indexer.k_norm": "self_attn.indexer.k_norm",
    **{f"ffn_{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down", "gate_up")},
    **{f"ffn_{n}_exps": f"mlp.experts.{n}_proj" for n in ("gate", "up", "down", "gate_up")},
    **{f"ffn_{n}_shexp": f"mlp.shared_experts.{n}_proj" for n in ("gate", "up", "down")},
    **{f"ffn_{n}_chexps": f"mlp.chunk_experts.experts.{n}_proj" for n in ("gate", "up", "down")},
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "exp_probs_b": "mlp.gate.e_score_correction_bias",
    "ffn_latent_down": "mlp.fc1_latent_proj",
    "ffn_latent_up": "mlp.fc2_latent_proj",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "layer_output_scale": "layer_scalar",
    "ssm_in": "mamba.in_proj",
    "ssm_out": "linear_attn.out_proj",
    "ssm_x": "mamba.x_proj",
    "ssm_dt": "mamba.dt_proj",
    "ssm_conv1d": "linear_attn.conv1d",
    **{f"ssm_conv1d_{n}": f"linear_attn.{n}_conv1d" for n in ("q", "k", "v")},
    "ssm_a": "linear_attn.A_log",
    "ssm_d": "linear_attn.D",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    **{f"ssm_{n}": f"linear_attn.{n}_proj" for n in ("f_a", "f_b", "g_a", "g_b")},
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "nextn.eh_proj": "eh_proj",
    "nextn.embed_tokens": "embed_tokens",
    "nextn.enorm": "enorm",
    "nextn.hnorm": "hnorm",
    "nextn.shared_head_head": "shared_head.head",
    "nextn.shared_head_norm": "shared_head.norm",
}
# Modules that are one parameter in transformers, so their tensors end in no `.weight` or `.bias`.
_BARE = frozenset(
    {name for name in INSIDE.values() if name.endswith((".sinks", "_correction_bias", ".A_log", ".D", "layer_scalar"))}
    | {name for name in (*OUTSIDE.values(), *INSIDE.values()) if "rotary_emb" in name}
)
# Towers of a separate projector file, or of a model that holds them.
_TOWERS = (
    (re.compile(r"v\.|(?=blk\.\d+\.vis_)"), "vision_tower."),
    (re.compile(r"a\.|mm\.a\."), "audio_tower."),
    (re.compile(r"mm\."), "mm_projector."),
)

# Metadata below the architecture's name -> transformers' spelling.
FIELDS: dict[str, str] = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "v_head_dim",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    "nextn_predict_layers": "num_nextn_predict_layers",
    "vocab_size": "vocab_size",
}
# Layers that look back at a window only, where no field says which: every n-th layer is full, n by architecture
# (llama.cpp, src/models: `hparams.set_swa_pattern`).
WINDOW_PERIODS = {"gpt-oss": 2, "gemma3": 6, "cohere2": 4}


def is_gguf(name: str) -> bool:
    """Whether a file is called as a GGUF is."""
    return name.lower().endswith(SUFFIX)


def wanted(names: Collection[str], weights: str) -> bool:
    """Whether a GGUF is what to count: it was asked for, or lies there without any safetensors file."""
    if weights:
        return is_gguf(weights)
    return any(map(is_gguf, names)) and not any(name.endswith((".safetensors", INDEX_SUFFIX)) for name in names)


def choose(names: Collection[str], *, where: str, weights: str = "") -> list[str]:
    """The files of the one GGUF model among `names`: one file, or every part of a split one.

    Args:
        names: file names of a folder or repo.
        where: the folder or repo, for messages.
        weights: the file the user asks for; of a split model any of its parts.
    Raises:
        AmbiguousWeightsError: several lie there, as usual where each is another quantisation.
        MissingShardError: a part of a split model is absent.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(n for n in names if is_gguf(n)):
        part = _SPLIT.fullmatch(name)
        models.setdefault(f"{part['stem']}-of-{part['count']}" if part else name, []).append(name)
    if weights:
        chosen = next((files for files in models.values() if weights in files), [])
        if not chosen:
            raise errors.TargetNotFoundError(f"there is no '{shown(weights)}'.", file=where, advice=_offer(models))
    else:
        # A projector file holds vision or audio towers, an importance matrix no model at all.
        whole = [files for stem, files in models.items() if not re.match(r"mmproj|.*imatrix", stem, re.IGNORECASE)]
        if len(whole) != 1:
            raise errors.AmbiguousWeightsError(f"holds {len(whole)} GGUF models.", file=where, advice=_offer(models))
        chosen = whole[0]
    part = _SPLIT.fullmatch(chosen[0])
    if part and len(chosen) != int(part["count"]):
        have = {int(m["number"]) for m in map(_SPLIT.fullmatch, chosen) if m}
        lacking = next(n for n in range(1, int(part["count"]) + 2) if n not in have)
        problem = f"{len(chosen)} of {int(part['count'])} parts; number {lacking} is absent."
        raise errors.MissingShardError(problem, file=where, advice="Download it.")
    return chosen


def _offer(models: Mapping[str, Sequence[str]]) -> str:
    offered = ", ".join(f"--weights {shown(files[0])}" for files in list(models.values())[:3])
    return f"Choose one: {offered}{f', and {len(models) - 3} more' if len(models) > 3 else ''}."


def open_model(
    kind: str, name: str, commit: str | None, files: Sequence[str], read: Callable[[str], GgufHeader]
) -> Checkpoint:
    """The checkpoint that `files` make, each read by `read`.

    Raises:
        SourceError: a file is no GGUF, or the parts do not make one model.
    """
    parts = [read(file) for file in files]
    headers = [_header(file, part) for file, part in zip(files, parts, strict=True)]
    check_unique(headers)
    first = parts[0].metadata
    total = first.get("split.tensors.count")
    found = sum(map(len, headers))
    if total is not None and total != found:
        problem = f"holds {found:,} tensors, split.tensors.count says {shown(total)}."
        raise errors.MissingTensorError(problem, file=files[0])
    names = [tensor.name for part in parts for tensor in part.tensors]
    config, warnings = config_of(first, names, file=files[0])
    return Checkpoint(kind, name, commit, headers, {"config.json": config}, warnings=warnings)


def _header(file: str, part: GgufHeader) -> Header:
    named = [_tensor(info) for info in part.tensors]
    return Header(
        file=file,
        names=[name for name, _, _ in named],
        dtypes=[dtype for _, dtype, _ in named],
        shapes=[shape for _, _, shape in named],
        offsets=[(info.offset, info.offset + info.bytes) for info in part.tensors],
        header_bytes=part.data_start,
        data_bytes=sum(info.bytes for info in part.tensors),
        warnings=part.warnings,
    )


def _tensor(info: TensorInfo) -> tuple[str, str, tuple[int, ...]]:
    """(name, dtype, shape as stored) of a tensor: bytes where weights are packed, and a name that says how."""
    row, name = GGML_TYPES[info.type], rename(info.name)
    if row.dtype:
        return name, row.dtype, info.shape
    stored = (*info.shape[:-1], info.shape[-1] // row.weights * row.bytes)
    return f"{name.removesuffix('.weight')}.weight.{row.name}", "U8", stored


def rename(name: str) -> str:
    """A tensor's name as transformers spells it; one no table knows stays, with its layer: structure may place it."""
    for prefix, tower in _TOWERS:
        if prefix.match(name):
            return prefix.sub(tower, name, count=1)
    block = _BLOCK.fullmatch(name)
    found = _LEAF.fullmatch(block["name"] if block else name)
    assert found is not None
    stem, leaf = found["stem"], found["leaf"] or ""
    numbered = _NUMBERED.fullmatch(stem) if block else None
    if numbered:
        module = f"mlp.experts.{numbered['expert']}.{numbered['kind']}_proj"
    else:
        module = (INSIDE if block else OUTSIDE).get(stem, stem)
    if module in _BARE:
        leaf = ""
    return f"model.layers.{block['layer']}.{module}{leaf}" if block else f"{module}{leaf}"


def config_of(metadata: Mapping[str, Any], names: Sequence[str], *, file: str) -> tuple[dict[str, Any], list[str]]:
    """(config.json as transformers would spell it, what is worth a line) of a model's metadata.

    Args:
        metadata: of the first file.
        names: every tensor's name as stored.
    Raises:
        BadConfigError: the architecture or its layers are not named.
    """
    family = metadata.get("general.architecture")
    layers = metadata.get(f"{family}.block_count")
    if not isinstance(family, str) or type(layers) is not int:
        problem = "the metadata name no architecture, or no number of blocks."
        raise errors.BadConfigError(problem, file=file, advice="A projector or an importance matrix is no model.")
    config: dict[str, Any] = {"model_type": family, "tie_word_embeddings": "output.weight" not in names}
    for key, spelling in FIELDS.items():
        value = metadata.get(f"{family}.{key}")
        if isinstance(value, list):  # one number for each layer
            value = value[0] if len(set(value)) == 1 else value if key.startswith("expert_") else None
        if value is not None and not isinstance(value, Omitted):
            config[spelling] = value
    appended = config.get("num_nextn_predict_layers", 0)
    # Blocks of multi-token prediction are among them, after the decoder's.
    config["num_hidden_layers"] = layers - appended if type(appended) is int and 0 < appended < layers else layers
    if "kv_lora_rank" not in config:
        config.pop("qk_rope_head_dim", None)  # rope of part of each head: nothing is cached apart
    tokens = metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in config and isinstance(tokens, Omitted | list):
        config["vocab_size"] = tokens.length if isinstance(tokens, Omitted) else len(tokens)
    return config, _windows(metadata, family, config)


def _windows(metadata: Mapping[str, Any], family: str, config: dict[str, Any]) -> list[str]:
    """Put sliding windows into `config`; a line where it is not said which layers have them."""
    window = metadata.get(f"{family}.attention.sliding_window")
    if not window:
        return []
    layers = config["num_hidden_layers"]
    pattern = metadata.get(f"{family}.attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) >= layers:
        slides = [bool(each) for each in pattern[:layers]]
    elif (period := pattern if type(pattern) is int and pattern > 0 else WINDOW_PERIODS.get(family)) is not None:
        slides = [layer % period < period - 1 for layer in range(layers)]
    else:
        return [f"a sliding window of {window} tokens, its layers not named: KV is counted without it."]
    config["sliding_window"] = window
    config["layer_types"] = ["sliding_attention" if each else "full_attention" for each in slides]
    return []
