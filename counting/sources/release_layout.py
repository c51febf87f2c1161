"""Write a released checkpoint's headers from its config alone: names, dtypes, shapes, shards, no weights.

The files are sparse: each is extended to its full length without a byte of data written, so 688 GB of DeepSeek-V3 take
a few MB of disk. `moegauge validate` counts such a layout on a machine that holds no checkpoint, and tests count it
against published totals. A family is one row of `FAMILIES`; the configs stand in `releases/`, each with its source.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from moegauge.counting.sources.sparse import Tensor, write_sparse
from moegauge.errors import CheckpointError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Family:
    """How a family names its tensors; everything else comes from the config.

    Attributes:
        experts: the module that holds the experts, under a layer.
        expert: gate, up and down of one expert; empty for fused tensors over all experts.
        router: the router's module.
        correction: the router's correction bias, stored in float32; empty when there is none.
        shared: the module of the shared experts; empty when there is none.
        attention: `mla` or `gqa`.
        qkv_bias, output_bias, qk_norm, sinks: what the attention has beside its projections; `qk_norm` may also be
            the name of the config field that says so.
        router_bias: the router has a bias.
    """

    experts: str
    expert: tuple[str, ...]
    router: str
    correction: str = ""
    shared: str = ""
    attention: str = "gqa"
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool | str = False
    sinks: bool = False
    router_bias: bool = False


_GATED = ("gate_proj", "up_proj", "down_proj")
_DEEPSEEK = Family(
    "mlp.experts", _GATED, "mlp.gate", "e_score_correction_bias", shared="mlp.shared_experts", attention="mla"
)
FAMILIES: dict[str, Family] = {
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm4_moe": Family(
        "mlp.experts",
        _GATED,
        "mlp.gate",
        "e_score_correction_bias",
        shared="mlp.shared_experts",
        qkv_bias=True,
        qk_norm="use_qk_norm",
    ),
    "gpt_oss": Family("mlp.experts", (), "mlp.router", qkv_bias=True, output_bias=True, sinks=True, router_bias=True),
    "qwen3_moe": Family("mlp.experts", _GATED, "mlp.gate", qk_norm=True),
    "mixtral": Family("block_sparse_moe.experts", ("w1", "w3", "w2"), "block_sparse_moe.gate"),
}


def releases() -> list[str]:
    """Names of the releases whose config ships with the package."""
    files = (resources.files("moegauge.counting") / "releases").iterdir()
    return sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json"))


def release(name: str) -> dict[str, Any]:
    """The facts of one release: `repo`, `shards`, `source`, `config`.

    Raises:
        UnknownNameError: no such release ships.
    """
    if name not in releases():
        raise UnknownNameError("release", name, releases())
    file = resources.files("moegauge.counting") / "releases" / f"{name}.json"
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return facts


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


class _Writer:
    """Names and shapes of one model's tensors, in the order a step uses them."""

    def __init__(self, config: dict[str, Any]) -> None:
        kind = config.get("model_type")
        if kind not in FAMILIES:
            raise CheckpointError(
                f"no layout for model_type {kind!r}.", advice=f"Known: {', '.join(sorted(FAMILIES))}."
            )
        self.config = config
        self.family = FAMILIES[kind]
        quantisation = config.get("quantization_config") or {}
        self.method = quantisation.get("quant_method", "")
        self.hidden: int = config["hidden_size"]
        self.layers: int = config["num_hidden_layers"]
        self.count: int = config.get("n_routed_experts") or config.get("num_local_experts") or config["num_experts"]
        self.width: int = config.get("moe_intermediate_size") or config["intermediate_size"]

    def plain(self, name: str, *shape: int, dtype: str = "BF16") -> Iterator[Tensor]:
        """A tensor every release keeps unquantised: norms, biases, routers, embeddings."""
        yield Tensor(name, dtype, shape)

    def linear(self, name: str, rows: int, columns: int, *, routed: bool = False) -> Iterator[Tensor]:
        """A linear layer's weight as this release stores it: FP8 in 128x128 blocks, packed INT4 or BF16."""
        if self.method == "fp8":
            block_rows, block_columns = self.config["quantization_config"]["weight_block_size"]
            yield Tensor(f"{name}.weight", "F8_E4M3", (rows, columns))
            scales = (_ceil(rows, block_rows), _ceil(columns, block_columns))
            yield Tensor(f"{name}.weight_scale_inv", "F32", scales)
        elif self.method == "compressed-tensors" and routed:
            weights = self.config["quantization_config"]["config_groups"]["group_0"]["weights"]
            yield Tensor(f"{name}.weight_packed", "I32", (rows, _ceil(columns * weights["num_bits"], 32)))
            yield Tensor(f"{name}.weight_scale", "BF16", (rows, _ceil(columns, weights["group_size"])))
            yield Tensor(f"{name}.weight_shape", "I32", (2,))
        else:
            yield Tensor(f"{name}.weight", "BF16", (rows, columns))

    def mla(self, at: str) -> Iterator[Tensor]:
        """Multi-head latent attention: the projections of DeepSeek-V2, section 2.1 (arXiv 2405.04434)."""
        c, heads = self.config, self.config["num_attention_heads"]
        rank, rope = c["kv_lora_rank"], c["qk_rope_head_dim"]
        yield from self.linear(f"{at}.q_a_proj", c["q_lora_rank"], self.hidden)
        yield from self.plain(f"{at}.q_a_layernorm.weight", c["q_lora_rank"])
        yield from self.linear(f"{at}.q_b_proj", heads * (c["qk_nope_head_dim"] + rope), c["q_lora_rank"])
        yield from self.linear(f"{at}.kv_a_proj_with_mqa", rank + rope, self.hidden)
        yield from self.plain(f"{at}.kv_a_layernorm.weight", rank)
        yield from self.linear(f"{at}.kv_b_proj", heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), rank)
        yield from self.linear(f"{at}.o_proj", self.hidden, heads * c["v_head_dim"])

    def gqa(self, at: str) -> Iterator[Tensor]:
        """Grouped-query attention with what the family adds to it."""
        c, family = self.config, self.family
        width = c.get("head_dim") or self.hidden // c["num_attention_heads"]
        sizes = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}
        sizes["v_proj"] = sizes["k_proj"]
        for name, heads in sizes.items():
            yield from self.linear(f"{at}.{name}", heads * width, self.hidden)
            if family.qkv_bias:
                yield from self.plain(f"{at}.{name}.bias", heads * width)
        yield from self.linear(f"{at}.o_proj", self.hidden, sizes["q_proj"] * width)
        if family.output_bias:
            yield from self.plain(f"{at}.o_proj.bias", self.hidden)
        if c.get(family.qk_norm) if isinstance(family.qk_norm, str) else family.qk_norm:
            yield from self.plain(f"{at}.q_norm.weight", width)
            yield from self.plain(f"{at}.k_norm.weight", width)
        if family.sinks:
            yield from self.plain(f"{at}.sinks", sizes["q_proj"])

    def mlp(self, at: str, width: int, names: tuple[str, ...] = _GATED, *, routed: bool = False) -> Iterator[Tensor]:
        """A gated MLP: gate and up [width, hidden], down [hidden, width]."""
        gate, up, down = names
        yield from self.linear(f"{at}.{gate}", width, self.hidden, routed=routed)
        yield from self.linear(f"{at}.{up}", width, self.hidden, routed=routed)
        yield from self.linear(f"{at}.{down}", self.hidden, width, routed=routed)

    def fused_experts(self, at: str) -> Iterator[Tensor]:
        """All experts in one MXFP4 tensor: 16 bytes hold a block of 32 inputs, one E8M0 scale per block."""
        for name, rows, columns in (
            ("gate_up_proj", 2 * self.width, self.hidden),
            ("down_proj", self.hidden, self.width),
        ):
            yield Tensor(f"{at}.{name}_blocks", "U8", (self.count, rows, columns // 32, 16))
            yield Tensor(f"{at}.{name}_scales", "U8", (self.count, rows, columns // 32))
            yield Tensor(f"{at}.{name}_bias", "BF16", (self.count, rows))

    def moe(self, at: str) -> Iterator[Tensor]:
        """Router, shared experts, routed experts."""
        family = self.family
        yield from self.plain(f"{at}.{family.router}.weight", self.count, self.hidden)
        if family.router_bias:
            yield from self.plain(f"{at}.{family.router}.bias", self.count)
        if family.correction:
            yield from self.plain(f"{at}.{family.router}.{family.correction}", self.count, dtype="F32")
        if family.shared:
            yield from self.mlp(f"{at}.{family.shared}", self.width * self.config["n_shared_experts"])
        if not family.expert:
            yield from self.fused_experts(f"{at}.{family.experts}")
            return
        for expert in range(self.count):
            yield from self.mlp(f"{at}.{family.experts}.{expert}", self.width, family.expert, routed=True)

    def layer(self, index: int) -> Iterator[Tensor]:
        """One decoder layer."""
        at = f"model.layers.{index}"
        yield from self.plain(f"{at}.input_layernorm.weight", self.hidden)
        yield from self.mla(f"{at}.self_attn") if self.family.attention == "mla" else self.gqa(f"{at}.self_attn")
        yield from self.plain(f"{at}.post_attention_layernorm.weight", self.hidden)
        if index < self.config.get("first_k_dense_replace", 0):
            yield from self.mlp(f"{at}.mlp", self.config["intermediate_size"])
        else:
            yield from self.moe(at)

    def prediction_layer(self, index: int) -> Iterator[Tensor]:
        """A multi-token-prediction layer: a full MoE layer, its own projection of [hidden; embedding], and stored
        copies of the embedding and the head (DeepSeek-V3, section 2.2, arXiv 2412.19437)."""
        at = f"model.layers.{index}"
        vocabulary = self.config["vocab_size"]
        yield from self.plain(f"{at}.embed_tokens.weight", vocabulary, self.hidden)
        yield from self.plain(f"{at}.enorm.weight", self.hidden)
        yield from self.plain(f"{at}.hnorm.weight", self.hidden)
        yield from self.plain(f"{at}.eh_proj.weight", self.hidden, 2 * self.hidden)
        yield from self.layer(index)
        yield from self.plain(f"{at}.shared_head.norm.weight", self.hidden)
        yield from self.plain(f"{at}.shared_head.head.weight", vocabulary, self.hidden)

    def model(self) -> Iterator[Tensor]:
        """The whole checkpoint."""
        vocabulary = self.config["vocab_size"]
        yield from self.plain("model.embed_tokens.weight", vocabulary, self.hidden)
        for index in range(self.layers):
            yield from self.layer(index)
        for index in range(self.config.get("num_nextn_predict_layers") or 0):
            yield from self.prediction_layer(self.layers + index)
        yield from self.plain("model.norm.weight", self.hidden)
        if not self.config.get("tie_word_embeddings", False):
            yield from self.plain("lm_head.weight", vocabulary, self.hidden)


def tensors(config: dict[str, Any]) -> list[Tensor]:
    """Every tensor of a checkpoint with this config, as its release stores it.

    Raises:
        CheckpointError: no layout is known for the config's `model_type`.
    """
    return list(_Writer(config).model())


def write(folder: Path, config: dict[str, Any], shards: int = 1) -> int:
    """Write `folder` as a checkpoint with this config, as its release stores it, without a byte of data.

    Args:
        folder: made if absent; must hold no safetensors file.
        config: the config.json to lay out.
        shards: files to spread the tensors over, of about equal size.

    Returns:
        the bytes of data the files claim, none of them allocated.

    Raises:
        CheckpointError: the folder already holds a checkpoint, or there is no layout for the config.
    """
    return write_sparse(folder, tensors(config), config, shards)
