"""Names of real checkpoints and of layouts no library saves: remote code, native releases, conversions.

`tests/data/names.json` holds the tensor names of 13 published index files and the module names of published modelopt
maps, numbers removed, each with its source.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moegauge.counting.roles import layer_place, role_of, template_of
from moegauge.counting.storage import MAIN_LEAVES, split_leaf

NAMES = json.loads((Path(__file__).resolve().parents[1] / "data" / "names.json").read_text())


def role(name):
    """The role of a tensor's name, scales taken as what they describe."""
    template = template_of(name)
    module, leaf = split_leaf(template)
    found = role_of(module if leaf in MAIN_LEAVES else template)
    return role_of(module) if found == "unclassified" else found


@pytest.mark.parametrize("document", [d for d in NAMES if "templates" in d], ids=lambda d: d["name"])
def test_published_indexes(document):
    counts: dict[str, int] = {}
    for template, tensors in document["templates"].items():
        found = role(template.replace("{}", "7"))
        counts[found] = counts.get(found, 0) + tensors
        assert found != "unclassified", template
        assert (found == "routed_expert") == (".experts." in template), template
    assert sum(counts.values()) == document["tensors"]


@pytest.mark.parametrize("document", [d for d in NAMES if "modules" in d], ids=lambda d: d["name"])
def test_published_module_names(document):
    for template in document["modules"]:
        if not template.endswith("experts"):  # the container of all experts is no tensor
            assert role_of(template.replace("{}", "#")) != "unclassified", template


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Kimi-K2.5: a wrapper, a vision tower, packed experts.
        ("language_model.model.layers.3.mlp.experts.17.gate_proj.weight_packed", "routed_expert"),
        ("language_model.model.layers.3.mlp.gate.e_score_correction_bias", "router"),
        ("language_model.lm_head.weight", "lm_head"),
        ("vision_tower.encoder.blocks.3.wqkv.weight", "vision"),
        ("mm_projector.linear_1.weight", "vision"),
        # Kimi-K3: latent experts.
        ("language_model.model.layers.3.block_sparse_moe.experts.17.w1.weight_packed", "routed_expert"),
        ("language_model.model.layers.3.block_sparse_moe.routed_expert_down_proj.weight", "dense_mlp"),
        # DeepSeek-V4, native names.
        ("embed.weight", "embedding"),
        ("head.weight", "lm_head"),
        ("layers.3.ffn.experts.7.w1.weight", "routed_expert"),
        ("layers.3.ffn.shared_experts.w2.weight", "shared_expert"),
        ("layers.3.ffn.gate.bias", "router"),
        ("layers.0.ffn.gate.tid2eid", "buffer"),
        ("layers.3.attn.wo_a.weight", "attention"),
        ("layers.3.hc_attn_fn", "norm"),
        ("mtp.0.e_proj.weight", "mtp"),
        ("mtp.0.ffn.experts.5.w3.weight", "mtp"),
        ("layers.2.engram.embed.weight", "lookup"),
        ("layers.2.engram.wkv.weight", "dense_mlp"),
        # Mistral, native names.
        ("tok_embeddings.weight", "embedding"),
        ("output.weight", "lm_head"),
        ("layers.1.experts.3.w2.weight", "routed_expert"),
        ("layers.1.gate.weight", "router"),
        ("layers.1.shared_experts.w1.weight", "shared_expert"),
        ("layers.0.feed_forward.w1.weight", "dense_mlp"),
        ("layers.1.attention.wkv_a_with_mqa.weight", "attention"),
        ("vision_encoder.transformer.layers.3.feed_forward.w1.weight", "vision"),
        # Arctic: a dense MLP beside the experts of every layer.
        ("model.layers.1.block_sparse_moe.experts.3.w1.weight", "routed_expert"),
        ("model.layers.1.residual_mlp.w1.weight", "dense_mlp"),
        ("model.layers.1.residual_layernorm.weight", "norm"),
        ("model.layers.0.block_sparse_moe.mlp.w1.weight", "dense_mlp"),
        # Grok-1 and Grok-2.
        ("model.layers.3.moe_block.experts.2.linear_v.weight", "routed_expert"),
        ("model.layers.3.moe_block.gate.weight", "router"),
        ("model.layers.3.attn.q_proj.weight", "attention"),
        ("model.layers.3.post_moe_norm.weight", "norm"),
        ("model.layers.3.block_sparse_moe.experts.2.w1.weight", "routed_expert"),
        ("model.layers.3.mlp.gate_proj.weight", "dense_mlp"),
        # Step3: experts in three stacks.
        ("model.layers.5.moe.gate_proj.weight", "routed_expert"),
        ("model.layers.5.moe.gate.weight", "router"),
        ("model.layers.5.moe.router_bias", "router"),
        ("model.layers.5.share_expert.up_proj.weight", "shared_expert"),
        # Hunyuan, Ling, LongCat, ERNIE, Nemotron.
        ("model.layers.5.mlp.gate.wg.weight", "router"),
        ("model.layers.5.mlp.shared_mlp.gate_and_up_proj.weight", "shared_expert"),
        ("model.word_embeddings.weight", "embedding"),
        ("model.layers.5.attention.query_key_value.weight", "attention"),
        ("model.layers.5.attention.dense.weight", "attention"),
        ("model.layers.5.mlp.gate.expert_bias", "router"),
        ("model.layers.5.mlp.router.classifier.weight", "router"),
        ("model.layers.5.mlp.router.e_score_correction_bias", "router"),
        ("model.layers.5.mlps.1.up_proj.weight", "dense_mlp"),
        ("model.layers.5.self_attn.0.kv_b_proj.weight", "attention"),
        ("model.ngram_embeddings.embedders.3.weight", "lookup"),
        ("model.layers.5.mlp.moe_statics.e_score_correction_bias", "router"),
        ("model.layers.5.mlp.gate.weight_1", "router"),
        ("backbone.layers.5.mixer.experts.3.up_proj.weight", "routed_expert"),
        ("backbone.layers.5.mixer.fc1_latent_proj.weight", "dense_mlp"),
        ("backbone.layers.5.mixer.in_proj.weight", "attention"),
        ("backbone.embeddings.weight", "embedding"),
        # Drafters.
        ("model.layers.61.eh_proj.weight", "mtp"),
        ("model.layers.61.shared_head.head.weight", "mtp"),
        ("mtp.layers.0.mlp.experts.3.up_proj.weight", "mtp"),
        ("mtp.fc.weight", "mtp"),
        ("mtp.pre_fc_norm_embedding.weight", "mtp"),
        ("model.mtp.layers.0.self_attn.q_proj.weight", "mtp"),
        ("model.mtp_block.0.self_attn.q_proj.weight", "mtp"),
        ("model.mtp_linear_proj.0.weight", "mtp"),
        ("model.mtp_layers.0.mlp.experts.3.up_proj.weight", "mtp"),
        # mlx-lm's conversions.
        ("model.layers.3.mlp.switch_mlp.up_proj.weight", "routed_expert"),
        # Gates of shared experts; tables looked up, not multiplied; KV scales.
        ("model.layers.5.mlp.shared_expert_gate.weight", "shared_expert"),
        ("model.embed_tokens_per_layer.weight", "lookup"),
        ("model.layers.5.self_attn.rotary_emb.inv_freq", "buffer"),
        ("model.layers.5.self_attn.k_scale", "quant_meta"),
    ],
)
def test_layouts_no_library_saves(name, expected):
    assert role(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.5.mlp.experts.3.mystery.weight",
        "model.layers.5.mystery.weight",
        "model.layers.5.self_attn.mystery_proj.weight",
        "model.mystery.layers.5.mlp.gate.weight",
        "mystery.weight",
        "weight",
        "model.layers.mlp.gate.weight",
        "model.layers.5.mlp.gate.weight.extra",
    ],
)
def test_what_no_rule_knows(name):
    assert role(name) == "unclassified"


def test_the_layer_s_number_is_the_stack_s():
    assert layer_place("model.layers.#.mlp.experts.#.up_proj.weight") == (13, "model.layers")
    assert layer_place("model.norm.weight").start == -1
    assert layer_place("h.#.attn.c_attn").start == 2
    # A number before the layer's makes its place vary; such names have no layer.
    assert layer_place("towers.#.layers.#.mlp").start == -1
