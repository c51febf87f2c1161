"""Write a GGUF file of a model's shape with random packed weights, for llama.cpp to load.

Two architectures are known: `gpt-oss` and `qwen3moe`. Matrices keep the formats of the shape they are written from, in
the nearest type ggml has; norms, biases and sinks are float32, as ggml's converters write them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moegauge.bench.peers.peer import load
from moegauge.errors import DeviceError
from moegauge.kernels import codes
from moegauge.kernels.content import WEIGHT_STD
from moegauge.shape import Layer, Matrix, ModelShape

Bytes = NDArray[np.uint8]
# Row of FORMATS -> ggml type.
TYPES: Mapping[str, str] = {
    "f32": "F32",
    "bf16": "BF16",
    "fp8": "Q8_0",
    "int8": "Q8_0",
    "int4": "Q4_0",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
}
# Random bytes drawn once per type and repeated, each time from another place: 8 MiB take 0.1 s, a model minutes.
BLOCK = 1 << 23
CONTEXT = 256  # tokens the file says the model was trained for; none of them is used


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """What llama.cpp expects of one architecture's file beside its matrices.

    Attributes:
        name: llama.cpp's name.
        mlp_norm: its name of the norm before the experts.
        biases: of attention's projections, the router and the experts.
        sinks: one attention sink per head.
        qk_norms: norms of each query and key head.
    """

    name: str
    mlp_norm: str
    biases: bool = False
    sinks: bool = False
    qk_norms: bool = False


# A config's `model_type` -> llama.cpp's architecture.
ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt_oss": Architecture(name="gpt-oss", mlp_norm="post_attention_norm", biases=True, sinks=True),
    "qwen3_moe": Architecture(name="qwen3moe", mlp_norm="ffn_norm", qk_norms=True),
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        name: with its suffix, e.g. `blk.0.ffn_up_exps.weight`.
        shape: outermost dimension first (numpy's order).
        type: ggml's name.
        share: what part of it one token reads: k / E of routed experts, one row of the embedding.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    share: float = 1.0

    @property
    def bytes(self) -> int:
        """Of the whole tensor."""
        block, size = _block_size(self.type)
        return int(np.prod(self.shape)) // block * size

    @property
    def read(self) -> int:
        """Bytes one token reads."""
        return round(self.bytes * self.share)


def tensors(shape: ModelShape) -> list[GgufTensor]:
    """Every tensor of a model's file.

    Raises:
        DeviceError: an architecture the table does not know, or a layer it has no tensor for.
    """
    architecture = architecture_of(shape)
    found = [
        _matrix("token_embd", shape.embedding, share=1 / shape.embedding.rows),
        GgufTensor("output_norm.weight", (shape.hidden,), "F32"),
    ]
    if shape.head:
        found.append(_matrix("output", shape.head))
    for i, layer in enumerate(shape.layers):
        found += [
            GgufTensor(f"blk.{i}.{t.name}", t.shape, t.type, t.share) for t in _layer(layer, shape.hidden, architecture)
        ]
    return found


def architecture_of(shape: ModelShape) -> Architecture:
    """llama.cpp's architecture of the model.

    Raises:
        DeviceError: none is known.
    """
    found = ARCHITECTURES.get(shape.family)
    if found is None:
        raise DeviceError(
            f"no GGUF is written for '{shape.family}' models.", advice=f"Known: {', '.join(sorted(ARCHITECTURES))}."
        )
    return found


def _layer(layer: Layer, hidden: int, architecture: Architecture) -> Iterator[GgufTensor]:
    attention = layer.attention
    names = {m.name: m for m in attention.matrices}
    if set(names) != {"q_proj", "k_proj", "v_proj", "o_proj"} or len(layer.experts) != 1 or len(layer.matrices) != 1:
        raise DeviceError(f"{architecture.name}: a layer that is not grouped-query attention, a router and experts.")
    yield GgufTensor("attn_norm.weight", (hidden,), "F32")
    for ours, theirs in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("o_proj", "attn_output")):
        yield _matrix(theirs, names[ours])
        if architecture.biases:
            yield GgufTensor(f"{theirs}.bias", (names[ours].rows,), "F32")
    if architecture.sinks:
        yield GgufTensor("attn_sinks.weight", (attention.heads,), "F32")
    if architecture.qk_norms:
        yield from (GgufTensor(f"attn_{part}_norm.weight", (attention.head_dim,), "F32") for part in "qk")
    yield GgufTensor(f"{architecture.mlp_norm}.weight", (hidden,), "F32")
    (router,) = layer.matrices
    yield _matrix("ffn_gate_inp", router)
    if architecture.biases:
        yield GgufTensor("ffn_gate_inp.bias", (router.rows,), "F32")
    (pool,) = layer.experts
    share = pool.top_k / pool.count
    for part, matrix in zip(("gate", "up", "down"), pool.matrices, strict=True):
        yield _matrix(f"ffn_{part}_exps", matrix, experts=pool.count, share=share)
        if architecture.biases:
            yield GgufTensor(f"ffn_{part}_exps.bias", (pool.count, matrix.rows), "F32", share)


def _matrix(name: str, matrix: Matrix, *, experts: int = 0, share: float = 1.0) -> GgufTensor:
    if matrix.format not in TYPES:
        raise DeviceError(f"ggml has no type for {matrix.format}.")
    kind = TYPES[matrix.format]
    if matrix.columns % _block_size(kind)[0]:
        raise DeviceError(f"ggml's {kind} needs rows of a multiple of {_block_size(kind)[0]}, not {matrix.columns}.")
    shape = (matrix.rows, matrix.columns)
    return GgufTensor(f"{name}.weight", (experts, *shape) if experts else shape, kind, share)


def write(path: Path, shape: ModelShape, seed: int = 0) -> list[GgufTensor]:
    """Write the file; returns its tensors.

    Raises:
        DeviceError: see `tensors`, or the disk is full.
    """
    gguf = load("gguf")
    found = tensors(shape)
    writer = gguf.GGUFWriter(path, architecture_of(shape).name)
    _describe(writer, shape)
    for tensor in found:
        block, size = _block_size(tensor.type)
        stored = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
        quantised = np.dtype(np.float32) if tensor.type == "F32" else np.dtype(np.uint8)
        writer.add_tensor_info(
            tensor.name,
            tensor.shape if tensor.type == "F32" else stored,
            quantised,
            tensor.bytes,
            raw_dtype=gguf.GGMLQuantizationType[tensor.type],
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        blocks = {kind: _random(kind, seed) for kind in {t.type for t in found}}
        for i, tensor in enumerate(found):
            writer.write_tensor_data(_content(tensor, blocks[tensor.type], i))
        writer.close()
    except OSError as error:
        raise DeviceError(
            f"the GGUF file cannot be written ({error.strerror}).",
            advice="Free space where temporary files go (TMPDIR), or lower --layers.",
        ) from None
    return found


def _describe(writer: Any, shape: ModelShape) -> None:
    """The keys llama.cpp asks for."""
    layer = shape.layers[0]
    attention, (pool,) = layer.attention, layer.experts
    inner = pool.matrices[0].rows
    writer.add_name(shape.name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(len(shape.layers))
    writer.add_feed_forward_length(inner)
    writer.add_expert_feed_forward_length(inner)
    writer.add_expert_count(pool.count)
    writer.add_expert_used_count(pool.top_k)
    writer.add_head_count(attention.heads)
    writer.add_head_count_kv(attention.kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.value_dim)
    writer.add_rope_dimension_count(attention.head_dim)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    windows = [found.attention.window for found in shape.layers if found.attention.window]
    if windows:
        writer.add_sliding_window(windows[0])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(shape.embedding.rows)


def _content(tensor: GgufTensor, block: Bytes, index: int) -> NDArray[Any]:
    """The tensor's bytes: the block again and again, beginning at another element for every tensor."""
    if tensor.type == "F32":
        if tensor.name.endswith("norm.weight"):
            return np.ones(tensor.shape, np.float32)
        return np.resize(block.view(np.float32), tensor.shape)
    size = _block_size(tensor.type)[1]
    turned = np.roll(block, index * 7919 * size % block.size)
    return np.resize(turned, (tensor.bytes,))


def _random(kind: str, seed: int) -> Bytes:
    """About BLOCK bytes of valid blocks of a ggml type, weights of deviation WEIGHT_STD."""
    size = _block_size(kind)[1]
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    count = BLOCK // size
    if kind in ("F32", "BF16"):
        values = rng.standard_normal(count, dtype=np.float32) * np.float32(WEIGHT_STD)
        return values.view(np.uint8) if kind == "F32" else codes.encode_bf16(values).view(np.uint8)
    blocks = np.frombuffer(rng.bytes(count * size), np.uint8).reshape(count, size).copy()
    _SCALES[kind](blocks, rng)
    return blocks.reshape(-1)


def _half(deviation: float) -> Callable[[Bytes, np.random.Generator], None]:
    """A float16 scale ahead of the codes, whose own deviation is given."""

    def put(blocks: Bytes, rng: np.random.Generator) -> None:
        scales = WEIGHT_STD / deviation * (0.75 + 0.5 * rng.random(len(blocks)))
        blocks[:, :2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)

    return put


def _e8m0(blocks: Bytes, rng: np.random.Generator) -> None:
    blocks[:, 0] = rng.integers(118, 121, len(blocks))  # 2^-9 to 2^-7; e2m1's own deviation is 2.9


def _e4m3(blocks: Bytes, rng: np.random.Generator) -> None:
    # Four scales without sign, 2^-6 to 2^-5 as e4m3 writes them: the only exponent that gives WEIGHT_STD.
    blocks[:, :4] = rng.integers(0x08, 0x10, (len(blocks), 4))


_SCALES: Mapping[str, Callable[[Bytes, np.random.Generator], None]] = {
    "Q8_0": _half(73.9),  # int8 codes -128 to 127
    "Q4_0": _half(4.6),  # codes -8 to 7
    "MXFP4": _e8m0,
    "NVFP4": _e4m3,
}


def _block_size(kind: str) -> tuple[int, int]:
    """(elements, bytes) of a block of a ggml type."""
    return {
        "F32": (1, 4),
        "BF16": (1, 2),
        "Q8_0": (32, 34),
        "Q4_0": (32, 18),
        "MXFP4": (32, 17),
        "NVFP4": (64, 36),
    }[kind]
