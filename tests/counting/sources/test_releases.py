"""Released checkpoints, laid out from their configs, count to the published and hand-derived totals exactly.

Golden totals: DeepSeek-V3's stored elements by dtype are the Hub's (BF16 3,918,786,560, F8_E4M3 680,571,043,840, F32
41,555,600); gpt-oss totals are those of the gpt-oss model card, table 1 (arXiv 2508.10925); `stored` of DeepSeek-V3 and
GLM-4.7 is the active count of "Estimating the Size of Claude Opus 4.5/4.6" (unexcitedneurons, 12 March 2026).
"""

from __future__ import annotations

import json
from math import prod

import pytest

from moegauge import models
from moegauge.counting import count
from moegauge.counting.sources import release_layout
from moegauge.shape import ModelShape

GOLDEN = {
    "deepseek-v3": {
        "decoder": 671_026_419_200,
        "routed": 653_908_770_816,
        "mtp": 13_463_426_304,
        "active": 37_552_297_472,
        "without_embedding": 36_625_618_432,
        "stored": 37_554_471_512,
        "kv": 61 * (512 + 64) * 2,
    },
    "glm-4.7": {
        "decoder": 352_797_829_024,
        "routed": 335_963_750_400,
        "mtp": 5_539_962_272,
        "active": 33_632_266_144,
        "stored": 33_632_266_144,
        "kv": 92 * 2 * 8 * 128 * 2,
    },
    "kimi-k2": {"decoder": 1_026_408_232_448, "routed": 1_014_686_023_680, "mtp": 0, "stored": 32_863_354_840},
    "kimi-k2-thinking": {"decoder": 1_026_408_232_448, "routed": 1_014_686_023_680, "mtp": 0},
    "gpt-oss-120b": {
        "decoder": 116_829_156_672,
        "routed": 114_701_598_720,
        "active": 5_711_982_912,
        "without_embedding": 5_132_849_472,
    },
    "gpt-oss-20b": {"decoder": 20_914_757_184, "routed": 19_116_933_120, "without_embedding": 3_608_307_264},
    "qwen3-30b-a3b": {"decoder": 30_532_122_624, "routed": 28_991_029_248, "active": 3_353_032_704},
    "qwen3-235b-a22b": {"decoder": 235_093_634_560, "routed": 227_096_395_776, "active": 22_190_763_520},
    "mixtral-8x7b": {"decoder": 46_702_792_704, "routed": 45_097_156_608, "active": 12_879_925_248},
}


@pytest.fixture(scope="module", params=sorted(GOLDEN))
def release(request, tmp_path_factory):
    """(name, facts, census) of one release laid out as it was published."""
    facts = release_layout.release(request.param)
    folder = tmp_path_factory.mktemp("release") / request.param
    release_layout.write(folder, facts["config"], facts["shards"])
    return request.param, facts, count(str(folder))


def test_every_release_has_golden_totals():
    assert set(release_layout.releases()) == set(GOLDEN)


def test_golden_totals(release):
    name, facts, census = release
    document = census.to_json()
    measured = {
        "decoder": document["parameters"]["decoder"],
        "routed": document["parameters"]["routed"],
        "mtp": document["parameters"]["mtp"],
        "active": document["active"]["parameters"],
        "without_embedding": document["active"]["without_embedding"],
        "stored": document["active"]["stored_elements"],
        "kv": document["bytes_per_token"]["kv_per_context_token"],
    }
    assert {key: measured[key] for key in GOLDEN[name]} == GOLDEN[name]
    assert document["parameters"]["total"] == document["parameters"]["decoder"] + document["parameters"]["mtp"]
    assert document["target"]["files"] == facts["shards"]
    assert document["unclassified"] == document["warnings"] == []


def test_bytes_reconcile(release):
    _, facts, census = release
    stored = sum(tensor.bytes for tensor in release_layout.tensors(facts["config"]))
    document = census.to_json()
    assert document["stored"]["bytes"] == stored
    assert sum(row["bytes"] for row in document["roles"].values()) == stored
    assert sum(row["bytes"] for row in document["formats"].values()) == stored
    for key in ("parameters", "elements"):
        by_role = sum(row[key] for row in document["roles"].values())
        assert sum(row[key] for row in document["formats"].values()) == by_role


def test_shape_reconciles(release):
    """The shape is another way to the same totals: matrices times experts, against sums of stored tensors."""
    _, _, census = release
    shape, document = census.model_shape(), census.to_json()
    assert shape.dense_parameters == document["parameters"]["dense"]
    assert shape.routed_parameters == document["parameters"]["routed"]
    assert shape.active_parameters == document["active"]["parameters"]
    assert shape.active_without_embedding == document["active"]["without_embedding"]
    assert shape.dense_bytes == document["bytes_per_token"]["dense"]
    assert shape.routed_bytes == document["bytes_per_token"]["routed"]
    assert shape.bytes_per_token == document["bytes_per_token"]["total"]
    assert shape.mtp_parameters == document["parameters"]["mtp"]
    assert 2 * shape.cache_elements(1) == document["bytes_per_token"]["kv_per_context_token"]
    assert ModelShape.from_json(json.loads(json.dumps(shape.to_json()))) == shape


def test_shipped_shape_is_this_one(release):
    name, _, census = release
    shipped, made = models.load(name), census.model_shape()
    assert shipped.layers == made.layers
    assert (shipped.embedding, shipped.head, shipped.vectors) == (made.embedding, made.head, made.vectors)
    assert shipped.mtp_parameters == made.mtp_parameters


def test_bytes_per_token_by_hand(release):
    """An independent sum: every tensor's bytes, experts' times top_k / experts, prediction layers and packing
    integers left out, one row of the embedding."""
    _, facts, census = release
    config = facts["config"]
    share = (config["num_experts_per_tok"], census.common("count"))
    total = 0
    for tensor in release_layout.tensors(config):
        number = tensor.name.split(".")[2] if tensor.name.startswith("model.layers.") else "0"
        if int(number) >= config["num_hidden_layers"] or tensor.name.endswith("weight_shape"):
            continue
        if ".experts." in tensor.name:
            total += tensor.bytes * share[0]
        elif tensor.name == "model.embed_tokens.weight":
            total += tensor.bytes // tensor.shape[0] * share[1]
        else:
            total += tensor.bytes * share[1]
    assert census.to_json()["bytes_per_token"]["total"] * share[1] == total


def test_deepseek_v3_is_the_hub_s():
    listed = release_layout.tensors(release_layout.release("deepseek-v3")["config"])
    elements: dict[str, int] = {}
    for tensor in listed:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + prod(tensor.shape)
    assert len(listed) == 91_991
    assert elements == {"BF16": 3_918_786_560, "F8_E4M3": 680_571_043_840, "F32": 41_555_600}


def test_layout_allocates_nothing(tmp_path):
    facts = release_layout.release("gpt-oss-20b")
    total = release_layout.write(tmp_path / "g", facts["config"], facts["shards"])
    files = list((tmp_path / "g").glob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) > total > 13e9
    assert sum(f.stat().st_blocks * 512 for f in files) < 10e6


def test_layout_refuses_a_full_folder(tmp_path):
    facts = release_layout.release("gpt-oss-20b")
    release_layout.write(tmp_path, facts["config"])
    with pytest.raises(Exception, match="already holds"):
        release_layout.write(tmp_path, facts["config"])
