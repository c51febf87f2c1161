"""Write a released checkpoint's headers from its config alone: names, dtypes, shapes, shards, no weights.

The files are sparse: each is extended to its full length without a byte of data written, so 688 GB of DeepSeek-V3 take
a few MB of disk. `moegauge validate` counts such a layout on a machine that holds no checkpoint, and tests count it
against published totals. A family is one row of `FAMILIES`; the configs stand in `releases/`, each with its source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
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
        embedding, mixer, output: the modules of the input table, the attention and its output projection.
        fused_qkv: the module of query, key and value in one; empty when they are three.
        norms: a layer's norms before attention and before the experts, and any others.
        qk_norms: the norms of query and key heads.
        residual: an MLP as wide as the model beside the experts (Arctic); empty when there is none.
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
    embedding: str = "model.embed_tokens"
    mixer: str = "self_attn"
    output: str = "o_proj"
    fused_qkv: str = ""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    qk_norms: tuple[str, str] = ("q_norm", "k_norm")
    residual: str = ""


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
    # Ling-lite and Ling-plus (`modeling_bailing_moe.py` of their repositories).
    "bailing_moe": Family(
        "mlp.experts",
        _GATED,
        "mlp.gate",
        shared="mlp.shared_experts",
        embedding="model.word_embeddings",
        mixer="attention",
        output="dense",
        fused_qkv="query_key_value",
    ),
    # Snowflake Arctic (`modeling_arctic.py` of its repository; vLLM's loader reads the same names).
    "arctic": Family(
        "block_sparse_moe.experts",
        ("w1", "w3", "w2"),
        "block_sparse_moe.gate",
        norms=("input_layernorm", "post_attention_layernorm", "residual_layernorm"),
        residual="residual_mlp",
    ),
    # Hunyuan-Large (`modeling_hunyuan.py` of its repository): keys and values in every `cla_share_factor`-th layer.
    "hunyuan": Family(
        "mlp.experts",
        _GATED,
        "mlp.gate.wg",
        shared="mlp.shared_mlp",
        qk_norm="use_qk_norm",
        qk_norms=("query_layernorm", "key_layernorm"),
    ),
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

    def gqa(self, at: str, index: int) -> Iterator[Tensor]:
        """Grouped-query attention with what the family adds to it."""
        c, family = self.config, self.family
        width = c.get("head_dim") or self.hidden // c["num_attention_heads"]
        queries, keys = c["num_attention_heads"], c["num_key_value_heads"]
        own = index % (c.get("cla_share_factor") or 1) == 0 if c.get("use_cla") else True
        if family.fused_qkv:
            sizes = {family.fused_qkv: queries + 2 * keys}
        else:
            sizes = {"q_proj": queries, **({"k_proj": keys, "v_proj": keys} if own else {})}
        for name, heads in sizes.items():
            yield from self.linear(f"{at}.{name}", heads * width, self.hidden)
            if family.qkv_bias:
                yield from self.plain(f"{at}.{name}.bias", heads * width)
        yield from self.linear(f"{at}.{family.output}", self.hidden, queries * width)
        if family.output_bias:
            yield from self.plain(f"{at}.{family.output}.bias", self.hidden)
        if c.get(family.qk_norm) if isinstance(family.qk_norm, str) else family.qk_norm:
            for name in family.qk_norms[: 2 if own else 1]:
                yield from self.plain(f"{at}.{name}.weight", width)
        if family.sinks:
            yield from self.plain(f"{at}.sinks", queries)

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
            spellings = ("n_shared_experts", "num_shared_experts", "num_shared_expert")
            shared = next(self.config[s] for s in spellings if s in self.config)
            yield from self.mlp(f"{at}.{family.shared}", self.width * shared)
        if family.residual:
            yield from self.mlp(f"{at}.{family.residual}", self.hidden, family.expert)
        if not family.expert:
            yield from self.fused_experts(f"{at}.{family.experts}")
            return
        for expert in range(self.count):
            yield from self.mlp(f"{at}.{family.experts}.{expert}", self.width, family.expert, routed=True)

    def layer(self, index: int) -> Iterator[Tensor]:
        """One decoder layer."""
        at, family = f"model.layers.{index}", self.family
        before, *others = family.norms
        yield from self.plain(f"{at}.{before}.weight", self.hidden)
        mixer = f"{at}.{family.mixer}"
        yield from self.mla(mixer) if family.attention == "mla" else self.gqa(mixer, index)
        for norm in others:
            yield from self.plain(f"{at}.{norm}.weight", self.hidden)
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
        yield from self.plain(f"{self.family.embedding}.weight", vocabulary, self.hidden)
        for index in range(self.layers):
            yield from self.layer(index)
        for index in range(self.config.get("num_nextn_predict_layers") or 0):
            yield from self.prediction_layer(self.layers + index)
        yield from self.plain("model.norm.weight", self.hidden)
        if not self.config.get("tie_word_embeddings", False):
            yield from self.plain("lm_head.weight", vocabulary, self.hidden)


def _kimi_k3(config: dict[str, Any]) -> Iterator[Tensor]:
    """The text model of Kimi-K3: Kimi delta attention with every fourth layer MLA, experts on a latent stream in MXFP4,
    and a residual attention over earlier blocks.

    Names and shapes as loaders read them (llama.cpp pull request 26185 converts them). With a vision tower of
    447 million its 2,779,484,476,000 parameters are the 2,779,931,837,184 of the Hub to the last 10,400.
    """
    c = config["text_config"]
    delta, hidden, heads = c["linear_attn_config"], c["hidden_size"], c["num_attention_heads"]
    width, latent = delta["num_heads"] * delta["head_dim"], c["routed_expert_hidden_size"]
    root = "language_model.model"

    def bf16(**shapes: tuple[int, ...]) -> Iterator[Tensor]:
        yield from (Tensor(f"{at}.{name}.weight", "BF16", shape) for name, shape in shapes.items())

    def packed(name: str, rows: int, columns: int) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight_packed", "U8", (rows, columns // 2))
        yield Tensor(f"{name}.weight_scale", "U8", (rows, columns // 32))

    yield Tensor(f"{root}.embed_tokens.weight", "BF16", (c["vocab_size"], hidden))
    for number in range(c["num_hidden_layers"]):
        layer = f"{root}.layers.{number}"
        at = layer
        for name in ("input_layernorm", "post_attention_layernorm", "self_attention_res_norm", "mlp_res_norm"):
            yield from bf16(**{name: (hidden,)})
        yield from bf16(self_attention_res_proj=(1, hidden), mlp_res_proj=(1, hidden))
        at = f"{layer}.self_attn"
        if number + 1 in delta["kda_layers"]:
            yield from bf16(**dict.fromkeys(("q_proj", "k_proj", "v_proj", "g_proj"), (width, hidden)))
            for name in ("q_conv1d", "k_conv1d", "v_conv1d"):
                yield Tensor(f"{at}.{name}.weight", "F32", (width, 1, delta["short_conv_kernel_size"]))
            yield from bf16(f_a_proj=(delta["head_dim"], hidden), f_b_proj=(width, delta["head_dim"]))
            yield from bf16(b_proj=(delta["num_heads"], hidden), o_proj=(hidden, width))
            yield Tensor(f"{at}.A_log", "F32", (delta["num_heads"],))
            yield Tensor(f"{at}.dt_bias", "F32", (width,))
            yield Tensor(f"{at}.o_norm.weight", "F32", (delta["head_dim"],))
        else:
            rank, rope = c["kv_lora_rank"], c["qk_rope_head_dim"]
            queries, values = heads * (c["qk_nope_head_dim"] + rope), heads * c["v_head_dim"]
            yield from bf16(q_a_proj=(c["q_lora_rank"], hidden), q_a_layernorm=(c["q_lora_rank"],))
            yield from bf16(q_b_proj=(queries, c["q_lora_rank"]), kv_a_proj_with_mqa=(rank + rope, hidden))
            yield from bf16(kv_a_layernorm=(rank,), kv_b_proj=(heads * c["qk_nope_head_dim"] + values, rank))
            yield from bf16(g_proj=(values, hidden), o_proj=(hidden, values))
        if number < c["first_k_dense_replace"]:
            at, inner = f"{layer}.mlp", c["intermediate_size"]
            yield from bf16(gate_proj=(inner, hidden), up_proj=(inner, hidden), down_proj=(hidden, inner))
            continue
        at, inner = f"{layer}.block_sparse_moe", c["moe_intermediate_size"]
        yield from bf16(gate=(c["num_experts"], hidden))
        yield Tensor(f"{at}.gate.e_score_correction_bias", "F32", (c["num_experts"],))
        yield from bf16(routed_expert_down_proj=(latent, hidden), routed_expert_norm=(latent,))
        yield from bf16(routed_expert_up_proj=(hidden, latent))
        for expert in range(c["num_experts"]):
            for name, rows, columns in (("w1", inner, latent), ("w3", inner, latent), ("w2", latent, inner)):
                yield from packed(f"{at}.experts.{expert}.{name}", rows, columns)
        at, inner = f"{at}.shared_experts", inner * c["num_shared_experts"]
        yield from bf16(gate_proj=(inner, hidden), up_proj=(inner, hidden), down_proj=(hidden, inner))
    at = root
    yield from bf16(output_attn_res_proj=(1, hidden), output_attn_res_norm=(hidden,), norm=(hidden,))
    yield Tensor("language_model.lm_head.weight", "BF16", (c["vocab_size"], hidden))


# Families whose layers are their own.
WHOLE: dict[str, Callable[[dict[str, Any]], Iterator[Tensor]]] = {"kimi_k3": _kimi_k3}


def tensors(config: dict[str, Any]) -> list[Tensor]:
    """Every tensor of a checkpoint with this config, as its release stores it.

    Raises:
        CheckpointError: no layout is known for the config's `model_type`.
    """
    whole = WHOLE.get(config.get("model_type", ""))
    return list(whole(config) if whole else _Writer(config).model())


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
