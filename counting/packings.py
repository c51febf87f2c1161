"""Unpack shapes: the format and logical rows x columns of packed tensors (GPTQ, AWQ, MXFP4, NVFP4, ...).

Every function takes the tensor that holds the weights, all tensors of its module by leaf, and the config's hints, and
answers None when the shapes say it is another format. Sources: the packers themselves (compressed-tensors, NVIDIA
modelopt, AutoGPTQ, AutoAWQ, bitsandbytes, torchao, HQQ, Quark, MLX) and the OCP Microscaling specification 1.0.
"""

# ruff: noqa: ARG001 - every function takes the same three arguments

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from moegauge.counting.headers.ggml import PACKED_LEAVES

Shape = tuple[int, ...]


class Part(NamedTuple):
    """One tensor of a module: `leaf` is its name after the module's, e.g. `.weight`."""

    leaf: str
    dtype: str
    shape: Shape


Parts = Mapping[str, Part]


class Hints(NamedTuple):
    """What config and file metadata say about one module.

    Attributes:
        method: `quant_method`, lower-case; empty when there is none.
        bits, group: bits of a weight, weights per scale; 0 when not said.
        expert_dtype: DeepSeek-V4's name for its experts' type.
        kind: torchao's tensor class, from the file's metadata.
    """

    method: str = ""
    bits: int = 0
    group: int = 0
    expert_dtype: str = ""
    kind: str = ""


class Answer(NamedTuple):
    """A format's name and the logical shape; `exact` is False when a dimension is an upper bound."""

    format: str
    shape: Shape
    exact: bool = True


# U16: numpy knows no bfloat16, so Paddle writes its bits as unsigned integers.
PLAIN = {"BF16": "bf16", "F16": "f16", "F32": "f32", "F64": "f64", "U16": "bf16"}
FP8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
# dtypes whose shapes count weights, not bytes.
SUB_BYTE = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
# What a tensor of scales is called beside its weights, and NVFP4's second, one for a whole matrix.
SCALE_LEAVES = (
    *(".weight_scale_inv", "_scale_inv", "._weight_scale", ".weight_scale", "_weight_scale", ".scale", "_scale"),
    *(".scales", "_scales", ".qscale_weight", ".weight_scales", ".scale_inv", ".weight._scale", ".weight.scale"),
)
SECOND_SCALE_LEAVES = (
    *(".weight_global_scale", ".weight_scale_2", "_weight_scale_2", ".weight_scale2", ".scale2", ".scale_2"),
    *("_scale_2", ".global_scale", ".qscale_weight_2", ".qscale_global"),
)
_MLX_BITS, _MLX_GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)


def _scale(parts: Parts) -> Part:
    """The tensor of scales; the table lists only formats that need one."""
    return next(parts[leaf] for leaf in SCALE_LEAVES if leaf in parts)


def _widen(shape: Shape, times: int, over: int = 1, axis: int = -1) -> Shape:
    """`shape` with `times`/`over` weights per stored element of `axis`."""
    sizes = list(shape)
    sizes[axis] = sizes[axis] * times // over
    return tuple(sizes)


def _per_scale(main: Part, scale: Part, axis: int = -1) -> float:
    """Stored elements per scale along `axis`; 0 when the shapes do not compare."""
    if len(scale.shape) != len(main.shape) or len(scale.shape) < -axis or not scale.shape[axis]:
        return 0.0
    return main.shape[axis] / scale.shape[axis]


def as_stored(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """One element, one weight."""
    return Answer(PLAIN.get(main.dtype, "fp8"), main.shape)


def mxfp4_blocks(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """gpt-oss: [..., columns / 32, 16], 16 bytes hold 32 weights."""
    if len(main.shape) < 2 or main.shape[-1] != 16 or _scale(parts).shape != main.shape[:-1]:
        return None
    return Answer("mxfp4", (*main.shape[:-2], main.shape[-2] * 32))


def fp8(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """FP8 by the grain of its scales: blocks, rows, whole tensors, or 32 weights (MXFP8)."""
    scale = _scale(parts)
    rows = main.shape[:-1] == scale.shape[:-1]  # 32 x 32 blocks have as many columns a scale
    if scale.dtype in ("F8_E8M0", "U8") and rows and _per_scale(main, scale) == 32:
        return Answer("mxfp8", main.shape)
    size = prod(scale.shape)
    if size == 1 or (len(main.shape) == 3 and size == main.shape[0]):
        return Answer("fp8_tensor", main.shape)
    # One scale a row: [rows] or [rows, 1]. The count alone would not do: 7168 x 16384 has 7,168 blocks of 128 x 128.
    if size == prod(main.shape[:-1]) and scale.shape[-1] in (1, size):
        return Answer("fp8_channel", main.shape)
    return Answer("fp8_block", main.shape)


def int8(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """INT8; or DeepSeek-V4's FP4 pairs in I8, with one E8M0 scale per 32 weights, which is one per 16 bytes."""
    scale = parts.get(".scale")
    if scale is not None and (_per_scale(main, scale) == 16 or (hints.expert_dtype == "fp4" and scale.dtype != "F32")):
        return Answer("mxfp4", _widen(main.shape, 2))
    return Answer("int8", main.shape)


def int8_or_fp8(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """One byte a weight, an integer or a float."""
    return fp8(main, parts, hints) if main.dtype in FP8 else Answer("int8", main.shape)


def packed_words(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """compressed-tensors `pack-quantized`: weights of any width, densely packed along the columns into 32-bit words.

    Words round up, so they bound the columns; scales times group size give them exactly where a group divides a row.
    """
    words, scale = main.shape[-1], _scale(parts)
    columns = scale.shape[-1] * hints.group if hints.group else 0
    bits = hints.bits or (round(words * 32 / columns) if columns else 0)
    if columns and -(-columns * bits // 32) != words:  # this module has other bits than the config's first group
        bits = round(words * 32 / columns) or bits
    if not bits:
        return Answer("packed", _widen(main.shape, 32), exact=False)
    most = words * 32 // bits
    if 0 <= most - columns < -(-32 // bits):
        return Answer(f"int{bits}", (*main.shape[:-1], columns))
    return Answer(f"int{bits}", (*main.shape[:-1], most), exact=False)


def packed_bytes(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """FP4 or FP6 in bytes; the bytes per scale say which, and along which axis."""
    scale = _scale(parts)
    nv = any(leaf in parts for leaf in SECOND_SCALE_LEAVES)
    for axis in (-1, -2):
        per = _per_scale(main, scale, axis)
        if nv and per == 8:  # 16 weights of 4 bits
            return Answer("nvfp4", _widen(main.shape, 2, axis=axis))
        if not nv and per == 16:  # 32 weights of 4 bits
            return Answer("mxfp4", _widen(main.shape, 2, axis=axis))
        if not nv and per == 24:  # 32 weights of 6 bits
            return Answer("mxfp6", _widen(main.shape, 4, 3, axis=axis))
    return None


def sub_byte(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """FP4 and FP6 in the dtypes safetensors has for them: the shape is the weight's, the scales tell MX from NVFP4."""
    scale, bits = _scale(parts), SUB_BYTE[main.dtype]
    for axis in (-1, -2):
        per = _per_scale(main, scale, axis)
        if per == 32:
            return Answer(f"mxfp{bits}", main.shape)
        if per == 16 and bits == 4:
            return Answer("nvfp4", main.shape)
    return Answer(f"fp{bits}", main.shape)


def paddle(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """Paddle's weight-only [outputs, inputs]: one scale an output tells 8 bits from 4, two outputs a byte."""
    outputs, rows = prod(parts[".weight_scale"].shape), main.shape[-2]
    bits = {rows: 8, 2 * rows: 4}.get(outputs)
    return None if bits is None else Answer(f"int{bits}", (*main.shape[:-2], outputs, main.shape[-1]))


def paddle2(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """Paddle's WINT2 [inputs / 4, outputs]: four weights a byte along the inputs, a scale of scales an output."""
    inputs, outputs = main.shape
    return Answer("int2", (outputs, 4 * inputs)) if prod(parts[".super_scales"].shape) == outputs else None


def exl3(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """EXL3: tiles of 16 x 16 weights in 16 K words of 16 bits, [inputs / 16, outputs / 16, 16 K]; K may be a half."""
    if len(main.shape) < 3 or not 0 < main.shape[-1] <= 16 * 16:
        return None
    return Answer("exl3", (*main.shape[:-3], main.shape[-2] * 16, main.shape[-3] * 16))


def exl2(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """EXL2: rows of several widths in one tensor; the permutation has one entry per input, scales eight outputs a
    word."""
    return Answer("exl2", (parts[".q_scale"].shape[-1] * 8, prod(parts[".q_invperm"].shape)))


def aqlm(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """AQLM: codes [outputs / a, inputs / b, books] into codebooks [books, entries, a, b]."""
    (rows, columns, _), (_, _, high, wide) = main.shape, parts[".codebooks"].shape
    return Answer("aqlm", (rows * high, columns * wide))


def int4_rows(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """modelopt INT4 AWQ: pairs packed along the outputs, so there are twice as many rows of scales as of bytes."""
    scale = _scale(parts)
    if len(main.shape) < 2 or len(scale.shape) != len(main.shape) or scale.shape[-2] != 2 * main.shape[-2]:
        return None
    return Answer("int4", _widen(main.shape, 2, axis=-2))


def bitnet(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """BitNet: four 2-bit weights a byte, along the outputs."""
    if hints.method != "bitnet" or len(main.shape) != 2:
        return None
    return Answer("ternary", _widen(main.shape, 4, axis=0))


def bitsandbytes4(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """bitsandbytes NF4/FP4: one flat tensor, two weights a byte of whatever dtype it is stored as."""
    kind = next((leaf.rpartition("__")[2] for leaf in parts if ".quant_state.bitsandbytes__" in leaf), None)
    if kind is None:
        return None
    size = {"U8": 2, "I8": 2, "BF16": 4, "F16": 4, "F32": 8}[main.dtype]
    return Answer(f"bnb_{kind}", (prod(main.shape) * size,))


def gptq(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """GPTQ: packed along the inputs, [inputs x bits / 32, outputs]; g_idx has one entry per input."""
    rows, columns = main.shape[-2:]
    if parts[".scales"].shape[-1] != columns:
        return None
    if ".g_idx" in parts:
        inputs = parts[".g_idx"].shape[-1]
    else:
        bits = (round(parts[".qzeros"].shape[-1] * 32 / columns) if ".qzeros" in parts else 0) or hints.bits
        inputs = rows * 32 // bits
    return Answer(f"int{round(rows * 32 / inputs)}", (*main.shape[:-2], columns, inputs))


def awq(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """AWQ: packed along the outputs, [inputs, outputs x bits / 32]."""
    inputs, words = main.shape[-2:]
    outputs = parts[".scales"].shape[-1]
    return Answer(f"int{round(words * 32 / outputs)}", (*main.shape[:-2], outputs, inputs))


def mlx(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """MLX: packed along the columns into 32-bit words; widths may differ from module to module.

    Byte scales stand for 16 (NVFP4) or 32 weights (MXFP4, MXFP8), which the words per scale tell. Affine scales stand
    for as many as the config says; a group size that makes no width MLX has gives way to the only one that does.
    """
    scale, words = parts[".scales"], main.shape[-1]
    per = _per_scale(main, scale)
    if scale.dtype in ("U8", "F8_E4M3", "F8_E8M0"):
        names = {2.0: ("nvfp4", 16), 4.0: ("mxfp4", 32), 8.0: ("mxfp8", 32)}
        if per not in names:
            return None
        return Answer(names[per][0], (*main.shape[:-1], scale.shape[-1] * names[per][1]))
    sizes = [group for group in _MLX_GROUPS if per * 32 / group in _MLX_BITS]
    group = hints.group if hints.group in sizes else sizes[0] if len(sizes) == 1 else 0
    columns = scale.shape[-1] * group
    if not columns and hints.bits:
        columns = words * 32 // hints.bits
    if not columns:
        return None
    return Answer(f"int{round(words * 32 / columns)}", (*main.shape[:-1], columns))


def hqq(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """HQQ: groups of weights as rows or columns. Along axis 1 a packed row is as wide as a group, and there is one
    scale a group, whatever the bits; along axis 0 the bits are needed."""
    scale = parts.get(".scale")
    bits, groups = hints.bits, prod(scale.shape) if scale is not None else 0
    if scale is not None and len(scale.shape) == 2 and scale.shape[-1] == 1:
        label = f"int{bits}" if bits else "hqq"
        return Answer(label, (groups * main.shape[-1],))
    if bits and hints.group and groups:
        return Answer(f"int{bits}", (groups * hints.group,))
    per = {"U8": 8, "I32": 32}[main.dtype] // (bits or 1)
    return Answer(f"int{bits}" if bits else "hqq", (prod(main.shape) * per,), exact=False)


def torchao(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """torchao's tensor subclasses: the file's metadata names the class; plain int4 also shows in its scales, which are
    [groups, rows] where others are [rows, groups]."""
    if main.dtype in FP8:
        return fp8(main, parts, hints)
    if main.dtype == "I32":
        return Answer("int4", _tiles(main.shape) if len(main.shape) == 4 else _widen(main.shape, 8))
    scale = parts.get("._weight_scale")
    turned = scale is not None and len(scale.shape) == 2 and scale.shape[1] == main.shape[0] != scale.shape[0]
    if hints.kind == "Int4Tensor" or (not hints.kind and turned):
        return Answer("int4", _widen(main.shape, 2))
    return Answer("int8", main.shape)


def _tiles(shape: Shape) -> Shape:
    """[n / 8, k / (16 inner), 32, inner / 2] int32 words of 8 weights -> [n, k]."""
    rows = shape[0] * 8
    return rows, prod(shape) * 8 // rows


def ggml(main: Part, parts: Parts, hints: Hints) -> Answer | None:
    """ggml's block types: a row of bytes is a whole number of blocks."""
    row = PACKED_LEAVES[main.leaf]
    if not main.shape or main.shape[-1] % row.bytes:
        return None
    return Answer(row.name, (*main.shape[:-1], main.shape[-1] // row.bytes * row.weights))
