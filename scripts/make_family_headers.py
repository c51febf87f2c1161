"""Make test data: headers and counts of a tiny model of every transformers model_type with routed experts.

Run where transformers is installed (it is no dependency of this package):

    python scripts/make_family_headers.py tests/data/families [model_type ...]

Each file holds the headers twice, `saved` (the names releases use) and `runtime` (the names of the modules in memory,
as other savers write them), the saved config, and the oracle: parameters of the whole module tree, of the expert
modules, and float buffers that are saved beside them.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

LAYERS = 4
LIMIT_PARAMETERS = 60_000_000
# Small values for the fields of any config; a field a family does not have is not set.
SMALL: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "mel_vocab_size"), 128),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "out_hidden_size", "projection_dim", "text_hidden_size"), 64),
    **dict.fromkeys(("projection_intermediate_size", "projection_hidden_dim", "projector_hidden_size"), 64),
    **dict.fromkeys(
        ("adapter_in_dim", "adapter_out_dim", "adapter_input_size", "output_dim", "thinker_hidden_size"), 64
    ),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "encoder_layers", "decoder_layers"), LAYERS),
    "num_decoder_layers": LAYERS,
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "kv_n_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "d_kv", "kv_channels"), 16),
    **dict.fromkeys(("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 96),
    "intermediate_size_mlp": 80,
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 48),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size", "share_expert_dim"), 40),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"), 40),
    **dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"), 6),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"), 2),
    **dict.fromkeys(("top_k_experts", "num_selected_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "moe_layer_start_index", "num_dense_layers"), 1),
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "n_groups": 2,
    "mamba_n_groups": 2,
    "mamba_dt_rank": 8,
    "hidden_size_per_layer_input": 8,
    "zero_expert_num": 2,
    "moe_latent_size": 32,
    "depth": 2,
    "encoder_sparse_step": 2,
    "decoder_sparse_step": 2,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "interleave_moe_layer_step": 2,
    "router_hidden_size": 16,
    "mlp_dim": 96,
    "moe_hidden_size": 32,
    "num_nextn_predict_layers": 0,
    "d_rel": 8,
    "rel_extent": 16,
    "conv_kernel_size": 4,
}
# Per-layer lists: every kind that occurs, over the small number of layers.
LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")
_QWEN4 = {"ngram_vocab_size_base": 64, "ple_embed_dim": 64, "ple_layer_ids": [1], "eos_token_id": 2,
          "split_ngram_parts": 2, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16,
          "indexer_budget": 8, "indexer_compress_ratio": 4}  # fmt: skip
# What a family needs beyond that.
OVERRIDES: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8}, "ffn_config": {"hidden_size": 64}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_ocr2": {"text_config": {"num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": None,
                                      "topk_group": None, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}},
    "diffusion_gemma": {"text_config": {"num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 48,
                                        "per_layer_config": None}},
    "doge": {"is_moe": True, "num_experts": 16},
    "dots1": {"n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note": {"text_config": {"num_key_value_heads": 4, "head_dim": 24, "per_layer_config": None}},
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 24, "per_layer_config": None},
    "ernie4_5_vl_moe": {"text_config": {"hidden_size": 512, "moe_intermediate_size": [48, 24],
                                        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}},
    "gemma4": {"text_config": {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2,
                               "moe_intermediate_size": 48, "per_layer_config": None}},
    "gemma4_text": {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 48,
                    "per_layer_config": None},
    "glm5_next": {"text_config": {"num_key_value_heads": 4, "index_topk": 16, "qk_rope_head_dim": 0}},
    "glm5_next_text": {"num_key_value_heads": 4, "index_topk": 16, "qk_rope_head_dim": 0},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "mistral4": {"head_dim": 8},
    "muse_spark": {"audio_config": {"hidden_sizes": [16, 16, 32, 32]}, "out_hidden_size": 64},
    "qwen3_omni_moe": {"talker_config": {"spatial_merge_size": 2,
                                         "text_config": {"shared_expert_intermediate_size": 40}}},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
# Modules whose parameters are routed experts' though their class says nothing of experts.
TOWERS = re.compile(r"visual|vision_tower|vision_model|talker|audio")
ROUTED_NAMES = {"doge": r".*\.mlp\.(?:up|down)_embed\..*"}
NOISE = ("id2label", "label2id", "transformers_version", "initializer_range", "use_cache", "dtype", "return_dict",
         "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "is_encoder_decoder_")  # fmt: skip


def small(defaults: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Arguments that make a config of these defaults small, sub-configs included."""
    out: dict[str, Any] = {}
    for key, value in defaults.items():
        if isinstance(value, dict) and (key.endswith("_config") or "model_type" in value):
            out[key] = small(value, over.get(key) or {})
            if "model_type" in value:
                out[key]["model_type"] = value["model_type"]
        elif key in LISTS and isinstance(value, list) and value:
            kinds = list(dict.fromkeys(value))
            out[key] = [kinds[i % len(kinds)] for i in range(LAYERS)]
        elif key in SMALL and type(value) is int:
            out[key] = SMALL[key]
    out.update({k: v for k, v in over.items() if not isinstance(v, dict) or k not in out})
    return out


def model_class(config: Any) -> type | None:
    """The class transformers would make of this config, the one with a head first."""
    for name in ("IMAGE_TEXT_TO_TEXT", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MULTIMODAL_LM", "TEXT_TO_WAVEFORM"):
        mapping = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING", {})
        if type(config) in mapping:
            return mapping[type(config)]
    return modeling_auto.MODEL_MAPPING.get(type(config), None)


def read_header(folder: Path) -> list[list[Any]]:
    """[name, dtype, shape] of every saved tensor, read as plain bytes."""
    rows = []
    for file in sorted(folder.glob("*.safetensors")):
        raw = file.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + length])
        rows += [[n, e["dtype"], e["shape"]] for n, e in header.items() if n != "__metadata__"]
    return sorted(rows)


def expert_parameters(model: Any, model_type: str) -> int:
    """Parameters under modules that are experts by class (or by the names above), each counted once. Experts of vision
    towers and of a talker are theirs; a norm after all experts is no expert's."""
    names: set[str] = set()
    for path, module in model.named_modules():
        kind = type(module).__name__
        if re.search(r"Experts?$|ExpertLayer", kind) and "Shared" not in kind and not TOWERS.search(path):
            names |= {f"{path}.{n}" for n, _ in module.named_parameters() if "norm" not in n}
    pattern = ROUTED_NAMES.get(model_type)
    names |= {n for n, _ in model.named_parameters() if pattern and re.fullmatch(pattern, n)}
    held = dict(model.named_parameters())
    return sum(held[n].numel() for n in names if n in held)


def fold(rows: list[list[Any]]) -> list[list[Any]]:
    """Rows whose names differ only in numbers, as one: [template, dtype, shape, [numbers of each]]."""
    found: dict[str, list[Any]] = {}
    for name, dtype, shape in rows:
        numbers = [int(n) for n in re.findall(r"(?<=[.])\d+(?=[.]|$)", name)]
        template = re.sub(r"(?<=[.])\d+(?=[.]|$)", "{}", name)
        found.setdefault(json.dumps([template, dtype, shape]), []).append(numbers)
    return [[*json.loads(key), numbers] for key, numbers in found.items()]


def clean(config: dict[str, Any]) -> dict[str, Any]:
    """The saved config without what no reader of sizes needs."""
    kept = {k: v for k, v in config.items() if k not in NOISE and v is not None and not k.endswith("_token_id")}
    return {k: clean(v) if isinstance(v, dict) else v for k, v in kept.items()}


def make(model_type: str) -> dict[str, Any] | None:
    """The document of one family; None when it has no class or no routed experts."""
    maker = CONFIG_MAPPING[model_type]
    config = maker(**small(maker().to_dict(), OVERRIDES.get(model_type, {})))
    kind = model_class(config)
    if kind is None:
        return None
    kind = kind[0] if isinstance(kind, tuple) else kind
    with torch.device("meta"):
        sketch = kind(config)
    if sum(p.numel() for p in sketch.parameters()) > LIMIT_PARAMETERS:
        largest = sorted(sketch.named_parameters(), key=lambda item: -item[1].numel())[:3]
        raise ValueError(f"not tiny: {[(n, tuple(p.shape)) for n, p in largest]}")
    if not expert_parameters(sketch, model_type):
        return None
    model = kind(config)
    state = model.state_dict()
    parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = read_header(Path(folder))
        written = json.loads((Path(folder) / "config.json").read_text())
    tied = set(model.all_tied_weights_keys)
    dtypes = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64", "int32": "I32", "bool": "BOOL"}
    runtime = [[n, dtypes[str(t.dtype)[6:]], list(t.shape)] for n, t in state.items() if n not in tied]
    return {
        "model_type": model_type,
        "class": kind.__name__,
        "transformers": transformers.__version__,
        "config": clean(written),
        "oracle": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "routed": expert_parameters(model, model_type),
            "buffers": {n: t.numel() for n, t in state.items() if n not in parameters},
        },
        "saved": fold(saved),
        "runtime": fold(runtime),
    }


def main(folder: str, *only: str) -> int:
    """Write one file per family; say which could not be made."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    failed = 0
    for model_type in sorted(only or CONFIG_MAPPING.keys()):
        source = Path(transformers.__file__).parent / "models" / CONFIG_MAPPING[model_type].__module__.split(".")[-2]
        if not any(re.search(r"class \w*(Experts?|MoE|Moe)\w*\(", f.read_text()) for f in source.glob("modeling_*.py")):
            continue
        torch.manual_seed(0)
        try:
            document = make(model_type)
        except Exception as error:  # a family that cannot be made small is listed, not hidden
            print(f"FAILED {model_type}: {type(error).__name__}: {str(error)[:200]}")
            failed += 1
            continue
        if document is None:
            continue
        lines = [f'"{k}": {json.dumps(v, separators=(",", ":"))}' for k, v in document.items()]
        (target / f"{model_type}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{model_type}: {document['oracle']['parameters']:,} parameters, {document['oracle']['routed']:,} routed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
