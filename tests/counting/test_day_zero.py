"""Checkpoints as trainers, converters and inference engines of 2025 and 2026 write them, forged small from their code.

Every tensor is written with the role and the parameters it must be counted under, so the expected sums are made by
hand, not by the code under test. Each case names whose layout it is.
"""

from __future__ import annotations

import json
import struct
from math import prod

import pytest

from moegauge.counting.census import take_census
from moegauge.counting.errors import AdapterError, SlicedWeightsError
from moegauge.counting.headers.header import DTYPE_BITS
from moegauge.counting.mixers import kv_bytes_per_token
from moegauge.counting.sources import folder as folders

HIDDEN, VOCABULARY, WIDTH, EXPERTS, TOP_K = 64, 128, 32, 4, 2
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_intermediate_size": WIDTH,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}


class Forge:
    """Tensors with what each must count as; `weight` packs nothing, the packings below do."""

    def __init__(self):
        self.rows = []
        self.expected = {}

    def add(self, role, name, *shape, dtype="BF16", parameters=None):
        """One tensor; its elements are its parameters unless said."""
        self.rows.append((name, dtype, shape))
        self.expected[role] = self.expected.get(role, 0) + (prod(shape) if parameters is None else parameters)
        return self

    def body(self, prefix="model.", layers=range(2), head="lm_head.weight"):
        """Everything but the feed-forward parts, in names of Qwen3."""
        self.add("dense", f"{prefix}embed_tokens.weight", VOCABULARY, HIDDEN)
        for layer in layers:
            at = f"{prefix}layers.{layer}."
            for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)):
                self.add("dense", f"{at}self_attn.{name}.weight", rows, HIDDEN)
            for name in ("input_layernorm", "post_attention_layernorm"):
                self.add("dense", f"{at}{name}.weight", HIDDEN)
        self.add("dense", f"{prefix}norm.weight", HIDDEN)
        if head:
            self.add("dense", head, VOCABULARY, HIDDEN)
        return self

    def experts(self, at, count=EXPERTS, width=WIDTH, role="routed"):
        """A router and numbered experts of three matrices."""
        self.add("dense" if role == "routed" else role, f"{at}gate.weight", count, HIDDEN)
        for expert in range(count):
            for name, shape in (
                ("gate_proj", (width, HIDDEN)),
                ("up_proj", (width, HIDDEN)),
                ("down_proj", (HIDDEN, width)),
            ):
                self.add(role, f"{at}experts.{expert}.{name}.weight", *shape)
        return self

    def renamed(self, rename):
        self.rows = [(rename(name), dtype, shape) for name, dtype, shape in self.rows]
        return self

    def check(self, synthetic, config=CONFIG, *, inferred=False, **more):
        """Count, and hold every sum against what the tensors were forged as."""
        census = synthetic.census(self.rows, config, **more)
        parameters = census.to_json()["parameters"]
        assert census.unclassified() == []
        assert bool(census.inferred) == inferred, census.inferred
        got = {
            role: parameters[role]
            for role in ("dense", "routed", "mtp", "vision", "audio", "lookup")
            if parameters[role]
        }
        wanted = {role: n for role, n in self.expected.items() if n and role != "none"}
        assert got == wanted
        return census


def qwen(**more):
    """Qwen3-MoE as released, two layers."""
    forge = Forge().body(**more)
    for layer in range(2):
        forge.experts(f"{more.get('prefix', 'model.')}layers.{layer}.mlp.")
    return forge


# Names and prefixes.


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module.module.{name}",
        lambda name: name.replace("mlp.experts", "mlp._orig_mod.experts"),
        lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
        lambda name: f"_fsdp_wrapped_module.{name}".replace("layers.1.", "layers.1._fsdp_wrapped_module."),
        lambda name: f"policy.{name}",
        lambda name: f"base_model.model.{name}".replace("q_proj.weight", "q_proj.base_layer.weight"),
    ],
    ids=["compile", "ddp", "ddp twice", "compiled experts", "checkpointed", "fsdp", "trl", "peft"],
)
def test_wrappers_of_trainers(wrapped, synthetic):
    plain = qwen().check(synthetic)
    census = qwen().renamed(wrapped).check(synthetic)
    assert census.by_role() == plain.by_role()
    assert census.active == plain.active


def megatron(experts):
    forge = Forge().add("dense", "embedding.word_embeddings.weight", VOCABULARY, HIDDEN)
    for layer in range(2):
        at = f"decoder.layers.{layer}."
        forge.add("dense", f"{at}self_attention.linear_qkv.weight", 128, HIDDEN)
        forge.add("dense", f"{at}self_attention.linear_qkv.layer_norm_weight", HIDDEN)
        forge.add("dense", f"{at}self_attention.linear_proj.weight", HIDDEN, 64)
        forge.add("dense", f"{at}self_attention.q_layernorm.weight", 16)
        forge.add("dense", f"{at}pre_mlp_layernorm.weight", HIDDEN)
        forge.add("dense", f"{at}mlp.router.weight", EXPERTS, HIDDEN)
        forge.add("dense", f"{at}mlp.router.expert_bias", EXPERTS, dtype="F32")
        forge.add("dense", f"{at}mlp.shared_experts.linear_fc1.weight", 2 * WIDTH, HIDDEN)
        forge.add("dense", f"{at}mlp.shared_experts.linear_fc2.weight", HIDDEN, WIDTH)
        experts(forge, at)
    forge.add("none", "decoder.layers.0.self_attention.core_attention._extra_state", 8, dtype="U8")
    forge.add("dense", "decoder.final_layernorm.weight", HIDDEN)
    return forge.add("dense", "output_layer.weight", VOCABULARY, HIDDEN)


def sequential(forge, at):
    for e in range(EXPERTS):
        forge.add("routed", f"{at}mlp.experts.local_experts.{e}.linear_fc1.weight", 2 * WIDTH, HIDDEN)
        forge.add("routed", f"{at}mlp.experts.local_experts.{e}.linear_fc2.weight", HIDDEN, WIDTH)


def grouped(forge, at):
    for e in range(EXPERTS):
        forge.add("routed", f"{at}mlp.experts.linear_fc1.weight{e}", 2 * WIDTH, HIDDEN)
        forge.add("routed", f"{at}mlp.experts.linear_fc2.weight{e}", HIDDEN, WIDTH)


def flat(forge, at):
    forge.add("routed", f"{at}mlp.experts.weight1", HIDDEN, EXPERTS * 2 * WIDTH)
    forge.add("routed", f"{at}mlp.experts.weight2", EXPERTS * WIDTH, HIDDEN)


@pytest.mark.parametrize("experts", [sequential, grouped, flat])
def test_megatron_core(experts, synthetic):
    """SequentialMLP, TEGroupedMLP (`weight0`, `weight1`, ...) and GroupedMLP (`weight1`, `weight2` of all experts)."""
    census = megatron(experts).check(synthetic, inferred=False)
    assert census.active_routed == census.routed // 2
    assert census.common("count") == EXPERTS


def test_torchtitan(synthetic):
    forge = Forge().add("dense", "tok_embeddings.weight", VOCABULARY, HIDDEN)
    for layer in range(2):
        at = f"layers.{layer}."
        for name in ("wq", "wk", "wv", "wo"):
            forge.add("dense", f"{at}attention.{name}.weight", HIDDEN, HIDDEN)
        for name in ("attention_norm", "ffn_norm"):
            forge.add("dense", f"{at}{name}.weight", HIDDEN)
        forge.add("dense", f"{at}moe.router.gate.weight", EXPERTS, HIDDEN)
        forge.add("dense", f"{at}moe.expert_bias", EXPERTS, dtype="F32")
        forge.add("none", f"{at}moe.tokens_per_expert", EXPERTS, dtype="F32", parameters=0)
        for name in ("w1", "w2", "w3"):
            forge.add("dense", f"{at}moe.shared_experts.{name}.weight", WIDTH, HIDDEN)
            forge.add("routed", f"{at}moe.experts.{name}", EXPERTS, WIDTH, HIDDEN)
    forge.add("dense", "norm.weight", HIDDEN).add("dense", "output.weight", VOCABULARY, HIDDEN)
    forge.check(synthetic)


def test_reward_model(synthetic):
    forge = qwen(head="").add("dense", "score.weight", 1, HIDDEN)
    census = forge.check(synthetic, {**CONFIG, "architectures": ["Qwen3MoeForSequenceClassification"]})
    assert census.warnings == []
    value = qwen().add("dense", "v_head.summary.weight", 1, HIDDEN).add("dense", "v_head.summary.bias", 1)
    value.renamed(lambda name: name if name.startswith("v_head") else f"pretrained_model.{name}")
    value.check(synthetic)


def test_drafters_alone(synthetic):
    """EAGLE-3 (`midlayer`, or `layers.0`), with its maps between vocabularies; no experts, none promised."""
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "vocab_size": 128,
        "draft_vocab_size": 64,
    }
    for at in ("midlayer", "layers.0"):
        forge = Forge().add("dense", "fc.weight", HIDDEN, 3 * HIDDEN)
        for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
            forge.add("dense", f"{at}.{name}.weight", HIDDEN)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            forge.add("dense", f"{at}.self_attn.{name}.weight", HIDDEN, 2 * HIDDEN)
        for name in ("gate_proj", "up_proj", "down_proj"):
            forge.add("dense", f"{at}.mlp.{name}.weight", 96, HIDDEN)
        forge.add("dense", "norm.weight", HIDDEN).add("dense", "lm_head.weight", 64, HIDDEN)
        forge.add("none", "d2t", 64, dtype="I64").add("none", "t2d", 128, dtype="BOOL")
        census = forge.check(synthetic, config)
        assert (census.active, census.pools) == (census.dense, [])


def test_omni_models(synthetic):
    """MiniCPM-o: llm, vpm, resampler, apm, tts. Qwen3-Omni: thinker, and a talker with experts too."""
    forge = qwen(prefix="llm.model.", head="llm.lm_head.weight")
    forge.add("vision", "vpm.encoder.layers.0.self_attn.q_proj.weight", 48, 48).add(
        "vision", "resampler.query", 8, HIDDEN
    )
    forge.add("audio", "apm.layers.0.fc1.weight", 48, 48).add("audio", "audio_projection_layer.linear1.weight", 64, 48)
    forge.add("audio", "tts.model.layers.0.mlp.gate_proj.weight", 48, 48)
    forge.check(synthetic)
    forge = qwen(prefix="thinker.model.", head="thinker.lm_head.weight")
    forge.experts("talker.model.layers.0.mlp.", role="audio").add("audio", "code2wav.pre_transformer.norm.weight", 8)
    forge.add("audio", "talker.codec_head.weight", 32, HIDDEN)
    forge.add("vision", "thinker.visual.blocks.0.attn.qkv.weight", 96, 32)
    config = {"model_type": "qwen3_omni_moe", "thinker_config": {"text_config": CONFIG, "vision_config": {"depth": 1}}}
    census = forge.check(synthetic, {**config, "talker_config": {"text_config": {"num_experts": EXPERTS}}})
    assert census.common("top_k") == TOP_K


# Families of the newest model lists.


def test_moondream_3(synthetic):
    """`mlp.fc1.weight` is a stack [experts, 2 x width, hidden]; layers before `moe.start_layer` are dense."""
    forge = Forge().add("dense", "model.text.wte", VOCABULARY, HIDDEN)
    for layer in range(2):
        at = f"model.text.blocks.{layer}."
        forge.add("dense", f"{at}ln.weight", HIDDEN).add("dense", f"{at}ln.bias", HIDDEN)
        forge.add("dense", f"{at}attn.qkv.weight", 192, HIDDEN).add("dense", f"{at}attn.proj.weight", HIDDEN, HIDDEN)
        forge.add("dense", f"{at}attn.tau.wq", 4, 192).add("dense", f"{at}attn.tau.alpha", 4)
        if layer:
            forge.add("dense", f"{at}mlp.router.weight", EXPERTS, HIDDEN).add("dense", f"{at}mlp.router.bias", EXPERTS)
            forge.add("routed", f"{at}mlp.fc1.weight", EXPERTS, 2 * WIDTH, HIDDEN)
            forge.add("routed", f"{at}mlp.fc2.weight", EXPERTS, HIDDEN, WIDTH)
        else:
            forge.add("dense", f"{at}mlp.fc1.weight", 96, HIDDEN).add("dense", f"{at}mlp.fc2.weight", HIDDEN, 96)
    forge.add("dense", "model.text.post_ln.weight", HIDDEN).add(
        "dense", "model.text.lm_head.weight", VOCABULARY, HIDDEN
    )
    forge.add("vision", "model.vision.blocks.0.attn.qkv.weight", 96, 32).add("vision", "model.vision.pos_emb", 1, 9, 32)
    text = {"dim": HIDDEN, "n_layers": 2, "vocab_size": VOCABULARY, "n_heads": 4}
    moe = {"num_experts": EXPERTS, "start_layer": 1, "experts_per_token": TOP_K, "expert_inner_dim": WIDTH}
    census = forge.check(
        synthetic, {"model_type": "moondream3", "text": {**text, "moe": moe}, "vision": {"enc_dim": 32}}
    )
    assert (census.common("count"), census.common("top_k"), census.moe_layers) == (EXPERTS, TOP_K, 1)


def test_k2_horizon_routes_values_too(synthetic):
    """Mixture of value projections: another number of experts and another top-k than the MLP's."""
    forge = qwen()
    for layer in range(2):
        forge.add("dense", f"model.layers.{layer}.self_attn.v_router.weight", 8, HIDDEN)
        for e in range(8):
            forge.add("routed", f"model.layers.{layer}.self_attn.v_experts.{e}.weight", 32, HIDDEN)
    config = {**CONFIG, "mova_num_experts": 8, "mova_num_experts_per_tok": 1}
    census = forge.check(synthetic, config)
    assert census.active_routed == 2 * (TOP_K * 3 * WIDTH * HIDDEN + 32 * HIDDEN)


def test_intern_s2_mobius_shares_experts_among_layers(synthetic):
    forge = Forge().body(layers=range(4))
    for n in range(2):
        forge.experts(f"model.meta_mlp.{n}.")
        forge.add("dense", f"model.meta_mlp.{n}.shared_expert.up_proj.weight", WIDTH, HIDDEN)
    for layer in range(4):
        forge.add("dense", f"model.layers.{layer}.attn_layer_scale", 1, 1, HIDDEN)
    forge.check(synthetic, {**CONFIG, "num_hidden_layers": 4})


def test_shared_experts_outside_layers_by_structure(synthetic):
    """The same under names no rule knows: numbered copies of the config's count are experts wherever they stand."""
    forge = Forge().body(layers=range(4))
    for n in range(2):
        forge.add("dense", f"model.commons.{n}.chooser.weight", EXPERTS, HIDDEN)
        for e in range(EXPERTS):
            forge.add("routed", f"model.commons.{n}.pool.{e}.ga.weight", WIDTH, HIDDEN)
            forge.add("routed", f"model.commons.{n}.pool.{e}.be.weight", WIDTH, HIDDEN)
    forge.check(synthetic, {**CONFIG, "num_hidden_layers": 4}, inferred=True)


def test_experts_on_the_rows_of_a_matrix(synthetic):
    """DBRX's and Nomic's `experts.mlp.w1`, [experts x width, hidden]; and the same under names no rule knows."""
    config = {**CONFIG, "moe_intermediate_size": None, "intermediate_size": None, "n_inner": 96}
    for module, inferred in (("mlp.experts.mlp", False), ("net.bank", True)):
        forge = Forge().body()
        for layer in range(2):
            forge.add("dense", f"model.layers.{layer}.mlp.router.layer.weight", EXPERTS, HIDDEN)
            for name in ("w1", "w2"):
                forge.add("routed", f"model.layers.{layer}.{module}.{name}", EXPERTS * 96, HIDDEN)
        assert forge.check(synthetic, config, inferred=inferred).common("count") == EXPERTS


def test_attention_residuals_and_engrams(synthetic):
    """Alice AI's residual mixers; a DeepSeek-V4.1 layer's n-gram table and its projections."""
    forge = qwen()
    for layer in range(2):
        forge.add("dense", f"model.layers.{layer}.attn_res_proj.weight", 1, HIDDEN)
        forge.add("dense", f"model.layers.{layer}.mlp_res_norm_weight", HIDDEN)
    forge.add("lookup", "model.layers.1.engram.embed.weight", 1000, 32)
    forge.add("dense", "model.layers.1.engram.wkv.weight", 96, 96).add(
        "dense", "model.layers.1.engram.q_weight", 4, HIDDEN
    )
    forge.check(synthetic)


# Experts and top-k that differ by layer.

PER_LAYER = {
    "a list": {"num_experts": [4, 6], "num_experts_per_tok": [2, 3]},
    "per layer": {"num_experts_per_layer": [4, 6], "num_experts_per_tok_per_layer": [2, 3]},
    "short names": {
        "num_experts": None,
        "experts_per_layer": [4, 6],
        "num_experts_per_tok": None,
        "top_k_per_layer": [2, 3],
    },
    "objects": {"num_experts": {"0": 4, "1": 6}, "num_experts_per_tok": {"0": 2, "1": 3}},
    "sections": {"per_layer_config": {"1": {"num_experts": 6, "num_experts_per_tok": 3}}},
    "blocks": {
        "num_hidden_layers": None,
        "num_experts": None,
        "num_experts_per_tok": None,
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"moe": {"num_local_experts": n, "num_experts_per_tok": k}}}
            for n, k in ((4, 2), (6, 3))
        ],
    },
    "by number": {"num_experts": 6, "n_routed_experts_by_layer": {"0": 4}, "num_experts_per_tok_by_layer": {"1": 3}},
}


@pytest.mark.parametrize("said", PER_LAYER.values(), ids=PER_LAYER)
def test_experts_and_top_k_by_layer(said, synthetic):
    """Pruned and searched models (REAP, Puzzle): counted as each layer is."""
    forge = Forge().body().experts("model.layers.0.mlp.", 4).experts("model.layers.1.mlp.", 6)
    census = forge.check(synthetic, {**CONFIG, **said})
    assert [(pool.count, pool.top_k) for pool in census.pools] == [(4, 2), (6, 3)]
    assert census.active_routed == (2 + 3) * 3 * WIDTH * HIDDEN
    assert census.model_shape().active_parameters == census.active


def test_a_list_for_the_moe_layers_alone(synthetic):
    forge = Forge().body(layers=range(3)).add("dense", "model.layers.0.mlp.up_proj.weight", 96, HIDDEN)
    forge.experts("model.layers.1.mlp.", 4).experts("model.layers.2.mlp.", 6)
    said = {"num_hidden_layers": 3, "num_experts": [4, 6], "first_k_dense_replace": 1}
    census = forge.check(synthetic, {**CONFIG, **said})
    assert [pool.count for pool in census.pools] == [4, 6]
    assert census.warnings == []
    said = {"num_hidden_layers": 3, "num_experts": None, "num_experts_per_moe_layer": [4, 6]}
    assert [pool.count for pool in forge.check(synthetic, {**CONFIG, **said}).pools] == [4, 6]


def test_top_k_of_a_section_for_experts(synthetic):
    """torchtitan's `moe_args`, with a plain `top_k`."""
    said = {"num_experts": None, "num_experts_per_tok": None, "moe_args": {"num_experts": EXPERTS, "top_k": TOP_K}}
    assert qwen().check(synthetic, {**CONFIG, **said}).common("top_k") == TOP_K


# Packings.


def packed_fp8(forge, name, rows, columns, role):
    forge.add(role, f"{name}.weight", rows, columns, dtype="F8_E4M3")
    forge.add("none", f"{name}.weight_scale", rows, 1, dtype="F32", parameters=0)


def packed_nvfp4(forge, name, rows, columns, role, scales=("weight_scale", "weight_scale_2")):
    forge.add(role, f"{name}.weight", rows, columns // 2, dtype="U8", parameters=rows * columns)
    forge.add("none", f"{name}.{scales[0]}", rows, columns // 16, dtype="F8_E4M3", parameters=0)
    forge.add("none", f"{name}.{scales[1]}", dtype="F32", parameters=0)


def packed_mx(forge, name, rows, columns, role, scale="weight_scale", dtype="F4"):
    forge.add(role, f"{name}.weight", rows, columns, dtype=dtype)
    forge.add("none", f"{name}.{scale}", rows, columns // 32, dtype="F8_E8M0", parameters=0)


def packed_exl3(forge, name, rows, columns, role, signs=("suh", "svh"), flag="mcg"):
    shape = (columns // 16, rows // 16, 48)
    forge.add(role, f"{name}.trellis", *shape, dtype="I16", parameters=rows * columns)
    forge.add("none", f"{name}.{signs[0]}", columns, dtype="F16", parameters=0)
    forge.add("none", f"{name}.{signs[1]}", rows, dtype="F16", parameters=0)
    forge.add("none", f"{name}.{flag}", dtype="I32", parameters=0)


def plain(forge, name, rows, columns, role):
    forge.add(role, f"{name}.weight", rows, columns)


def mixed(packs):
    """Two layers whose experts are packed by number: `packs[layer][expert]`."""
    forge = Forge().body()
    for layer, by_expert in enumerate(packs):
        forge.add("dense", f"model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN)
        for expert, pack in enumerate(by_expert):
            at = f"model.layers.{layer}.mlp.experts.{expert}"
            for name, rows, columns in (("gate_proj", 32, 64), ("up_proj", 32, 64), ("down_proj", 64, 32)):
                pack(forge, f"{at}.{name}", rows, columns, "routed")
    return forge


@pytest.mark.parametrize(
    ("packs", "formats"),
    [
        ([[packed_fp8] * 3 + [plain]] * 2, {"fp8_channel", "bf16"}),
        ([[packed_nvfp4] * 2 + [packed_fp8] * 2] * 2, {"nvfp4", "fp8_channel", "bf16"}),
        ([[packed_nvfp4] * 4, [packed_fp8, plain, plain, packed_nvfp4]], {"nvfp4", "fp8_channel", "bf16"}),
        ([[packed_mx] * 4, [packed_exl3] * 4], {"mxfp4", "exl3", "bf16"}),
    ],
    ids=["one expert left", "half and half", "by layer and expert", "mx and exl3"],
)
def test_formats_mixed_under_one_name(packs, formats, synthetic):
    """An expert no calibration token reached stays in BF16; a scale describes the tensor beside it and no other."""
    census = mixed(packs).check(synthetic)
    assert set(census.by_format()) == formats
    assert census.common("count") == EXPERTS
    assert all(pool.parameters == EXPERTS * 3 * WIDTH * HIDDEN for pool in census.pools)


@pytest.mark.parametrize(
    ("pack", "name"),
    [
        (lambda *a: packed_nvfp4(*a, scales=("scale", "scale2")), "nvfp4"),
        (lambda *a: packed_nvfp4(*a, scales=("scale", "scale_2")), "nvfp4"),
        (lambda *a: packed_nvfp4(*a, scales=("weight_scale", "weight_global_scale")), "nvfp4"),
        (lambda *a: packed_mx(*a, scale="scale"), "mxfp4"),
        (lambda *a: packed_mx(*a, scale="weight_scale_inv"), "mxfp4"),
        (lambda *a: packed_mx(*a, dtype="F6_E2M3"), "mxfp6"),
        (lambda *a: packed_mx(*a, dtype="F8_E4M3", scale="weight_scale_inv"), "mxfp8"),
        (lambda *a: packed_mx(*a, dtype="F8_E5M2", scale="scale"), "mxfp8"),
        (lambda *a: packed_exl3(*a, signs=("su", "sv"), flag="mul1"), "exl3"),
    ],
    ids=["scale2", "scale_2", "global", "F4 scale", "F4 inv", "F6", "MXFP8 inv", "E5M2", "EXL3 old signs"],
)
def test_packings_of_numbered_experts(pack, name, synthetic):
    census = mixed([[pack] * EXPERTS] * 2).check(synthetic)
    assert set(census.by_format()) == {name, "bf16"}


def bnb(forge, name, weights, role, *, kind="nf4", nested=True):
    forge.add(role, name, weights // 2, 1, dtype="U8", parameters=weights)
    forge.add("none", f"{name}.absmax", weights // 64, dtype="U8" if nested else "F32", parameters=0)
    forge.add("none", f"{name}.quant_map", 16, dtype="F32", parameters=0)
    if nested:
        forge.add("none", f"{name}.nested_absmax", 1, dtype="F32", parameters=0)
        forge.add("none", f"{name}.nested_quant_map", 256, dtype="F32", parameters=0)
    forge.add("none", f"{name}.quant_state.bitsandbytes__{kind}", 90, dtype="U8", parameters=0)


@pytest.mark.parametrize(("kind", "nested"), [("nf4", True), ("fp4", False)])
def test_bitsandbytes_on_bare_parameters(kind, nested, synthetic):
    """transformers 5 keeps experts in one parameter without `.weight`; bitsandbytes' state-dict hook packs it."""
    forge = Forge().body()
    for layer in range(2):
        forge.add("dense", f"model.layers.{layer}.mlp.gate.weight", EXPERTS, HIDDEN)
        for name, weights in (("gate_up_proj", 4 * 64 * 64), ("down_proj", 4 * 64 * 32)):
            bnb(forge, f"model.layers.{layer}.mlp.experts.{name}", weights, "routed", kind=kind, nested=nested)
    census = forge.check(synthetic)
    assert census.common("count") == EXPERTS
    assert set(census.by_format()) == {f"bnb_{kind}", "bf16"}


def mlx(forge, name, role, *shape, bits=4, group=64, mode="affine"):
    *outer, columns = shape
    forge.add(role, f"{name}.weight", *outer, columns * bits // 32, dtype="U32", parameters=prod(shape))
    affine = mode == "affine"
    forge.add("none", f"{name}.scales", *outer, columns // group, dtype="BF16" if affine else "U8", parameters=0)
    if affine:
        forge.add("none", f"{name}.biases", *outer, columns // group, parameters=0)


def test_mlx_bits_by_path(synthetic):
    """4 bits in one layer and 8 in the next, by the overrides of mlx-lm's mixed quantisation; heads left plain."""
    forge = Forge().body()
    for layer, bits in enumerate((4, 8)):
        at = f"model.layers.{layer}.mlp"
        mlx(forge, f"{at}.gate", "dense", EXPERTS, HIDDEN, bits=8)
        for name in ("gate_proj", "up_proj"):
            mlx(forge, f"{at}.switch_mlp.{name}", "routed", EXPERTS, 64, HIDDEN, bits=bits)
        mlx(forge, f"{at}.switch_mlp.down_proj", "routed", EXPERTS, HIDDEN, 64, bits=6 if bits == 4 else 8)
    over = {f"model.layers.{n}.mlp.gate": {"group_size": 64, "bits": 8} for n in range(2)}
    for name, bits in (("gate_proj", 8), ("up_proj", 8), ("down_proj", 8)):
        over[f"model.layers.1.mlp.switch_mlp.{name}"] = {"group_size": 64, "bits": bits}
    over["model.layers.0.mlp.switch_mlp.down_proj"] = {"group_size": 64, "bits": 6}
    config = {**CONFIG, "moe_intermediate_size": 64, "quantization": {"group_size": 64, "bits": 4, **over}}
    census = forge.check(synthetic, config)
    assert set(census.by_format()) == {"bf16", "int4", "int6", "int8"}


@pytest.mark.parametrize(("mode", "bits", "group"), [("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)])
def test_mlx_byte_scales_need_no_config(mode, bits, group, synthetic):
    """Absorbed attention (embed_q, unembed_out) and stacked experts; the words per scale say the format."""
    forge = Forge().body()
    for layer in range(2):
        at = f"model.layers.{layer}."
        for name in ("embed_q", "unembed_out"):
            mlx(forge, f"{at}self_attn.{name}", "dense", 4, 64, 64, bits=bits, group=group, mode=mode)
        forge.add("dense", f"{at}mlp.gate.weight", EXPERTS, HIDDEN)
        for name in ("gate_proj", "up_proj", "down_proj"):
            mlx(forge, f"{at}mlp.switch_mlp.{name}", "routed", EXPERTS, 64, 64, bits=bits, group=group, mode=mode)
    census = forge.check(synthetic, {**CONFIG, "moe_intermediate_size": 64})
    assert set(census.by_format()) == {"bf16", mode}


def test_the_embedding_s_row_has_its_scale(synthetic):
    """A step reads one row: 64 weights of 8 bits, one scale and one bias in BF16; the head whole."""
    forge = qwen()
    plain_bytes = forge.check(synthetic).dense_bytes
    packed = Forge()
    for row in forge.rows:
        if row[0] != "model.embed_tokens.weight":
            packed.rows.append(row)
    packed.expected = dict(forge.expected, dense=forge.expected["dense"] - VOCABULARY * HIDDEN)
    mlx(packed, "model.embed_tokens", "dense", VOCABULARY, HIDDEN, bits=8)
    census = packed.check(synthetic, {**CONFIG, "quantization": {"group_size": 64, "bits": 8}})
    assert census.dense_bytes == plain_bytes - 2 * HIDDEN + HIDDEN + 4
    assert census.model_shape().dense_bytes == census.dense_bytes


@pytest.mark.parametrize("joint", ["{}.", "{}_"], ids=["released", "as engines save them"])
def test_inkling_in_nvfp4(joint, synthetic):
    """`experts.w13_weight` with `.scale`, `.scale2`, `.input_amax`, `.original_shape`; or with `_scale`, `_scale_2`."""
    forge = Forge().body()
    second = "scale2" if joint == "{}." else "scale_2"
    for layer in range(2):
        at = f"model.layers.{layer}.mlp."
        forge.add("dense", f"{at}gate.weight", EXPERTS, HIDDEN)
        for name, rows, columns in (("w13_weight", 64, 64), ("w2_weight", 64, 32)):
            parameters = EXPERTS * rows * columns
            forge.add("routed", f"{at}experts.{name}", EXPERTS, rows, columns // 2, dtype="U8", parameters=parameters)
            full = joint.format(f"{at}experts.{name}")
            forge.add("none", f"{full}scale", EXPERTS, rows, columns // 16, dtype="F8_E4M3", parameters=0)
            forge.add("none", f"{full}{second}", EXPERTS, dtype="F32", parameters=0)
            if joint == "{}.":
                forge.add("none", f"{full}input_amax", 1, dtype="F32", parameters=0)
                forge.add("none", f"{full}original_shape", 3, dtype="I64", parameters=0)
    census = forge.check(synthetic)
    assert set(census.by_format()) == {"bf16", "nvfp4"}
    assert census.common("count") == EXPERTS


def test_engines_and_trainers_names_of_experts(synthetic):
    """vLLM's `experts.routed_experts.w13_weight`; DeepSpeed-MoE's `deepspeed_moe.experts.deepspeed_experts.N`."""
    stacked, numbered = Forge().body(), Forge().body()
    for layer in range(2):
        at = f"model.layers.{layer}.mlp."
        stacked.add("dense", f"{at}gate.weight", EXPERTS, HIDDEN)
        stacked.add("routed", f"{at}experts.routed_experts.w13_weight", EXPERTS, 2 * WIDTH, HIDDEN)
        stacked.add("routed", f"{at}experts.routed_experts.w2_weight", EXPERTS, HIDDEN, WIDTH)
        numbered.add("dense", f"{at}deepspeed_moe.gate.wg.weight", EXPERTS, HIDDEN)
        for e in range(EXPERTS):
            numbered.add("routed", f"{at}deepspeed_moe.experts.deepspeed_experts.{e}.up_proj.weight", WIDTH, HIDDEN)
    stacked.check(synthetic)
    numbered.check(synthetic)


def test_text_and_vision_experts_in_one_row_with_gate_and_up_fused(synthetic):
    """ERNIE-4.5-VL as Paddle writes it: eight experts, the last four for images and a quarter as wide."""
    forge = Forge().body(prefix="ernie.")
    for layer in range(2):
        at = f"ernie.layers.{layer}.mlp."
        forge.add("dense", f"{at}gate.weight", HIDDEN, 4, dtype="F32").add("dense", f"{at}gate.weight_1", HIDDEN, 4)
        for e in range(8):
            width = WIDTH if e < 4 else WIDTH // 4
            forge.add("routed", f"{at}experts.{e}.up_gate_proj.weight", HIDDEN, 2 * width)
            forge.add("routed", f"{at}experts.{e}.down_proj.weight", width, HIDDEN)
    said = {"moe_num_experts": [4, 4], "moe_intermediate_size": [32, 8], "moe_k": 2}
    census = forge.check(synthetic, {**CONFIG, **said, "num_experts": None, "num_experts_per_tok": None})
    assert {(pool.modality, pool.count) for pool in census.pools} == {("text", 4), ("vision", 4)}
    assert census.active_routed == 2 * 2 * 3 * WIDTH * HIDDEN


def test_openai_s_own_names(synthetic):
    """`block.N.mlp.mlp1_weight.blocks`, `.scales`, and a bias beside them that is the experts'."""
    forge = Forge().add("dense", "embedding.weight", VOCABULARY, HIDDEN)
    for layer in range(2):
        at = f"block.{layer}."
        forge.add("dense", f"{at}attn.norm.scale", HIDDEN).add("dense", f"{at}attn.sinks", 4)
        forge.add("dense", f"{at}attn.qkv.weight", 128, HIDDEN).add("dense", f"{at}attn.out.weight", HIDDEN, 64)
        forge.add("dense", f"{at}mlp.norm.scale", HIDDEN).add("dense", f"{at}mlp.gate.weight", EXPERTS, HIDDEN)
        for name, rows in (("mlp1", 128), ("mlp2", 64)):
            blocks = (EXPERTS, rows, 2, 16)
            forge.add("routed", f"{at}mlp.{name}_weight.blocks", *blocks, dtype="U8", parameters=2 * prod(blocks))
            forge.add("none", f"{at}mlp.{name}_weight.scales", EXPERTS, rows, 2, dtype="U8", parameters=0)
            forge.add("routed", f"{at}mlp.{name}_bias", EXPERTS, rows)
    forge.add("dense", "norm.scale", HIDDEN).add("dense", "unembedding.weight", VOCABULARY, HIDDEN)
    config = {"num_hidden_layers": 2, "num_experts": EXPERTS, "experts_per_token": TOP_K, "vocab_size": VOCABULARY}
    forge.check(synthetic, {**config, "hidden_size": HIDDEN, "intermediate_size": 64})


def test_bfloat16_in_unsigned_integers(synthetic):
    """Paddle's ERNIE: numpy has no bfloat16."""
    forge = qwen()
    forge.rows = [(name, "U16", shape) for name, _, shape in forge.rows]
    assert set(forge.check(synthetic).by_format()) == {"bf16"}


def test_paddle_s_weight_only_integers(synthetic):
    """ERNIE-4.5 2Bits: dense parts in 8 bits, first experts in 4, the rest in 2; rows of scales tell."""
    forge = Forge()

    def pack(role, name, bits, outputs, inputs):
        shape = {8: (outputs, inputs), 4: (outputs // 2, inputs), 2: (inputs // 4, outputs)}[bits]
        dtype = "U8" if bits == 2 else "I8"
        forge.add(role, f"{name}.quant_weight", *shape, dtype=dtype, parameters=outputs * inputs)
        scales = ("U8", (inputs // 32, outputs)) if bits == 2 else ("BF16", (outputs,))
        forge.add("none", f"{name}.weight_scale", *scales[1], dtype=scales[0], parameters=0)
        for leaf, kind in (("super_scales", "BF16"), ("code_scale", "F32"), ("code_zp", "F32")) if bits == 2 else ():
            forge.add("none", f"{name}.{leaf}", outputs, dtype=kind, parameters=0)

    forge.add("dense", "ernie.embed_tokens.weight", VOCABULARY, HIDDEN)
    for layer, bits in enumerate((4, 2)):
        at = f"ernie.layers.{layer}."
        pack("dense", f"{at}self_attn.qkv_proj", 8, 128, HIDDEN)
        pack("dense", f"{at}self_attn.o_proj", 8, HIDDEN, 64)
        forge.add("dense", f"{at}mlp.gate.weight", HIDDEN, EXPERTS, dtype="F32")
        for expert in range(EXPERTS):
            pack("routed", f"{at}mlp.experts.{expert}.up_gate_proj", bits, 2 * WIDTH, HIDDEN)
            pack("routed", f"{at}mlp.experts.{expert}.down_proj", bits, HIDDEN, WIDTH)
    forge.add("dense", "lm_head.weight", HIDDEN, VOCABULARY)
    assert {"int8", "int4", "int2"} < set(forge.check(synthetic).by_format())


# Files.


def write(folder, rows, name="model.safetensors"):
    """A safetensors file of zeros that takes no room, and a config beside it."""
    folder.mkdir(exist_ok=True)
    header, end = {}, 0
    for tensor, dtype, shape in rows:
        begin, end = end, end + prod(shape) * DTYPE_BITS[dtype] // 8
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with (folder / name).open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.parametrize(
    "name", ["pytorch_model-00007-TP-{}.safetensors", "model{}-mp8.safetensors", "mp_rank_0{}_w.safetensors"]
)
def test_slices_of_ranks_are_refused_by_name(name, tmp_path):
    for rank in range(2):
        write(tmp_path / "tp", qwen().rows, name.format(rank))
    with pytest.raises(SlicedWeightsError, match="tensor-parallel slices"):
        folders.open_folder(tmp_path / "tp", name="tp")
    one = folders.open_folder(tmp_path / "tp", name="tp", weights=name.format(0))
    assert any("tensor-parallel slices" in warning for warning in one.warnings)


def test_what_lies_beside_is_said(tmp_path):
    write(tmp_path / "m", qwen().rows)
    write(tmp_path / "m", [("mtp.fc.weight", "BF16", (64, 128))], "model_mtp.safetensors")
    write(tmp_path / "m", [("x.lora_A.weight", "BF16", (8, 64))], "adapter_model.safetensors")
    found = take_census(folders.open_folder(tmp_path / "m", name="m"))
    assert any("adapter_model.safetensors, model_mtp.safetensors" in warning for warning in found.warnings)


def test_adapters(tmp_path, synthetic):
    rows = [
        (f"base_model.model.model.layers.{n}.mlp.experts.0.up_proj.lora_{s}.weight", "BF16", (8, 64))
        for n in range(2)
        for s in "AB"
    ]
    with pytest.raises(AdapterError, match="is a LoRA adapter, not a model"):
        synthetic.census(rows)
    mine = {"adapter_config.json": {"base_model_name_or_path": "Qwen/Qwen3-30B-A3B"}}
    with pytest.raises(AdapterError, match="adapter of Qwen/Qwen3-30B-A3B"):
        synthetic.census(rows, documents=mine)
    both = qwen().renamed(lambda name: f"base_model.model.{name}")
    for name, _, shape in rows:
        both.add("dense", name, *shape)
    assert any("LoRA adapter's, not merged" in warning for warning in both.check(synthetic).warnings)


# What must not be dense in silence.


def test_more_numbered_experts_beside_known_ones_are_in_doubt(synthetic):
    """GroveMoE: `chunk_experts.#`, each shared by several routed experts; their number is in no field of its own."""
    forge = qwen()
    for layer in range(2):
        for expert in range(2 * EXPERTS):
            forge.add("none", f"model.layers.{layer}.mlp.chunk_experts.{expert}.up_proj.weight", 8, HIDDEN)
    census = synthetic.census(forge.rows, CONFIG)
    assert census.unclassified() == ["model.layers.#.mlp.chunk_experts.#.up_proj.weight"]


def olmo_core(kind="feed_forward_moe"):
    """OLMo-core's own names: experts stacked on the rows, the router flat."""
    forge = Forge().add("dense", "embeddings.weight", VOCABULARY, HIDDEN)
    for layer in range(2):
        at = f"blocks.{layer}."
        for name in ("w_q", "w_k", "w_v", "w_out"):
            forge.add("dense", f"{at}attention.{name}.weight", HIDDEN, HIDDEN)
        for name in ("attention_norm", "feed_forward_norm"):
            forge.add("dense", f"{at}{name}.weight", HIDDEN)
        forge.add("dense", f"{at}{kind}.router.weight", EXPERTS * HIDDEN)
        for name in ("w1", "w2", "w3"):
            forge.add("routed", f"{at}{kind}.experts.mlp.{name}", EXPERTS * WIDTH, HIDDEN)
    forge.add("dense", "lm_head.norm.weight", HIDDEN)
    return forge.add("dense", "lm_head.w_out.weight", VOCABULARY, HIDDEN)


OLMO_MOE = {"num_experts": EXPERTS, "hidden_size": WIDTH, "router": {"top_k": TOP_K}}
OLMO = {"d_model": HIDDEN, "vocab_size": VOCABULARY, "n_layers": 2}


@pytest.mark.parametrize("kind", ["feed_forward_moe", "sparse_ffn"])
def test_experts_in_a_deep_section(kind, synthetic):
    """OLMo-core: `model.block.feed_forward_moe`; the width is there too, under the name of the model's."""
    config = {"model": {**OLMO, "block": {"attention": {"n_heads": 4}, "feed_forward_moe": OLMO_MOE}}}
    census = olmo_core(kind).check(synthetic, config, inferred=True)
    assert {(pool.count, pool.top_k) for pool in census.pools} == {(EXPERTS, TOP_K)}


def test_deep_sections_that_differ_say_nothing(synthetic):
    other = {**OLMO_MOE, "num_experts": 2 * EXPERTS}
    blocks = {"block": {"feed_forward_moe": OLMO_MOE}, "block_overrides": {"1": {"feed_forward_moe": other}}}
    census = synthetic.census(olmo_core("sparse_ffn").rows, {"model": {**OLMO, **blocks}})
    assert census.unclassified() == [f"blocks.#.sparse_ffn.experts.mlp.{name}" for name in ("w1", "w2", "w3")]


def test_what_is_called_experts_beside_a_router_is_never_dense(synthetic):
    census = synthetic.census(olmo_core("sparse_ffn").rows, OLMO)
    assert census.unclassified() == [f"blocks.#.sparse_ffn.experts.mlp.{name}" for name in ("w1", "w2", "w3")]


def test_a_decoder_called_language(synthetic):
    """DeepSeek-VL2."""
    forge = Forge().body("language.model.", head="language.lm_head.weight")
    for layer in range(2):
        forge.experts(f"language.model.layers.{layer}.mlp.")
    assert forge.check(synthetic).by_role()["attention"]["parameters"] == 2 * 192 * HIDDEN


# The KV cache: 2 bytes x 2 kv heads x (16 + 16) a layer that has one.


def fused(*rows):
    """Layers of one fused projection each, of so many rows, a gate beside the larger ones; experts as in Ling."""
    forge = Forge().add("dense", "model.word_embeddings.weight", VOCABULARY, HIDDEN)
    for layer, height in enumerate(rows):
        at = f"model.layers.{layer}."
        forge.add("dense", f"{at}attention.query_key_value.weight", height, HIDDEN)
        forge.add("dense", f"{at}attention.dense.weight", HIDDEN, 64)
        if height > 128:
            forge.add("dense", f"{at}attention.g_proj.weight", 64, HIDDEN).add(
                "dense", f"{at}attention.g_norm.weight", 64
            )
        forge.experts(f"{at}mlp.")
    return forge.add("dense", "lm_head.weight", VOCABULARY, HIDDEN)


def test_groups_of_linear_layers(synthetic):
    """Ring-linear: the last layer of each group of two attends, and so does the fifth, past the last whole group."""
    config = {**CONFIG, "num_hidden_layers": 5, "layer_group_size": 2}
    census = fused(192, 128, 192, 128, 128).check(synthetic, config)
    assert kv_bytes_per_token(census) == (3 * 128, 3 * 128)
    layers = census.model_shape().layers
    assert [layer.attention.kind for layer in layers] == ["linear", "gqa", "linear", "gqa", "gqa"]
    assert layers[0].attention.state_elements == 4 * 16 * 16


def test_a_fused_projection_that_contradicts_the_heads(synthetic):
    census = fused(192, 128).check(synthetic)
    assert kv_bytes_per_token(census) == (None, None)
    wanted = "layer 0's query_key_value has 192 rows, but 4 heads and 2 kv heads of 16 make 128"
    assert any(wanted in warning for warning in census.warnings)
    assert kv_bytes_per_token(fused(128, 128).check(synthetic)) == (2 * 128, 2 * 128)


def test_layers_that_slide_by_flag(synthetic):
    """SmallThinker: 1 slides, 0 looks back all the way."""
    config = {**CONFIG, "sliding_window_size": 4096, "sliding_window_layout": [0, 1]}
    assert kv_bytes_per_token(qwen().check(synthetic, config)) == (2 * 128, 128)
    assert kv_bytes_per_token(qwen().check(synthetic, {**config, "sliding_window_layout": [0, 0]})) == (
        2 * 128,
        2 * 128,
    )
