"""Storage formats: what real packers made, and layouts written by hand where no packer installs or runs on a CPU.

`tests/data/packed/*.json` were made by `scripts/make_packed_headers.py` with the packer each names.
"""

from __future__ import annotations

import base64
import json
import struct
from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegauge.counting.census import take_census
from moegauge.counting.errors import UnreadableError
from moegauge.counting.packings import Hints, Part
from moegauge.counting.quant_config import hints_for
from moegauge.counting.sources.checkpoint import Checkpoint
from moegauge.counting.storage import LAYOUTS, split_leaf, unpack

PACKED = sorted((Path(__file__).resolve().parents[1] / "data" / "packed").glob("*.json"))
FORMATS = {
    "bitsandbytes-fp4": "bnb_fp4",
    "bitsandbytes-fp4-fused": "bnb_fp4",
    "bitsandbytes-nf4-fused": "bnb_nf4",
    "bitsandbytes-int8": "int8",
    "bitsandbytes-nf4": "bnb_nf4",
    "bitsandbytes-nf4-nested": "bnb_nf4",
    "compressed-tensors-fp8": "fp8_tensor",
    "compressed-tensors-fp8_block": "fp8_block",
    "compressed-tensors-fp8_dynamic": "fp8_channel",
    "compressed-tensors-mxfp4": "mxfp4",
    "compressed-tensors-mxfp4a16": "mxfp4",
    "compressed-tensors-mxfp6a16": "mxfp6",
    "compressed-tensors-mxfp8a16": "mxfp8",
    "compressed-tensors-nvfp4": "nvfp4",
    "compressed-tensors-nvfp4a16": "nvfp4",
    "compressed-tensors-w2a16": "int2",
    "compressed-tensors-w3a16": "int3",
    "compressed-tensors-w4a16": "int4",
    "compressed-tensors-w4a16_asym": "int4",
    "compressed-tensors-w4afp8": "int8",  # stored one byte a weight
    "compressed-tensors-w5a16": "int5",
    "compressed-tensors-w8a16": "int8",
    "compressed-tensors-w8a8": "int8",
    "hqq-1bit-axis1": "int1",
    "hqq-2bit-axis1": "int2",
    "hqq-3bit-axis1": "int3",
    "hqq-4bit-axis0": "int4",
    "hqq-4bit-axis1": "int4",
    "hqq-8bit-axis1": "int8",
    "mlx-affine-3bit": "int3",
    "mlx-affine-4bit": "int4",
    "mlx-affine-6bit": "int6",
    "mlx-mxfp4-4bit": "mxfp4",
    "mlx-mxfp8-8bit": "mxfp8",
    "mlx-nvfp4-4bit": "nvfp4",
    "modelopt-fp8": "fp8_tensor",
    "modelopt-fp8_2d_blockwise_weight_only": "fp8_block",
    "modelopt-fp8_per_channel_per_token": "fp8_channel",
    "modelopt-int4_awq": "int4",
    "modelopt-int8_smoothquant": "int8",
    "modelopt-mxfp4": "mxfp4",
    "modelopt-nvfp4": "nvfp4",
    "modelopt-w4a8_awq_beta": "int4",
    "torchao-fp8": "fp8_channel",
    "torchao-int4": "int4",
    "torchao-int8": "int8",
    "torchao-intx4": "int8",  # stored one byte a weight
}


@pytest.mark.parametrize("path", PACKED, ids=lambda path: path.stem)
def test_real_packers(path, synthetic):
    document = json.loads(path.read_text())
    rows = [(name, dtype, tuple(shape)) for name, dtype, shape in document["headers"]]
    quant = {"hf_quant_config.json": document["hf_quant_config"]} if document["hf_quant_config"] else {}
    census = synthetic.census(rows, document["config"], documents=quant)
    assert census.unclassified() == []
    assert census.total == sum(document["weights"].values())
    experts = (n for name, n in document["weights"].items() if ".experts." in name or ".switch_mlp." in name)
    assert census.routed == sum(experts)
    assert set(census.by_format()) == {FORMATS[path.stem], "bf16"}
    assert all(group.exact for group in census.groups)
    # Nothing but weights has parameters, and every byte belongs to a role.
    assert census.by_role()["quant_meta"]["parameters"] == 0
    assert sum(row["bytes"] for row in census.by_role().values()) == census.checkpoint.headers[0].data_bytes


def test_mxfp8_is_predicted_and_measured_as_what_it_is(synthetic):
    """E4M3 beside one E8M0 per 32 has a row of its own, whose bytes are those stored."""
    document = json.loads(next(p for p in PACKED if p.stem == "compressed-tensors-mxfp8a16").read_text())
    rows = [(name, dtype, tuple(shape)) for name, dtype, shape in document["headers"]]
    shape = synthetic.census(rows, document["config"]).model_shape()
    experts = [m for layer in shape.layers for pool in layer.experts for m in pool.matrices]
    assert experts
    assert {(m.format, m.stored_bytes) for m in experts} == {("mxfp8", None)}


def test_every_fixture_has_its_format():
    assert {path.stem for path in PACKED} == set(FORMATS)


def test_most_formats_need_no_config(synthetic):
    """Siblings decide: without any quantisation config only packings whose width nothing else says stay bounds."""
    unsure = set()
    for path in PACKED:
        document = json.loads(path.read_text())
        config = {k: v for k, v in document["config"].items() if k != "quantization_config"}
        rows = [(name, dtype, tuple(shape)) for name, dtype, shape in document["headers"]]
        census = synthetic.census(rows, config)
        if any(not group.exact for group in census.groups):
            unsure.add(path.stem)
        else:
            assert census.total == sum(document["weights"].values()), path.stem
    assert unsure == {
        f"compressed-tensors-w{bits}" for bits in ("2a16", "3a16", "4a16", "4a16_asym", "5a16", "8a16")
    } | {"hqq-4bit-axis0"}


@pytest.mark.parametrize("stem", ["compressed-tensors-w3a16", "compressed-tensors-w4a16", "hqq-4bit-axis0"])
def test_shapes_that_are_data_are_read(stem, synthetic):
    """Without a config the shape tensors' bytes say what the packing does not; a read that fails leaves a bound."""
    document = json.loads(next(p for p in PACKED if p.stem == stem).read_text())
    rows = [(name, dtype, tuple(shape)) for name, dtype, shape in document["headers"]]
    header = synthetic.header(rows)
    config = {k: v for k, v in document["config"].items() if k != "quantization_config"}
    by_begin = {8 + begin: name for name, (begin, _) in zip(header.names, header.offsets, strict=True)}
    asked = []

    def reader(_, begin, length):
        asked.append(length)
        return base64.b64decode(document["small"][by_begin[begin]])

    census = take_census(Checkpoint("folder", "tiny", None, [header], {"config.json": config}, reader=reader))
    assert census.total == sum(document["weights"].values())
    assert census.routed == sum(n for name, n in document["weights"].items() if ".experts." in name)
    assert set(asked) == {16}
    assert any(
        "shape read from its data" in rule for rules in census.to_json()["format_rules"].values() for rule in rules
    )

    def refuses(_, begin, length):
        raise UnreadableError("offline", file="x", advice="")

    bound = take_census(Checkpoint("folder", "tiny", None, [header], {"config.json": config}, reader=refuses))
    assert bound.total > census.total
    assert any("upper bounds" in warning for warning in bound.warnings)

    def lies(_, begin, length):
        return struct.pack("<qq", 2**40, 2**20)

    assert (
        take_census(Checkpoint("folder", "t", None, [header], {"config.json": config}, reader=lies)).total
        == bound.total
    )


def solve(parts, hints=None):
    """The answer of the table for a module's tensors, the main one first."""
    listed = {leaf: Part(leaf, dtype, shape) for leaf, dtype, shape in parts}
    return unpack(listed[parts[0][0]], listed, hints or Hints())


@pytest.mark.parametrize(
    ("parts", "hints", "name", "weights"),
    [
        # GPTQ, 1024 inputs, 4096 outputs, groups of 128: 3 bits are 32 weights in 3 words, not 10 in one.
        *[
            (
                [
                    (".qweight", "I32", (1024 * b // 32, 4096)),
                    (".qzeros", "I32", (8, 4096 * b // 32)),
                    (".scales", "F16", (8, 4096)),
                    (".g_idx", "I32", (1024,)),
                ],
                Hints("gptq"),
                f"int{b}",
                4_194_304,
            )
            for b in (2, 3, 4, 8)
        ],
        # The same without g_idx (auto-round).
        (
            [
                (".qweight", "I32", (96, 4096)),
                (".qzeros", "I32", (8, 384)),
                (".scales", "F16", (8, 4096)),
            ],
            Hints("auto-round"),
            "int3",
            4_194_304,
        ),
        # AWQ packs the outputs.
        (
            [(".qweight", "I32", (1024, 512)), (".qzeros", "I32", (8, 512)), (".scales", "F16", (8, 4096))],
            Hints("awq"),
            "int4",
            4_194_304,
        ),
        # Quark MXFP4 and MXFP6: scales per 32 weights, in U8 or E8M0.
        ([(".weight", "U8", (1024, 2048)), (".weight_scale", "U8", (1024, 128))], None, "mxfp4", 4_194_304),
        ([(".weight", "U8", (1024, 2048)), (".weight_scale", "F8_E8M0", (1024, 128))], None, "mxfp4", 4_194_304),
        ([(".weight", "U8", (1024, 3072)), (".weight_scale", "F8_E8M0", (1024, 128))], None, "mxfp6", 4_194_304),
        # DeepSeek-V4: FP4 pairs in I8 with E8M0 scales; its FP8 matrices have E8M0 scales per 128 x 128.
        ([(".weight", "I8", (1024, 2048)), (".scale", "F8_E8M0", (1024, 128))], None, "mxfp4", 4_194_304),
        ([(".weight", "F8_E4M3", (1024, 4096)), (".scale", "F8_E8M0", (8, 32))], None, "fp8_block", 4_194_304),
        # DeepSeek-V3's trap: 7168 x 16384 has as many blocks as rows.
        (
            [(".weight", "F8_E4M3", (7168, 16384)), (".weight_scale_inv", "F32", (56, 128))],
            None,
            "fp8_block",
            117_440_512,
        ),
        # Kimi-K2-Thinking.
        (
            [
                (".weight_packed", "I32", (2048, 896)),
                (".weight_scale", "BF16", (2048, 224)),
                (".weight_shape", "I32", (2,)),
            ],
            Hints("compressed-tensors", 4, 32),
            "int4",
            14_680_064,
        ),
        # 13 columns of 4 bits in 2 words, a group of 13: the scales say what the words round up.
        (
            [(".weight_packed", "I32", (10, 2)), (".weight_scale", "BF16", (10, 1))],
            Hints("compressed-tensors", 4, 13),
            "int4",
            130,
        ),
        # BitNet, EETQ, torchao's tiles and plain words.
        ([(".weight", "U8", (256, 4096)), (".weight_scale", "BF16", (1,))], Hints("bitnet"), "ternary", 4_194_304),
        ([(".weight", "I8", (1024, 4096)), (".weight_scales", "F16", (4096,))], None, "int8", 4_194_304),
        (
            [("._weight_qdata", "I32", (128, 32, 32, 4)), ("._weight_scale_and_zero", "BF16", (32, 1024, 2))],
            None,
            "int4",
            4_194_304,
        ),
        ([("._weight_qdata", "I32", (1024, 512)), ("._weight_scale", "BF16", (32, 1024))], None, "int4", 4_194_304),
        # MLX, every width, groups of 64.
        *[
            (
                [
                    (".weight", "U32", (1024, 4096 * b // 32)),
                    (".scales", "BF16", (1024, 64)),
                    (".biases", "BF16", (1024, 64)),
                ],
                Hints("", 4, 64),
                f"int{b}",
                4_194_304,
            )
            for b in (2, 3, 4, 5, 6, 8)
        ],
        ([(".weight", "U32", (1024, 512)), (".scales", "U8", (1024, 128))], Hints("", 4, 32), "mxfp4", 4_194_304),
        # EXL3 (K may be a half), EXL2, AQLM; GPTQ without zeros; quanto; safetensors' own FP4.
        (
            [
                (".trellis", "I16", (64, 256, 40)),
                (".suh", "F16", (1024,)),
                (".svh", "F16", (4096,)),
                (".mcg", "I32", ()),
            ],
            None,
            "exl3",
            4_194_304,
        ),
        (
            [
                *((".q_weight", "I32", (128, 4096)), (".q_invperm", "I32", (1024,)), (".q_scale", "I32", (16, 512))),
                *((".q_scale_max", "F16", (16,)), (".q_groups", "I16", (32,))),
            ],
            None,
            "exl2",
            4_194_304,
        ),
        (
            [
                *((".codes", "I16", (4096, 128, 1)), (".codebooks", "F16", (1, 65536, 1, 8))),
                (".scales", "F16", (4096, 1, 1, 1)),
            ],
            None,
            "aqlm",
            4_194_304,
        ),
        (
            [(".qweight", "I32", (128, 4096)), (".scales", "F16", (8, 4096)), (".g_idx", "I32", (1024,))],
            Hints("gptq", 4, 128),
            "int4",
            4_194_304,
        ),
        ([(".weight._data", "I8", (1024, 4096)), (".weight._scale", "F32", (1024, 1))], None, "int8", 4_194_304),
        ([(".weight", "F4", (1024, 4096)), (".weight_scale", "F8_E8M0", (1024, 128))], None, "mxfp4", 4_194_304),
        (
            [(".weight", "F4", (1024, 4096)), (".scale", "F8_E4M3", (1024, 256)), (".scale2", "F32", ())],
            None,
            "nvfp4",
            4_194_304,
        ),
        # Mistral's own names; 32 x 32 blocks are no MXFP8 though each scale has 32 columns.
        (
            [(".weight", "F8_E4M3", (1024, 4096)), (".qscale_weight", "F32", ()), (".qscale_act", "F32", ())],
            None,
            "fp8_tensor",
            4_194_304,
        ),
        ([(".weight", "F8_E4M3", (1024, 4096)), (".scale", "F8_E8M0", (32, 128))], None, "fp8_block", 4_194_304),
        ([(".weight", "F8_E4M3", (1024, 4096)), (".scale", "F8_E8M0", (1024, 128))], None, "mxfp8", 4_194_304),
        # Fused experts: gpt-oss, DeepSeek in FP8, modelopt NVFP4 (transposed), a 3-D stack of packed words.
        (
            [("_blocks", "U8", (4, 5760, 90, 16)), ("_scales", "U8", (4, 5760, 90))],
            None,
            "mxfp4",
            4 * 5760 * 2880,
        ),
        ([("", "F8_E4M3", (4, 4096, 1024)), ("_scale_inv", "F32", (4, 32, 8))], None, "fp8_block", 16_777_216),
        (
            [("", "U8", (4, 512, 4096)), ("_weight_scale", "F8_E4M3", (4, 64, 4096)), ("_weight_scale_2", "F32", (4,))],
            None,
            "nvfp4",
            4 * 1024 * 4096,
        ),
        (
            [(".weight_packed", "I32", (4, 1024, 512)), (".weight_scale", "BF16", (4, 1024, 128))],
            Hints("compressed-tensors", 4, 32),
            "int4",
            16_777_216,
        ),
    ],
)
def test_written_by_hand(parts, hints, name, weights):
    answer = solve(parts, hints)
    assert (answer.format, prod(answer.shape), answer.exact) == (name, weights, True)
    assert answer.claimed == {leaf for leaf, _, _ in parts[1:]}
    assert answer.rule


@pytest.mark.parametrize(
    "parts",
    [
        [(".weight", "U8", (64, 64))],
        [(".weight", "I32", (64, 64))],
        [(".weight", "U8", (64, 64)), (".weight_scale", "F32", (7, 3))],
        [(".weight", "U32", (64, 64)), (".scales", "BF16", (64, 8))],
        [(".qweight", "I32", (64, 64)), (".qzeros", "I32", (0, 0)), (".scales", "F16", (0, 0))],
        [("_blocks", "U8", (4, 8, 16)), ("_scales", "U8", (4, 9))],
        [(".weight", "F4", (64, 64))],
    ],
)
def test_what_no_packer_makes_is_not_guessed(parts):
    assert solve(parts) is None


def test_experts_of_two_sizes_keep_their_own_scales(synthetic):
    """Two widths under one name, packed in words that round up: each takes the scales of its own size."""
    sizes = {0: 96, 1: 32}
    rows = []
    for expert, width in sizes.items():
        name = f"model.layers.0.mlp.experts.{expert}.down_proj"
        rows.append((f"{name}.weight_packed", "I32", (64, width * 3 // 32)))
        rows.append((f"{name}.weight_scale", "BF16", (64, width // 32)))
    section = {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 3, "group_size": 32}}},
    }
    census = synthetic.census(rows, {"quantization_config": section}, kind="file")
    assert census.total == 64 * (96 + 32)
    assert all(group.exact for group in census.groups)


def test_mixed_widths_of_one_config():
    """compressed-tensors' groups name modules by pattern; each gets its own width."""
    section = {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "a": {"targets": [r"re:.*experts.*down_proj$"], "weights": {"num_bits": 8, "group_size": 32}},
            "b": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}},
        },
    }
    hints = hints_for({"text_config": {"quantization_config": section}}, None)
    assert hints("model.layers.#.mlp.experts.#.down_proj")[1:3] == (8, 32)
    assert hints("model.layers.#.mlp.experts.#.up_proj")[1:3] == (4, 128)


@pytest.mark.parametrize(
    ("pattern", "layer", "bits"),
    [
        (r"re:.*layers\.(0|1)\.mlp\.experts\.\d+\.(gate|up)_proj$", 1, 8),
        (r"re:.*layers\.(0|1)\.mlp\.experts\.\d+\.(gate|up)_proj$", 2, 4),
        (r"re:model\.layers\.[0-9]+\.mlp\.experts\.[0-9]+\.(?:gate_proj|up_proj)", 7, 8),
        ("model.layers.3.mlp.experts.#.up_proj", 3, 8),
    ],
)
def test_targets_name_layers(pattern, layer, bits):
    groups = {
        "a": {"targets": [pattern], "weights": {"num_bits": 8, "group_size": 32}},
        "b": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32}},
    }
    hints = hints_for({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}, None)
    assert hints("model.layers.#.mlp.experts.#.up_proj", layer).bits == bits


def test_words_tell_bits_the_config_gives_another_module(synthetic):
    """8-bit words under a config whose only group says 4: words and scales say so themselves."""
    parts = [(".weight_packed", "I32", (64, 16)), (".weight_scale", "BF16", (64, 2))]
    answer = solve(parts, Hints("compressed-tensors", 4, 32))
    assert (answer.format, prod(answer.shape), answer.exact) == ("int8", 64 * 64, True)


def test_a_pattern_from_a_stranger_costs_no_time():
    evil = "re:" + "(a+)+" * 20 + "$"
    groups = {"a": {"targets": [evil], "weights": {"num_bits": 4, "group_size": 32}}}
    hints = hints_for({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}, None)
    assert hints("a" * 300).bits == 0


@given(
    st.sampled_from([".weight", ".weight_scale", "_blocks", ".qweight", ".weight_packed", ".W_q", ""]),
    st.text(max_size=20),
)
def test_split_leaf_gives_back_the_name(leaf, module):
    name = f"m{module}{leaf}"
    assert "".join(split_leaf(name)) == name


@settings(max_examples=300)
@given(st.data())
def test_no_shapes_crash_the_table(data):
    """Any dtypes and shapes under any of the table's leaves: an answer or None, never an exception."""
    row = data.draw(st.sampled_from(LAYOUTS))
    shapes = st.lists(st.integers(0, 40), max_size=4).map(tuple)
    dtypes = st.sampled_from(["U8", "I8", "I32", "F32", "BF16", "F8_E4M3", "F8_E8M0", "U32"])
    listed = {leaf: Part(leaf, data.draw(dtypes), data.draw(shapes)) for leaf in (*row.needs, *row.extras)}
    main = Part(row.main, data.draw(st.sampled_from(row.dtypes)), data.draw(shapes))
    hints = Hints("", data.draw(st.integers(0, 9)), data.draw(st.sampled_from([0, 16, 32, 128])))
    answer = unpack(main, {**listed, main.leaf: main}, hints)
    assert answer is None or all(type(n) is int and n >= 0 for n in answer.shape)
