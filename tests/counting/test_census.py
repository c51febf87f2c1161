"""What a census does with configs that lie, lack fields or hold nonsense, and with names and packings nobody knows."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from moegauge import cli
from moegauge.counting import count
from moegauge.counting.errors import BadConfigError
from moegauge.counting.sources import release_layout
from moegauge.errors import CheckpointError, ShapeError

CONFIG = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 6,
    "intermediate_size": 6,
    "vocab_size": 10,
    "tie_word_embeddings": False,
}


def rows(config=CONFIG):
    return [tuple(t) for t in release_layout.tensors(config)]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_experts_per_tok", 5, "num_experts_per_tok is 5, more than num_experts = 4"),
        ("num_experts_per_tok", True, "num_experts_per_tok is True, not a whole number"),
        ("num_experts_per_tok", float("nan"), "num_experts_per_tok is nan, not a whole number"),
        ("num_experts_per_tok", 2.0, "num_experts_per_tok is 2.0, not a whole number"),
        ("num_experts_per_tok", "2", "num_experts_per_tok is '2', not a whole number"),
        ("num_experts_per_tok", -1, "num_experts_per_tok is -1, not a whole number"),
        ("num_experts", 10**30, "num_experts is 1000000000000000000000000000000, not a whole number"),
        ("num_experts", 3, "num_experts is 3, but layer 0 holds 4 experts"),
        ("num_experts", 256, "num_experts is 256, but layer 0 holds 4 experts"),
        ("num_experts", [], "num_experts is [], an empty or endless list"),
        ("num_hidden_layers", 3, "num_hidden_layers is 3, but no tensor belongs to layer 2"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0, not a whole number from 1"),
        ("hidden_size", {}, "hidden_size is {}, not a whole number"),
    ],
)
def test_a_config_that_lies_is_refused_by_field(synthetic, field, value, message):
    with pytest.raises(BadConfigError) as caught:
        synthetic.census(rows(), {**CONFIG, field: value})
    assert message in str(caught.value)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_expert_is_noticed(synthetic):
    short = [row for row in rows() if not row[0].startswith("model.layers.1.mlp.experts.3.")]
    with pytest.raises(BadConfigError, match="num_experts is 4, but layer 1 holds 3 experts"):
        synthetic.census(short, CONFIG)
    uneven = [row for row in rows() if row[0] != "model.layers.1.mlp.experts.3.up_proj.weight"]
    with pytest.raises(BadConfigError, match="layer 1 holds unequal numbers of expert tensors"):
        synthetic.census(uneven, CONFIG)


def test_without_a_config_the_headers_still_count(synthetic):
    whole, bare = synthetic.census(rows(), CONFIG), synthetic.census(rows())
    assert (bare.dense, bare.routed, bare.layers) == (whole.dense, whole.routed, whole.layers)
    assert bare.active is None
    document = bare.to_json()
    assert document["active"]["parameters"] is None
    assert document["bytes_per_token"]["total"] is None
    assert any("--top-k" in warning for warning in bare.warnings)
    assert synthetic.census(rows(), top_k=2).active == whole.active
    with pytest.raises(ShapeError, match="experts per token unknown"):
        bare.model_shape()
    with pytest.raises(BadConfigError, match="--top-k: num_experts_per_tok is 9, but layer 0 holds 4 experts"):
        synthetic.census(rows(), top_k=9)


def test_layers_past_the_decoder_are_prediction_layers(synthetic):
    longer = rows({**CONFIG, "num_hidden_layers": 3})
    census = synthetic.census(longer, CONFIG)
    extra = sum(synthetic.header([row]).elements[0] for row in longer if row[0].startswith("model.layers.2."))
    assert census.parameters("mtp") == extra
    assert census.decoder == synthetic.census(rows(), CONFIG).decoder


def test_stored_elements_take_buffers_and_scales_in(synthetic):
    extra = [("model.layers.0.mlp.gate.tid2eid", "I64", (10, 2)), ("model.layers.0.self_attn.k_scale", "F32", (1,))]
    plain, more = synthetic.census(rows(), CONFIG), synthetic.census([*rows(), *extra], CONFIG)
    assert more.active_stored_elements == plain.active_stored_elements + 21
    assert (more.active, more.total) == (plain.active, plain.total)
    assert more.to_json()["stored"]["buffer_elements"] == 20
    assert more.dense_bytes == plain.dense_bytes


def test_tied_embedding(synthetic):
    tied = [row for row in rows() if row[0] != "lm_head.weight"]
    census = synthetic.census(tied, {**CONFIG, "tie_word_embeddings": True})
    assert census.tied
    assert census.active_without_embedding == census.active
    # One row as the input, the whole table as the head.
    untied = synthetic.census(rows(), CONFIG)
    assert census.dense_bytes == untied.dense_bytes
    assert census.model_shape().head is None
    both = synthetic.census(rows(), {**CONFIG, "tie_word_embeddings": True})
    assert any("both are stored" in warning for warning in both.warnings)


def test_unknown_packing_is_no_weight(synthetic):
    odd = [(n, "I32" if n.endswith("o_proj.weight") else d, s) for n, d, s in rows()]
    census = synthetic.census(odd, CONFIG)
    assert census.unclassified() == ["model.layers.#.self_attn.o_proj.weight"]
    assert census.by_format()["unknown"]["elements"] == 2 * 8 * 8


def test_part_of_a_checkpoint_may_miss_layers_and_experts(synthetic):
    part = [row for row in rows() if row[0].startswith("model.layers.1.mlp.experts.1.")]
    census = synthetic.census(part, CONFIG, kind="file")
    assert census.routed == 3 * 6 * 8
    assert any("part of a checkpoint" in warning for warning in census.warnings)
    assert synthetic.census(rows(), CONFIG, kind="file").warnings == []
    with pytest.raises(BadConfigError, match="more than num_experts"):
        synthetic.census(rows(), {**CONFIG, "num_experts_per_tok": 9}, kind="file")


def test_hostile_names_cost_no_time_and_are_unclassified(synthetic):
    names = ["norm" * 20_000, "model.layers.0." + "a." * 20_000, "layers.1\n.mlp", "", ".", "\u202e.0"]
    census = synthetic.census([(n, "F32", (2,)) for n in names])
    assert census.total == 2 * len(names)
    assert len(census.unclassified()) == len(names)


def test_endless_distinct_names_are_not_all_matched(synthetic, monkeypatch):
    monkeypatch.setattr("moegauge.counting.groups.MOST_MODULES", 50)
    census = synthetic.census([(f"norm{n}.weight", "F32", (2,)) for n in range(200)])
    assert census.parameters("norm") == 2 * 50
    assert len(census.unclassified()) == 150


def test_per_layer_rows_add_up(synthetic):
    census = synthetic.census(rows(), CONFIG)
    table = census.to_json(per_layer=True)["per_layer"]
    assert [row["layer"] for row in table] == [0, 1]
    assert sum(row["routed"] for row in table) == census.routed
    outside = census.parameters("embedding", "lm_head") + 8  # the final norm
    assert sum(row["dense"] for row in table) == census.dense - outside
    assert table[0]["pools"][0] == {
        "name": "model.layers.#.mlp.experts",
        "experts": 4,
        "top_k": 2,
        "parameters": 4 * 3 * 6 * 8,
    }


def test_mistral_s_own_layout_has_params_json(synthetic):
    params = {"dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "vocab_size": 10}
    params["moe"] = {"num_experts": 2, "num_experts_per_tok": 1}
    listed = [("tok_embeddings.weight", "BF16", (10, 8)), ("output.weight", "BF16", (10, 8))]
    listed += [(f"layers.0.attention.{n}.weight", "BF16", (8, 8)) for n in ("wq", "wo")]
    listed += [(f"layers.0.attention.{n}.weight", "BF16", (4, 8)) for n in ("wk", "wv")]
    listed += [("layers.0.gate.weight", "BF16", (2, 8)), ("layers.0.ffn_norm.weight", "BF16", (8,))]
    for expert in range(2):
        listed += [(f"layers.0.experts.{expert}.w{n}.weight", "BF16", (6, 8)) for n in (1, 3)]
        listed += [(f"layers.0.experts.{expert}.w2.weight", "BF16", (8, 6))]
    census = synthetic.census(listed, documents={"params.json": params})
    assert census.active_routed == 3 * 6 * 8
    assert census.warnings == []
    assert census.model_shape().layers[0].attention.kv_heads == 1


def test_windows_shrink_the_far_cache(synthetic):
    config = {**CONFIG, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    document = synthetic.census(rows(), config).to_json()["bytes_per_token"]
    assert document["kv_per_context_token"] == 2 * (2 * 4) * 2
    assert document["kv_per_context_token_beyond_windows"] == (2 * 4) * 2


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    """The command line in this process: run("count", ...) -> Result."""

    def call(*argv):
        try:
            cli.main(list(argv))
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def folder(tmp_path):
    release_layout.write(tmp_path / "tiny", CONFIG)
    return tmp_path / "tiny"


def test_command_json_and_table(folder, run):
    result = run("count", str(folder), "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert document["schema"] == "moegauge.count/1"
    assert document["parameters"]["decoder"] == count(str(folder)).decoder
    table = run("count", str(folder), "--layers")
    assert table.code == 0
    assert f"{document['parameters']['routed']:,}" in table.out
    assert "0 to 1" in table.out
    assert table.err == ""


def test_command_says_or_refuses_what_structure_placed(folder, run):
    release_layout.write(folder / "odd", CONFIG)
    file = folder / "odd" / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b"self_attn.q_norm", b"self_attn.q_myst"))
    said = run("count", str(folder / "odd"), "--json")
    document = json.loads(said.out)
    assert document["inferred"] == ["model.layers.#.self_attn.q_myst.weight"]
    assert document["unclassified"] == []
    assert document["parameters"]["dense"] == count(str(folder)).dense
    assert "2 tensors placed by structure" in said.err
    strict = run("count", str(folder / "odd"), "--json", "--strict")
    assert (strict.code, strict.out) == (1, "")
    assert "names no rule knows, placed by structure: 'model.layers.#.self_attn.q_myst.weight'" in strict.err
    assert run("count", str(folder), "--json", "--strict").code == 0


def test_command_refuses_a_split_in_doubt(folder, run):
    """Without a config nothing tells what an unknown name is."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b"self_attn.q_norm", b"self_attn.q_myst"))
    (folder / "config.json").unlink()
    result = run("count", str(folder), "--json")
    assert (result.code, result.out) == (1, "")
    assert "2 tensors whose name or packing no rule knows: 'model.layers.#.self_attn.q_myst.weight'" in result.err
    assert "config.json" in result.err
    allowed = run("count", str(folder), "--json", "--allow-unclassified")
    assert allowed.code == 0
    assert json.loads(allowed.out)["unclassified"] == ["model.layers.#.self_attn.q_myst.weight"]


def test_command_writes_a_shape_once(folder, run, tmp_path):
    target = tmp_path / "shape.json"
    assert run("count", str(folder), "--shape", str(target)).code == 0
    before = target.read_text()
    again = run("count", str(folder), "--shape", str(target))
    assert again.code == 2
    assert "already exists" in again.err
    assert target.read_text() == before


def test_bytes_must_reconcile(synthetic):
    header = synthetic.header(rows())
    object.__setattr__(header, "data_bytes", header.data_bytes + 1)
    from moegauge.counting.census import take_census
    from moegauge.counting.sources.checkpoint import Checkpoint

    with pytest.raises(CheckpointError, match="roles hold"):
        take_census(Checkpoint("folder", "tiny", None, [header], {"config.json": CONFIG}))
