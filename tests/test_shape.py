"""ModelShape: sums against arithmetic by hand, JSON there and back, every contradiction refused by name."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up
import pytest

from moegauge.errors import ShapeError, UnknownNameError
from moegauge.shape import Attention, Experts, Layer, Matrix, ModelShape

H, V, I, E, K = 64, 100, 32, 8, 2  # noqa: E741 - hidden, vocabulary, expert width, experts, top-k


def tiny(tied: bool = False) -> ModelShape:
    some = ("q_proj", "o_proj")
    windowed, full = made_up.gqa(H, 4, 2, 16, window=8, only=some), made_up.gqa(H, 4, 2, 16, only=some)
    dense = Layer(windowed, made_up.matrices("dense_mlp", [("up_proj", 4 * H, H)]), vectors=made_up.bf16(2 * H))
    moe = made_up.moe_layer(full, E, K, I, H, format="mxfp4", biases=True)
    return made_up.model([dense, moe, moe], H, name="tiny", vocabulary=V, tied=tied, source={"repo": "a/b"})


def test_sums() -> None:
    shape = tiny()
    expert = 3 * H * I + 2 * I + H
    attention = 2 * 64 * H
    dense = 2 * V * H + H + 3 * (attention + 2 * H) + 4 * H * H + 2 * E * H
    assert shape.moe_layers == 2
    assert shape.routed_parameters == 2 * E * expert
    assert shape.dense_parameters == dense
    assert shape.total_parameters == dense + 2 * E * expert
    assert shape.active_parameters == dense + 2 * K * expert
    assert shape.active_without_embedding == dense + 2 * K * expert - V * H
    assert shape.dense_bytes == 2 * (dense - V * H + H)  # every dense weight in bf16, one row of the embedding
    expert_bytes = 3 * (H * I // 2 + H * I // 32) + 2 * (2 * I + H)
    assert shape.routed_bytes == 2 * K * expert_bytes
    assert shape.bytes_per_token == shape.dense_bytes + shape.routed_bytes


def test_a_tied_head_is_counted_once_and_read_whole() -> None:
    shape = tiny(tied=True)
    assert shape.dense_parameters == tiny().dense_parameters - V * H
    assert shape.active_without_embedding == shape.active_parameters
    assert shape.dense_bytes == tiny().dense_bytes
    assert shape.head_matrix.role == "lm_head"


def test_cache_elements_stop_at_the_window() -> None:
    assert tiny().cache_elements(4) == 3 * 64 * 4
    assert tiny().cache_elements(100) == 64 * 8 + 2 * 64 * 100


def test_coverage_is_top_k_at_batch_one_and_nears_all() -> None:
    experts = tiny().layers[1].experts[0]
    assert experts.coverage(1) == pytest.approx(K)
    assert experts.coverage(2) == pytest.approx(E * (1 - (1 - K / E) ** 2))
    assert experts.coverage(1000) == pytest.approx(E)


def test_a_cast_leaves_router_head_and_embedding() -> None:
    cast = tiny().cast("fp8")
    assert cast.layers[1].matrices[0].format == "bf16"
    assert cast.head_matrix.format == "bf16"
    assert {m.format for m in cast.layers[1].experts[0].matrices} == {"fp8"}
    assert {m.format for m in cast.layers[0].matrices} == {"fp8"}
    assert tiny().cast("native") == tiny()
    with pytest.raises(UnknownNameError, match="fp8"):
        tiny().cast("fp9")


def test_stored_bytes_win_until_the_format_changes() -> None:
    m = Matrix("x", "attention", 4, 64, "int4", stored_bytes=999)
    assert m.bytes == 999
    shape = tiny()
    layer = Layer(Attention("none", matrices=(m,)))
    shape = ModelShape("s", "f", H, shape.embedding, None, (layer,))
    assert shape.cast("int4").layers[0].attention.matrices[0].bytes == 4 * 32 + 4 * 2 * 2


def test_json_there_and_back(tmp_path: Path) -> None:
    for shape in (tiny(), tiny(tied=True)):
        shape.save(tmp_path / "s.json")
        assert ModelShape.load(tmp_path / "s.json") == shape
    document = tiny().to_json()
    assert [run["repeat"] for run in document["layers"]] == [1, 2]


def test_prediction_layers_are_kept_and_older_files_have_none() -> None:
    shape = replace(tiny(), mtp_parameters=7)
    document = shape.to_json()
    assert ModelShape.from_json(document) == shape
    del document["mtp_parameters"]
    assert ModelShape.from_json(document) == tiny()


def at(document: Any, path: str) -> tuple[Any, Any]:
    *steps, last = [int(p) if p.isdigit() else p for p in path.split("/")]
    for step in steps:
        document = document[step]
    return document, last


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", "moegauge.shape/9", "schema must be"),
        ("hidden", 0, "hidden must be an integer of at least 1"),
        ("hidden", True, "hidden must be an integer"),
        ("hidden", 65, "embedding.columns is 64, not the hidden size 65"),
        ("hidden", 10**30, "hidden must be an integer"),
        ("name", "", "name must be a non-empty string"),
        ("layers", {}, "layers must be a list"),
        ("layers/0/repeat", 0, "repeat must be an integer of at least 1"),
        ("layers/0/repeat", 10**6, "makes more than 100,000 layers"),
        ("layers/0/attention", None, "attention must be an object"),
        ("layers/0/attention/kind", "gqq", "'gqq' is none of"),
        ("layers/0/attention/kv_heads", 3, "4 heads, not a multiple of 3"),
        ("layers/0/attention/heads", 0, "needs heads"),
        ("layers/0/attention/window", 0, "window must be an integer of at least 1"),
        ("layers/1/experts/0/top_k", 9, "top_k is 9, more than its 8 experts"),
        ("layers/1/experts/0/count", 2.0, "count must be an integer"),
        ("layers/1/experts/0/matrices", [], "must not be empty"),
        ("layers/1/experts/0/matrices/0/format", "fp5", "'fp5' is no known format"),
        ("layers/1/matrices/0/rows", -1, "rows must be an integer of at least 1"),
        ("vectors", [], "vectors must be an object"),
        ("head", 3, "head must be an object"),
    ],
)
def test_contradictions_are_named(path: str, value: Any, message: str) -> None:
    document = copy.deepcopy(tiny().to_json())
    holder, key = at(document, path)
    holder[key] = value
    with pytest.raises(ShapeError, match=message):
        ModelShape.from_json(json.loads(json.dumps(document)), "f.json")


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "not JSON"), (b"\xff", "cannot be read"), (b"[]", "must be an object")]
)
def test_files_that_are_no_shape(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "s.json"
    file.write_bytes(content)
    with pytest.raises(ShapeError, match=message):
        ModelShape.load(file)
    with pytest.raises(ShapeError, match="cannot be read"):
        ModelShape.load(tmp_path / "absent.json")


def resized(shape: ModelShape, name: str, **size: int) -> ModelShape:
    """`shape` with every matrix called `name` of another size, made as a program makes one: no file, no reader."""

    def change(matrices: tuple[Matrix, ...]) -> tuple[Matrix, ...]:
        return tuple(replace(m, **size) if m.name == name else m for m in matrices)

    layers = [
        replace(
            layer,
            attention=replace(layer.attention, matrices=change(layer.attention.matrices)),
            matrices=change(layer.matrices),
            experts=tuple(replace(pool, matrices=change(pool.matrices)) for pool in layer.experts),
        )
        for layer in shape.layers
    ]
    table, head = change((shape.embedding,))[0], change((shape.head,))[0] if shape.head else None
    return replace(shape, embedding=table, head=head, layers=tuple(layers))


@pytest.mark.parametrize(
    ("mixer", "name", "size", "message"),
    [
        ("mla", "q_b_proj", {"columns": 1000}, "'q_b_proj' reads 1000 inputs: no projection gives so many"),
        ("mla", "q_b_proj", {"columns": 65}, "'q_b_proj' reads 65 inputs"),
        ("mla", "q_b_proj", {"columns": 63}, "'q_b_proj' reads 63 inputs"),
        ("mla", "q_a_proj", {"rows": 60}, "'q_b_proj' reads 64 inputs"),
        ("mla", "kv_b_proj", {"columns": 33}, "'kv_b_proj' reads 33 inputs"),
        ("mla", "o_proj", {"columns": 66}, "'o_proj' reads 66 inputs"),
        ("gqa", "o_proj", {"columns": 95}, "'o_proj' reads 95 inputs: 4 heads give 96"),
        ("linear", "out", {"columns": 131}, "'out' reads 131 inputs: all others give 130"),
        ("gqa", "embedding", {"columns": 97}, "embedding.columns is 97, not the hidden size 96"),
        ("gqa", "up_proj", {"rows": 57}, "matrices do not fit each other|reads 56 inputs|reads 200 inputs"),
        ("gqa", "up_proj", {"columns": 97}, "matrices do not fit each other"),
        ("gqa", "gate_proj", {"columns": 97}, "matrices do not fit each other"),
        ("gqa", "down_proj", {"columns": 55}, "'down_proj' reads 55 inputs: no dense_mlp matrix"),
    ],
)
def test_widths_that_do_not_chain_are_refused_when_a_shape_is_made(
    mixer: str, name: str, size: dict[str, int], message: str
) -> None:
    shape = made_up.decoder(mixer)
    with pytest.raises(ShapeError, match=message):
        resized(shape, name, **size)
    assert resized(shape, name) == shape


def test_projections_narrower_than_their_heads_are_refused() -> None:
    shape = made_up.model([made_up.dense_layer(made_up.gqa(H, 4, 2, 8), I, H)], H)
    with pytest.raises(ShapeError, match="projections give 52 outputs; 4 heads and 2 KV heads need 64"):
        resized(shape, "k_proj", rows=4)


def test_a_head_of_another_width_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"head\.columns is 63, not the hidden size 64"):
        resized(tiny(), "lm_head", columns=63)


def test_experts_read_latents_only_where_the_layer_makes_them() -> None:
    latent = [("down", 32, H), ("up", H, 32)]
    pool = Experts(E, K, made_up.mlp("routed_expert", I, 32))
    attention = made_up.gqa(H, 4, 2, 16)
    whole = Layer(attention, made_up.matrices("dense_mlp", latent), (pool,))
    assert made_up.model([whole], H).moe_layers == 1
    for kept, message in (((latent[1],), "reads 32 inputs"), ((latent[0],), "gives 32 outputs")):
        with pytest.raises(ShapeError, match=message):
            made_up.model([replace(whole, matrices=made_up.matrices("other", kept))], H)


def test_contradictions_of_heads_and_experts_are_found_without_a_file_too() -> None:
    layer = tiny().layers[1]
    for bad, message in (
        (replace(layer, attention=replace(layer.attention, kv_heads=3)), "not a multiple of 3 kv_heads"),
        (replace(layer, attention=replace(layer.attention, heads=0)), "needs heads"),
        (replace(layer, experts=(replace(layer.experts[0], top_k=9),)), "top_k is 9, more than its 8 experts"),
        (replace(layer, experts=(replace(layer.experts[0], matrices=()),)), "must not be empty"),
    ):
        with pytest.raises(ShapeError, match=message):
            replace(tiny(), layers=(bad,))
