"""Published configs laid out at full size, against what their authors and the Hub publish.

`tests/data/releases/*.json` were made by `scripts/make_release_headers.py`; each names its source.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RELEASES = sorted((Path(__file__).resolve().parents[1] / "data" / "releases").glob("*.json"))
# What the Hub's total has beside the model the config describes, in elements: known to the last digit.
HUB_EXTRAS = {
    # MTP layers transformers does not build.
    "zai-org/GLM-4.5": 5_539_962_272,
    "zai-org/GLM-4.5-Air": 3_616_573_568,
    "deepseek-ai/DeepSeek-R1": 13_463_426_304,
    # MTP and block scales: 13,463,426,304 + 41,540,496.
    "deepseek-ai/DeepSeek-V3": 13_504_966_800,
    # One E8M0 scale per 32 weights of the routed experts.
    "openai/gpt-oss-120b": 3_583_180_800,
    "openai/gpt-oss-20b": 597_196_800,
    # 23 correction biases of 128, which that total leaves out.
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": -23 * 128,
}
# Releases whose extra (MTP layers, scales) is not derived here; docs/counting.md says what is in it.
UNDERIVED = {
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "Qwen/Qwen3-30B-A3B-FP8",
    "deepseek-ai/DeepSeek-V3.2",
    "deepseek-ai/DeepSeek-V4-Flash",
    "deepseek-ai/DeepSeek-V4-Pro",
    "inclusionAI/Ling-3.0-flash",
    "meituan-longcat/LongCat-Flash-Chat",
    "poolside/Laguna-XS-2.1",
    "tencent/Hy3",
    "zai-org/GLM-5",
    "zai-org/GLM-5.2",
}
EXACT = {
    "moonshotai/Kimi-K2.5": (1_026_879_376_368, 1_014_686_023_680),
    "MiniMaxAI/MiniMax-M2": (228_689_764_864, 224_680_476_672),
}


DOCUMENTS = [json.loads(path.read_text()) for path in RELEASES]
_COUNTED = {}


def those_with(field):
    """The releases for which `field` is published."""
    return pytest.mark.parametrize(
        "document", [d for d in DOCUMENTS if field is None or d["published"][field]], ids=lambda d: d["repo"]
    )


@pytest.fixture
def counted(synthetic):
    """The census of a release document, counted once."""

    def count(document):
        if document["repo"] not in _COUNTED:
            rows = synthetic.expand(document["headers"])
            _COUNTED[document["repo"]] = synthetic.census(rows, document["config"])
        return _COUNTED[document["repo"]]

    return count


@those_with(None)
def test_total_and_routed(document, counted):
    census = counted(document)
    assert census.unclassified() == []
    assert census.routed == document["oracle"]["routed"]
    integers = census.to_json()["stored"]["buffer_elements"]
    buffers = document["oracle"]["buffers"] - integers
    assert census.total in (document["oracle"]["parameters"], document["oracle"]["parameters"] + buffers)
    if document["repo"] in EXACT:
        assert (census.total, census.routed) == EXACT[document["repo"]]


@those_with("hf_safetensors_total")
def test_total_is_the_hub_s(document, counted):
    extra = document["published"]["hf_safetensors_total"] - counted(document).total
    if document["repo"] in UNDERIVED:
        assert 0 < extra < 0.03 * counted(document).total
    else:
        assert extra == HUB_EXTRAS.get(document["repo"], 0)


@those_with("total_params")
def test_total_is_the_authors_up_to_their_rounding(document, counted):
    assert counted(document).total == pytest.approx(document["published"]["total_params"], rel=0.04)


@those_with("active_params")
def test_active_is_the_authors_in_some_convention(document, counted):
    """Authors count the input embedding, the head, both or neither; none is further than 12 % from all three."""
    census = counted(document)
    embedding = 0 if census.tied else census.parameters("embedding")
    counts = [census.active, census.active - embedding, census.active - embedding - census.parameters("lm_head")]
    assert min(abs(count / document["published"]["active_params"] - 1) for count in counts) < 0.12


@those_with(None)
def test_shape_reconciles(document, counted):
    census = counted(document)
    shape = census.model_shape()
    assert shape.active_parameters == census.active
    assert shape.bytes_per_token == census.dense_bytes + census.routed_bytes


# KV bytes in bf16 per token of context, by hand from each config: all layers, and beyond the windows.
KV = {
    "openai/gpt-oss-120b": (36 * 2 * 8 * 64 * 2, 18 * 2 * 8 * 64 * 2),  # every second layer slides
    "deepseek-ai/DeepSeek-V3": (61 * (512 + 64) * 2,) * 2,  # the latent and the rotary key
    "meituan-longcat/LongCat-Flash-Chat": (28 * 2 * (512 + 64) * 2,) * 2,  # two attentions a layer
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (12 * 2 * 2 * 256 * 2,) * 2,  # 36 of 48 layers keep a state, not a cache
    "moonshotai/Kimi-Linear-48B-A3B-Instruct": (6 * (512 + 64) * 2,) * 2,  # transformers' default: 6 of 27 layers
    "XiaomiMiMo/MiMo-V2-Flash": ((39 * 8 + 9 * 4) * (192 + 128) * 2, 9 * 4 * (192 + 128) * 2),  # values narrower
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (6 * 2 * 2 * 128 * 2,) * 2,  # 6 attention layers of 52
    "deepseek-ai/DeepSeek-V4-Pro": (None, None),  # compressed, of no kind described here
}


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d["repo"] in KV], ids=lambda d: d["repo"])
def test_kv_cache(document, counted):
    step = counted(document).to_json()["bytes_per_token"]
    found = (step["kv_per_context_token"], step["kv_per_context_token_beyond_windows"])
    assert found == KV[document["repo"]]
    if None not in found:
        assert 2 * counted(document).model_shape().cache_elements(1) == found[0]


@pytest.mark.parametrize(
    ("repo", "layers", "elements"),
    [
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 36, 32 * 128 * 128),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 23, 64 * 64 * 128),
        ("ai21labs/Jamba-v0.1", 28, 2 * 4096 * 16),
    ],
)
def test_recurrent_state(repo, layers, elements, counted):
    shape = counted(next(d for d in DOCUMENTS if d["repo"] == repo)).model_shape()
    linear = [layer.attention for layer in shape.layers if layer.attention.kind == "linear"]
    assert [a.state_elements for a in linear] == [elements] * layers


def test_longcat_s_active_count_is_a_mean(counted):
    """12 choices among 512 experts and 256 without weights: 8 real ones on average."""
    census = counted(next(d for d in DOCUMENTS if "LongCat" in d["repo"]))
    assert census.active_routed == census.routed * 8 // 512
    assert any("no weights" in warning for warning in census.warnings)


def test_enough_releases():
    assert len(RELEASES) >= 50
