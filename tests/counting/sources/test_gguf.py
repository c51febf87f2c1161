"""GGUF files, written by the `gguf` package: counts, names, formats, split files, the Hub, and damaged headers."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from moegauge.counting import count
from moegauge.counting.headers.ggml import GGML_TYPES
from moegauge.counting.headers.gguf import Omitted, read_header
from moegauge.counting.roles import role_of, template_of
from moegauge.counting.sources import gguf as source
from moegauge.counting.sources import release_layout
from moegauge.counting.sources.open import open_checkpoint
from moegauge.errors import MoegaugeError

gguf = pytest.importorskip("gguf", reason="the gguf package writes the files these tests read: pip install gguf")
TYPES = gguf.GGMLQuantizationType

# A release of the catalogue -> its architecture in llama.cpp.
CONVERTED = {
    "qwen3-30b-a3b": "QWEN3MOE",
    "glm-4.7": "GLM4_MOE",
    "deepseek-v3": "DEEPSEEK2",
    "kimi-k2": "DEEPSEEK2",
    "mixtral-8x7b": "LLAMA",
}


def write(path: Path, family: str, tensors: dict[str, tuple[tuple[int, ...], Any]], **fields: Any) -> Path:
    """A GGUF whose data is a hole: the package writes the header, the file is as long as the data would be.

    A field's name with a dot is whole, any other is one of the family's.
    """
    writer = gguf.GGUFWriter(path, family)
    for name, value in fields.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(name if "." in name else f"{family}.{name}", value)
    data = 0
    for name, (shape, kind) in tensors.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        # The writer's shapes of packed tensors are in bytes, as numpy holds them.
        stored = (*shape[:-1], shape[-1] // block * size) if block > 1 else shape
        amount = size
        for n in shape:
            amount *= n
        amount //= block
        dtype = gguf.gguf_writer.np.dtype("uint8" if block > 1 else "float32")
        writer.add_tensor_info(name, stored, dtype, amount, raw_dtype=kind)
        data += -(-amount // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // 32) * 32
    with path.open("r+b") as file:
        file.truncate(start + data)
    return path


def tiny(path: Path, layers: int = 2, first: int = 0, **more: Any) -> Path:
    """Two MoE layers in the mix of types llama.cpp makes of `Q4_K_M`."""
    tensors: dict[str, tuple[tuple[int, ...], Any]] = {}
    if first == 0:
        tensors |= {"token_embd.weight": ((20_000, 256), TYPES.Q4_K), "output.weight": ((20_000, 256), TYPES.Q6_K)}
        tensors["output_norm.weight"] = ((256,), TYPES.F32)
    for layer in range(first, first + layers):
        here = f"blk.{layer}."
        for name, rows in (("q", 256), ("k", 128), ("v", 128), ("output", 256)):
            tensors[f"{here}attn_{name}.weight"] = ((rows, 256), TYPES.Q4_K)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"{here}{name}.weight"] = ((256,), TYPES.F32)
        tensors[f"{here}ffn_gate_inp.weight"] = ((8, 256), TYPES.F32)
        for name, rows, columns, kind in (
            ("gate", 512, 256, "Q4_K"),
            ("up", 512, 256, "Q4_K"),
            ("down", 256, 512, "Q5_K"),
        ):
            tensors[f"{here}ffn_{name}_exps.weight"] = ((8, rows, columns), TYPES[kind])
    attention = {"head_count": 4, "head_count_kv": 2, "key_length": 64, "value_length": 64}
    fields = {
        "block_count": 2,
        "embedding_length": 256,
        "expert_count": 8,
        "expert_used_count": 2,
        **{f"qwen3moe.attention.{key}": value for key, value in attention.items()},
        "expert_feed_forward_length": 512,
        "tokenizer.ggml.tokens": [f"t{n}" for n in range(20_000)],
    }
    return write(path, "qwen3moe", tensors, **fields, **more)


def test_every_type_is_the_packages() -> None:
    theirs = {kind.value: gguf.GGML_QUANT_SIZES[kind] for kind in TYPES}
    assert {number: (row.weights, row.bytes) for number, row in GGML_TYPES.items()} == theirs
    assert [row.name for row in GGML_TYPES.values()] == [TYPES(n).name.lower().replace("_k", "_K") for n in GGML_TYPES]


def test_a_file_is_counted_to_the_byte(tmp_path: Path) -> None:
    path = tiny(tmp_path / "m.gguf")
    census = count(str(path)).to_json()
    experts, used = 2 * 8 * 3 * 512 * 256, 2 * 2 * 3 * 512 * 256
    dense = 2 * 20_000 * 256 + 256 + 2 * (2 * 256 * 256 + 2 * 128 * 256 + 2 * 256 + 8 * 256)
    assert census["parameters"]["routed"] == experts
    assert census["parameters"]["dense"] == dense
    assert census["active"]["parameters"] == dense + used
    per_expert = 2 * 512 * 256 * 144 // 256 + 512 * 256 * 176 // 256
    assert census["bytes_per_token"]["routed"] == 2 * 2 * per_expert
    assert census["bytes_per_token"]["kv_per_context_token"] == 2 * 2 * 2 * 64 * 2
    assert census["formats"]["q5_K"]["bytes"] == 2 * 8 * 512 * 256 * 176 // 256
    assert census["stored"]["bytes"] == sum(int(t.n_bytes) for t in gguf.GGUFReader(path).tensors)
    assert census["inferred"] == census["unclassified"] == census["warnings"] == []
    shape = count(str(path)).model_shape()
    assert shape.routed_bytes == census["bytes_per_token"]["routed"]


@pytest.mark.parametrize("name", CONVERTED)
def test_a_conversion_counts_as_its_release(name: str, tmp_path: Path) -> None:
    """Tensor names by the package's own map from transformers' to llama.cpp's; as its converter does, experts are
    stacked, keys and values of MLA parted."""
    layout = tmp_path / "hf"
    release_layout.write(layout, release_layout.release(name)["config"])
    release = open_checkpoint(str(layout))
    config = release.config or {}
    arch = gguf.MODEL_ARCH[CONVERTED[name]]
    family = gguf.MODEL_ARCH_NAMES[arch]
    decoder = config["num_hidden_layers"]
    # llama.cpp's converter leaves DeepSeek's layer of multi-token prediction out, and keeps GLM's.
    appended = config.get("num_nextn_predict_layers", 0) if CONVERTED[name] == "GLM4_MOE" else 0
    blocks = decoder + appended
    names = gguf.get_tensor_name_map(arch, blocks)
    heads = config["num_attention_heads"]
    stacked: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    tensors: dict[str, tuple[tuple[int, ...], Any]] = {}
    for header in release.headers:
        for full, dtype, shape, _ in header.tensors():
            layer = re.match(r"model\.layers\.(\d+)", full)
            if full.endswith("_scale_inv") or dtype == "I32" or (layer and int(layer[1]) >= blocks):
                continue
            merged = re.sub(r"experts\.\d+\.", "experts.", full)
            if merged != full:
                stacked[merged].append(shape)
                continue
            tensors[full] = (shape, TYPES.F32)
    tensors |= {merged: ((len(shapes), *shapes[0]), TYPES.F32) for merged, shapes in stacked.items()}
    spelled: dict[str, tuple[tuple[int, ...], Any]] = {}
    for full, (shape, kind) in tensors.items():
        corrected = full.replace("e_score_correction_bias", "e_score_correction.bias")
        mapped = names.get_name(corrected, try_suffixes=(".weight", ".bias"))
        assert mapped is not None, full
        if "kv_b_proj" in full:
            layer, rank = mapped.split(".")[1], shape[-1]
            nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
            spelled[f"blk.{layer}.attn_k_b.weight"] = ((heads, rank, nope), kind)
            spelled[f"blk.{layer}.attn_v_b.weight"] = ((heads, value, rank), kind)
        else:
            spelled[mapped] = (shape, kind)
    mla = "kv_lora_rank" in config
    fields = {
        "block_count": blocks,
        "embedding_length": config["hidden_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": 1 if mla else config["num_key_value_heads"],
        "expert_count": config.get("n_routed_experts") or config.get("num_experts") or config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "rope.dimension_count": config["qk_rope_head_dim"] if mla else config["hidden_size"] // heads // 2,
        **({"attention.kv_lora_rank": config["kv_lora_rank"]} if mla else {}),
        **({"attention.key_length": config["head_dim"]} if config.get("head_dim") and not mla else {}),
        **({"nextn_predict_layers": appended} if appended else {}),
    }
    path = write(tmp_path / "m.gguf", family, spelled, **{f"{family}.{key}": value for key, value in fields.items()})
    ours, theirs = count(str(path)).to_json(), count(str(layout)).to_json()
    for section in ("parameters", "active"):
        for key in ours[section]:
            # Scales are elements in one, inside blocks in the other.
            if key != "stored_elements" and (appended or key not in ("mtp", "total")):
                assert ours[section][key] == theirs[section][key], (section, key)
    assert ours["bytes_per_token"]["kv_per_context_token"] == theirs["bytes_per_token"]["kv_per_context_token"]
    for key in ("layers", "moe_layers", "experts", "top_k"):
        assert ours[key] == theirs[key]
    assert ours["inferred"] == ours["unclassified"] == []
    if name == "qwen3-30b-a3b":
        assert count(str(path)).model_shape().active_parameters == ours["active"]["parameters"]


def test_every_tensor_name_of_an_moe_architecture_has_a_role() -> None:
    unknown = {"token_types", *(f"blk.{{bid}}.ffn_{n}_chexps" for n in ("gate", "up", "down"))}  # BERT; GroveMoE
    names = {
        gguf.TENSOR_NAMES[tensor]
        for tensors in gguf.constants.MODEL_TENSORS.values()
        if any("EXP" in tensor.name for tensor in tensors)
        for tensor in tensors
    }
    assert len(names) > 200
    found = {}
    for name in names:
        template = template_of(source.rename(name.format(bid=3) + ".weight"))
        roles = {role_of(template), role_of(template.removesuffix(".weight"))}
        found[name] = roles - {"unclassified"}
    assert {name for name, roles in found.items() if not roles} == unknown
    assert found["blk.{bid}.ffn_gate_inp"] == {"router"}
    assert found["blk.{bid}.ffn_up_shexp"] == {"shared_expert"}
    assert found["v.blk.{bid}.ffn_up"] == {"vision"}


def test_parts_of_a_split_model(tmp_path: Path) -> None:
    whole = count(str(tiny(tmp_path / "whole.gguf"))).to_json()
    folder = tmp_path / "split"
    folder.mkdir()
    tensors = whole["target"]["tensors"]
    first = tiny(folder / "m-00001-of-00002.gguf", layers=1, **{"split.tensors.count": tensors})
    second = tiny(folder / "m-00002-of-00002.gguf", layers=1, first=1)
    for target in (folder, first, second):
        parts = count(str(target)).to_json()
        assert parts["parameters"] == whole["parameters"]
        assert parts["target"]["files"] == 2
    second.unlink()
    with pytest.raises(MoegaugeError, match="1 of 2 parts; number 2 is absent"):
        count(str(first))


def test_of_several_models_one_is_asked_for(tmp_path: Path) -> None:
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m.gguf"):
        tiny(tmp_path / name)
    with pytest.raises(MoegaugeError, match=r"holds 2 GGUF models.*--weights m-Q4_K_M.gguf"):
        count(str(tmp_path))
    assert count(str(tmp_path), weights="m-Q8_0.gguf").decoder
    (tmp_path / "m-Q8_0.gguf").unlink()
    assert count(str(tmp_path)).decoder  # a projector beside a model is no second model


def test_windows_of_gpt_oss_and_of_an_unknown_pattern(tmp_path: Path) -> None:
    def kv(family: str, **fields: Any) -> tuple[Any, list[str]]:
        config, lines = source.config_of(
            {"general.architecture": family, f"{family}.block_count": 4, f"{family}.attention.sliding_window": 128}
            | {f"{family}.{key}": value for key, value in fields.items()},
            ["output.weight"],
            file="m.gguf",
        )
        return config.get("layer_types"), lines

    assert kv("gpt-oss") == (["sliding_attention", "full_attention"] * 2, [])
    pattern = [True, True, True, False]
    assert kv("x", **{"attention.sliding_window_pattern": pattern})[0] == ["sliding_attention"] * 3 + ["full_attention"]
    found, lines = kv("x")
    assert found is None
    assert "128 tokens" in lines[0]


def test_a_repo_of_gguf_files_costs_ranges_alone(hub: Any, client: Any, loopback: Any, tmp_path: Path) -> None:
    path = tiny(tmp_path / "m-Q4_K_M.gguf")
    local = count(str(path)).to_json()
    head = path.read_bytes()[: local["target"]["header_bytes"]]
    size = path.stat().st_size
    hub.add("org/m-GGUF", {"m-Q4_K_M.gguf": loopback.File(head, size), "README.md": b"x"})
    hub.add("org/two-GGUF", {n: loopback.File(head, size) for n in ("a-Q4_K_M.gguf", "a-Q8_0.gguf")})
    remote = client.open("org/m-GGUF", whole=True)
    assert remote["parameters"] == local["parameters"]
    assert remote["bytes_per_token"] == local["bytes_per_token"]
    assert all(r.range for r in hub.log if "resolve" in r.path)
    assert client.open("org/m-GGUF")["requests"] == 1  # the revision; the header is kept
    assert "--weights a-Q4_K_M.gguf" in client.open("org/two-GGUF")["message"]
    assert client.open("org/two-GGUF", weights="a-Q8_0.gguf")["tensors"] == local["target"]["tensors"]


def test_damaged_headers_are_refused_in_one_line(tmp_path: Path) -> None:
    """Every byte that may be cut, and ten thousand mutants: refused, or read as the package's reader reads them."""
    path = write(
        tmp_path / "m.gguf",
        "qwen3moe",
        {"token_embd.weight": ((64, 256), TYPES.Q4_K), "output_norm.weight": ((256,), TYPES.F32)},
        block_count=1,
        tokens=["a", "bc"],
        numbers=[1, 2, 3],
    )
    raw = path.read_bytes()
    size = len(raw)
    start = read_header(lambda at, n: raw[at : at + n], file="m", file_size=size).data_start
    for cut in range(start):
        with pytest.raises(MoegaugeError):
            read_header(lambda at, n, cut=cut: raw[at : min(at + n, cut)], file="m", file_size=cut)
    random_source, accepted = random.Random(1), 0
    for _ in range(10_000):
        mutant = bytearray(raw)
        for _ in range(random_source.choice((1, 1, 2, 8))):
            mutant[random_source.randrange(start)] = random_source.choice(
                (0, 1, 8, 9, 0x7F, 0xFF, random_source.randrange(256))
            )
        try:
            found = read_header(lambda at, n, m=mutant: bytes(m[at : at + n]), file="m", file_size=size)
        except MoegaugeError:
            continue
        accepted += 1
        assert sum(t.bytes for t in found.tensors) <= size - found.data_start
    assert accepted > 500  # most bytes are text or numbers that may be anything


def test_what_the_packages_reader_reads(tmp_path: Path) -> None:
    path = tiny(tmp_path / "m.gguf")
    raw = path.read_bytes()
    ours = read_header(lambda at, n: raw[at : at + n], file="m", file_size=len(raw))
    theirs = gguf.GGUFReader(path)
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    assert [t.shape for t in ours.tensors] == [tuple(int(n) for n in reversed(t.shape)) for t in theirs.tensors]
    assert [t.bytes for t in ours.tensors] == [int(t.n_bytes) for t in theirs.tensors]
    assert [ours.data_start + t.offset for t in ours.tensors] == [int(t.data_offset) for t in theirs.tensors]
    for key, value in ours.metadata.items():
        said = theirs.fields[key].contents()
        ours_is = value.length if isinstance(value, Omitted) else value
        assert ours_is == (len(said) if isinstance(value, Omitted) else said)


def test_a_claim_without_end_is_refused_at_once() -> None:
    """An array of 2^60 elements, 2^50 strings, a name of 2^40 bytes: one line each, nothing is tried."""
    for tail in (
        b"\x04\0\0\0\0\0\0\0k.xx" + b"\x09\0\0\0" + b"\x00\0\0\0" + (2**60).to_bytes(8, "little"),
        b"\x04\0\0\0\0\0\0\0k.xx" + b"\x09\0\0\0" + b"\x08\0\0\0" + (2**50).to_bytes(8, "little"),
        (2**40).to_bytes(8, "little"),
    ):
        raw = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + tail + bytes(100)
        with pytest.raises(MoegaugeError):
            read_header(lambda at, n, raw=raw: raw[at : at + n], file="m", file_size=len(raw))
