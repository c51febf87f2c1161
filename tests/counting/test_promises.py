"""Every promise of a config that the headers break is a warning that names both; a kept promise is none."""

from __future__ import annotations

import re

import pytest

from moegauge.counting.sources import release_layout

CONFIG = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 6,
    "intermediate_size": 12,
    "vocab_size": 10,
    "tie_word_embeddings": False,
}


def rows(config=CONFIG):
    return [tuple(t) for t in release_layout.tensors(config)]


def without(*words):
    return [row for row in rows() if not any(word in row[0] for word in words)]


def longer(extra):
    """Three layers stored, two promised; the third with this beside a decoder layer's tensors."""
    return [*rows({**CONFIG, "num_hidden_layers": 3}), *extra]


EH = [("model.layers.2.eh_proj.weight", "BF16", (8, 16)), ("model.layers.2.enorm.weight", "BF16", (8,))]
BROKEN = {
    "no experts": (without(".experts."), {}, "num_experts is 4, but no tensor is a routed expert"),
    "experts unpromised": (
        rows(),
        {"num_experts": None},
        "names no number of experts, but 4 experts are",
    ),
    "experts in a dense layer": (rows(), {"first_k_dense_replace": 1}, "makes layer 0 dense, but routed experts"),
    "no experts in one layer": (
        without("layers.0.mlp.experts"),
        {"mlp_layer_types": ["sparse", "sparse"]},
        "makes layer 0 mixture-of-experts, but no routed expert",
    ),
    "a layer too many": (longer([]), {}, "num_hidden_layers is 2, but the headers hold layer 2 too, without"),
    "no drafter": (
        rows(),
        {"num_nextn_predict_layers": 1},
        "predict_layers is 1, but no tensor of multi-token",
    ),
    "no head": (without("lm_head"), {}, "tie_word_embeddings is false, but no LM head is stored"),
    "a head too many": (
        rows(),
        {"tie_word_embeddings": True},
        "tie_word_embeddings is true, yet an LM head",
    ),
    "another width": (rows(), {"hidden_size": 16}, r"hidden_size is 16, but the embedding is \[10, 8\]"),
    "another vocabulary": (rows(), {"vocab_size": 20}, r"vocab_size is 20, but the embedding is \[10, 8\]"),
    "half experts": (
        rows(),
        {"moe_intermediate_size": 13},
        "moe_intermediate_size is 13, but layer 0 has no expert as",
    ),
    "no vision": (rows(), {"vision_config": {"depth": 2}}, "has vision_config, but no tensor of vision"),
    "no audio": (rows(), {"audio_config": {"depth": 2}}, "has audio_config, but no tensor of audio"),
    "not packed": (
        rows(),
        {"quantization_config": {"quant_method": "fp8"}},
        "method is 'fp8', but every weight is",
    ),
    "empty": (
        [(name, dtype, (0,) if ".experts." in name else shape) for name, dtype, shape in rows()],
        {},
        "24 tensors are empty: weights that were partitioned",
    ),
}


@pytest.mark.parametrize(("listed", "said", "warning"), BROKEN.values(), ids=BROKEN)
def test_a_broken_promise_is_said(listed, said, warning, synthetic):
    census = synthetic.census(listed, {**CONFIG, **said})
    assert any(re.search(warning, line) for line in census.warnings), census.warnings


KEPT = {
    "as promised": (rows(), {}),
    "a drafter": (longer(EH), {}),
    "a drafter promised": (longer(EH), {"num_nextn_predict_layers": 1}),
    "a bare stack": (without("lm_head"), {"architectures": ["Qwen3MoeModel"]}),
    "tied": (without("lm_head"), {"tie_word_embeddings": True}),
    "dense first": (
        [*without("layers.0.mlp"), ("model.layers.0.mlp.up_proj.weight", "BF16", (12, 8))],
        {"first_k_dense_replace": 1},
    ),
    "a padded vocabulary": ([(n, d, (16, 8) if s == (10, 8) else s) for n, d, s in rows()], {}),
    "vision": ([*rows(), ("visual.x.weight", "BF16", (2, 2))], {"vision_config": {"depth": 2}}),
}


@pytest.mark.parametrize(("listed", "said"), KEPT.values(), ids=KEPT)
def test_a_kept_promise_is_not(listed, said, synthetic):
    assert synthetic.census(listed, {**CONFIG, **said}).warnings == []


def stacked(name):
    return [
        (f"model.layers.{n}.mlp.{name}.{m}", "BF16", shape)
        for n in range(2)
        for m, shape in (("gate_up_proj", (4, 12, 8)), ("down_proj", (4, 8, 6)))
    ]


@pytest.mark.parametrize("name", ["experts", "switch_mlp"])
def test_experts_stored_twice_are_counted_once(name, synthetic):
    """Numbered and stacked under one name, or under two with one router."""
    census = synthetic.census([*rows(), *stacked(name)], CONFIG)
    once = synthetic.census(rows(), CONFIG)
    assert (census.routed, census.dense, census.active) == (once.routed, once.dense, once.active)
    assert census.parameters("duplicate") == once.routed
    assert census.routed_bytes == once.routed_bytes
    assert any("experts are stored twice in 2 layers" in line for line in census.warnings)


def test_two_pools_with_two_routers_are_two_pools(synthetic):
    """JetMoE routes attention too; equal sizes are no copy."""
    routers = [(f"model.layers.{n}.self_attention.experts.router.layer.weight", "BF16", (4, 8)) for n in range(2)]
    pools = [
        (f"model.layers.{n}.self_attention.experts.{m}.weight", "BF16", shape)
        for n in range(2)
        for m, shape in (("input_linear", (4, 12, 8)), ("output_linear", (4, 8, 6)))
    ]
    census = synthetic.census([*rows(), *routers, *pools], CONFIG)
    assert census.routed == 2 * synthetic.census(rows(), CONFIG).routed
    assert census.warnings == []
