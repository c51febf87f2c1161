"""Storage formats: how many weights a module's tensors hold once unpacked. A format is one row of `LAYOUTS`, recognised
by which tensors stand side by side and by their dtypes and shapes; the config is asked only for what those cannot say.

Sources: the packers themselves (compressed-tensors, NVIDIA modelopt, AutoGPTQ, AutoAWQ, bitsandbytes, torchao, HQQ,
Quark, MLX) and the OCP Microscaling specification 1.0 for MXFP4/6/8.
"""

# ruff: noqa: ARG001 - every unpacking function takes the same three arguments

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

Shape = tuple[int, ...]


class Part(NamedTuple):
    """One tensor of a module: `leaf` is its name after the module's, e.g. `.weight`."""

    leaf: str
    dtype: str
    shape: Shape


Parts = Mapping[str, Part]


class Hints(NamedTuple):
    """What the quantisation config says about one module.

    Attributes:
        method: `quant_method`, lower-case; empty when there is none.
        bits, group: bits of a weight, weights per scale; 0 when not said.
        expert_dtype: DeepSeek-V4's name for its experts' type.
    """

    method: str = ""
    bits: int = 0
    group: int = 0
    expert_dtype: str = ""


class Unpacked(NamedTuple):
    """What a layout says of a main tensor.

    Attributes:
        format: name in the census, e.g. `fp8_block`.
        shape: the logical weight's shape.
        rule: which siblings, dtypes or config fields decided.
        claimed: leaves of the tensors that only describe this one.
        exact: False when the shape is an upper bound.
    """

    format: str
    shape: Shape
    rule: str
    claimed: frozenset[str] = frozenset()
    exact: bool = True


Answer = tuple[str, Shape] | None
Unpack = Callable[[Part, Parts, Hints], Answer]


class Layout(NamedTuple):
    """One storage format.

    Attributes:
        title: what makes it, for the rule that is reported.
        main: leaf of the tensor that holds the weights.
        dtypes: dtypes it may have.
        needs: leaves that must stand beside it.
        unpack: (format, logical shape), or None when shapes say it is another layout.
        extras: further leaves that describe it.
    """

    title: str
    main: str
    dtypes: tuple[str, ...]
    needs: tuple[str, ...]
    unpack: Unpack
    extras: tuple[str, ...] = ()


# Tensors a step never reads: they describe the packing to a loader.
UNREAD_LEAVES = frozenset({".weight_shape", ".weight_g_idx", ".g_idx", ".shape", ".nbits", ".group_size", ".axis"})
FP8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_PLAIN = {"BF16": "bf16", "F16": "f16", "F32": "f32", "F64": "f64", **dict.fromkeys(FP8, "fp8")}


def _widen(shape: Shape, times: int, over: int = 1) -> Shape:
    """`shape` with its last axis holding `times`/`over` weights per stored element."""
    return (*shape[:-1], shape[-1] * times // over)


def _per_scale(main: Part, scale: Part) -> float:
    """Stored elements of a row per scale of it; 0 when the two do not divide the same way."""
    if len(scale.shape) != len(main.shape) or not scale.shape or not scale.shape[-1]:
        return 0.0
    return main.shape[-1] / scale.shape[-1]


def _mxfp4_blocks(main: Part, parts: Parts, hints: Hints) -> Answer:
    # [..., columns / 32, 16]: 16 bytes hold 32 weights
    if len(main.shape) < 2 or main.shape[-1] != 16 or parts["_scales"].shape != main.shape[:-1]:
        return None
    return "mxfp4", (*main.shape[:-2], main.shape[-2] * 32)


def _fp8_scaled(main: Part, parts: Parts, hints: Hints) -> Answer:
    scale = next(
        parts[leaf]
        for leaf in (".weight_scale_inv", "_scale_inv", ".scale", ".weight_scale", "_scale")
        if leaf in parts
    )
    if scale.dtype in ("F8_E8M0", "U8") and _per_scale(main, scale) == 32:
        return "mxfp8", main.shape
    size = prod(scale.shape)
    if size == 1 or (len(main.shape) == 3 and size == main.shape[0]):
        return "fp8_tensor", main.shape
    # One scale a row: [rows] or [rows, 1]. The count alone would not do: 7168 x 16384 has 7,168 blocks of 128 x 128.
    if size == prod(main.shape[:-1]) and scale.shape[-1] in (1, size):
        return "fp8_channel", main.shape
    return "fp8_block", main.shape


def _int8(main: Part, parts: Parts, hints: Hints) -> Answer:
    scale = parts.get(".scale")
    # FP4 pairs in I8 (DeepSeek-V4's experts): one E8M0 scale per 32 weights is one per 16 bytes
    if scale is not None and (_per_scale(main, scale) == 16 or (hints.expert_dtype == "fp4" and scale.dtype != "F32")):
        return "mxfp4", _widen(main.shape, 2)
    return "int8", main.shape


def _packed_words(main: Part, parts: Parts, hints: Hints) -> Answer:
    """compressed-tensors `pack-quantized`: `bits` per weight, densely packed along the columns into 32-bit words."""
    words, scale = main.shape[-1], parts[".weight_scale"]
    columns = scale.shape[-1] * hints.group if hints.group else 0
    bits = hints.bits or (round(words * 32 / columns) if columns else 0)
    if not bits:
        return None
    most = words * 32 // bits
    # A group size divides the columns, so the scales give them exactly where the words leave padding.
    return f"int{bits}", (*main.shape[:-1], columns if 0 < most - columns < -(-32 // bits) else most)


def _packed_bytes(main: Part, parts: Parts, hints: Hints) -> Answer:
    """FP4 or FP6 in bytes along the columns; the weights per scale say which."""
    per = _per_scale(main, parts[".weight_scale"])
    if ".weight_global_scale" in parts or ".weight_scale_2" in parts:
        return ("nvfp4", _widen(main.shape, 2)) if per == 8 else None
    return {
        16.0: ("mxfp4", _widen(main.shape, 2)),  # 32 weights of 4 bits
        24.0: ("mxfp6", _widen(main.shape, 4, 3)),  # 32 weights of 6 bits
        32.0: ("mxfp8", main.shape),
    }.get(per)


def _modelopt_rows(main: Part, parts: Parts, hints: Hints) -> Answer:
    # modelopt INT4 AWQ packs pairs along the outputs: twice as many rows of scales as of bytes
    scale = parts[".weight_scale"]
    if len(main.shape) < 2 or len(scale.shape) != len(main.shape) or scale.shape[-2] != 2 * main.shape[-2]:
        return None
    return "int4", (*main.shape[:-2], 2 * main.shape[-2], main.shape[-1])


def _bitnet(main: Part, parts: Parts, hints: Hints) -> Answer:
    if hints.method != "bitnet" or len(main.shape) != 2:
        return None
    return "ternary", (main.shape[0] * 4, main.shape[1])  # four 2-bit weights a byte, along the outputs


def _bnb4(main: Part, parts: Parts, hints: Hints) -> Answer:
    kind = next((leaf.rpartition("__")[2] for leaf in parts if ".quant_state.bitsandbytes__" in leaf), None)
    if kind is None:
        return None
    size = {"U8": 2, "I8": 2, "BF16": 4, "F16": 4, "F32": 8}[main.dtype]
    return f"bnb_{kind}", (prod(main.shape) * size,)


def _gptq(main: Part, parts: Parts, hints: Hints) -> Answer:
    rows, columns = main.shape
    if parts[".scales"].shape[-1] != columns:
        return None
    if ".g_idx" in parts:
        inputs = prod(parts[".g_idx"].shape)
    else:
        bits = hints.bits or round(parts[".qzeros"].shape[-1] * 32 / columns)
        inputs = rows * 32 // bits
    return f"int{round(rows * 32 / inputs)}", (columns, inputs)


def _awq(main: Part, parts: Parts, hints: Hints) -> Answer:
    inputs, words = main.shape
    outputs = parts[".scales"].shape[-1]
    return f"int{round(words * 32 / outputs)}", (outputs, inputs)


def _mlx(main: Part, parts: Parts, hints: Hints) -> Answer:
    columns = parts[".scales"].shape[-1] * hints.group
    bits = hints.bits or (round(main.shape[-1] * 32 / columns) if columns else 0)
    if not bits:
        return None
    return f"int{bits}", (*main.shape[:-1], main.shape[-1] * 32 // bits)


def _as_stored(main: Part, parts: Parts, hints: Hints) -> Answer:
    return _PLAIN[main.dtype], main.shape


_SCALES = (".weight_scale", ".weight_zero_point", ".input_scale", ".input_zero_point", ".output_scale")
_CALIBRATION = (".input_scale", ".k_scale", ".v_scale", ".q_scale", ".pre_quant_scale", ".input_global_scale")

LAYOUTS: tuple[Layout, ...] = (
    Layout("gpt-oss MXFP4", "_blocks", ("U8",), ("_scales",), _mxfp4_blocks),
    Layout(
        "compressed-tensors pack-quantized",
        ".weight_packed",
        ("I32",),
        (".weight_scale",),
        _packed_words,
        (*_SCALES, ".weight_shape", ".weight_g_idx"),
    ),
    Layout(
        "compressed-tensors FP4",
        ".weight_packed",
        ("U8",),
        (".weight_scale",),
        _packed_bytes,
        (*_SCALES, ".weight_global_scale", ".input_global_scale", ".weight_shape"),
    ),
    Layout("modelopt NVFP4", ".weight", ("U8",), (".weight_scale", ".weight_scale_2"), _packed_bytes, _CALIBRATION),
    Layout(
        "modelopt INT4 AWQ", ".weight", ("U8",), (".weight_scale",), _modelopt_rows, (*_CALIBRATION, ".weight_scale_2")
    ),
    Layout("BitNet", ".weight", ("U8",), (".weight_scale",), _bitnet),
    Layout("Quark MX", ".weight", ("U8",), (".weight_scale",), _packed_bytes, _CALIBRATION),
    Layout(
        "bitsandbytes 4-bit",
        ".weight",
        ("U8", "I8", "BF16", "F16", "F32"),
        (".weight.absmax",),
        _bnb4,
        (
            ".weight.quant_map",
            ".weight.nested_absmax",
            ".weight.nested_quant_map",
            ".weight.quant_state.bitsandbytes__nf4",
            ".weight.quant_state.bitsandbytes__fp4",
        ),
    ),
    Layout("FP8 blocks", ".weight", FP8, (".weight_scale_inv",), _fp8_scaled, (".input_scale", ".activation_scale")),
    Layout("FP8 blocks", "", FP8, ("_scale_inv",), _fp8_scaled, ("_activation_scale",)),
    Layout("FP8", ".weight", FP8, (".weight_scale",), _fp8_scaled, (*_SCALES, *_CALIBRATION)),
    Layout("FP8", "", FP8, ("_scale",), _fp8_scaled),
    Layout("FP8", ".weight", FP8, (".scale",), _fp8_scaled),
    Layout("8-bit or paired FP4", ".weight", ("I8",), (".scale",), _int8),
    Layout("INT8", ".weight", ("I8",), (".weight_scale",), _int8, _SCALES),
    Layout("bitsandbytes 8-bit", ".weight", ("I8",), (".SCB",), _int8, (".weight_format",)),
    Layout("EETQ", ".weight", ("I8",), (".weight_scales",), _int8),
    Layout("GPTQ", ".qweight", ("I32",), (".qzeros", ".scales"), _gptq, (".g_idx",)),
    Layout("AWQ", ".qweight", ("I32",), (".qzeros", ".scales"), _awq),
    Layout("MLX", ".weight", ("U32",), (".scales",), _mlx, (".biases",)),
    Layout("as stored", ".weight", tuple(_PLAIN), (), _as_stored),
    Layout("as stored", "", tuple(_PLAIN), (), _as_stored),
    Layout("as stored", ".bias", tuple(_PLAIN), (), _as_stored),
)

# Every leaf a module's tensors may end in, longest first.
LEAVES: tuple[str, ...] = tuple(
    sorted(
        {leaf for row in LAYOUTS for leaf in (row.main, *row.needs, *row.extras) if leaf},
        key=lambda leaf: (-len(leaf), leaf),
    )
)


def split_leaf(template: str) -> tuple[str, str]:
    """(module, leaf) of a tensor's template: `a.b.weight_scale` -> (`a.b`, `.weight_scale`)."""
    for leaf in LEAVES:
        if template.endswith(leaf) and len(template) > len(leaf):
            return template[: -len(leaf)], leaf
    return template, ""


def unpack(main: Part, parts: Parts, hints: Hints) -> Unpacked | None:
    """What `main` holds, given the tensors beside it; None when no layout fits or `main` only describes another.

    Args:
        main: the tensor in question.
        parts: every tensor of its module by leaf, itself included.
        hints: what the config says of the module.
    """
    for row in LAYOUTS:
        if row.main != main.leaf or main.dtype not in row.dtypes or not all(leaf in parts for leaf in row.needs):
            continue
        answer = row.unpack(main, parts, hints)
        if answer is None:
            continue
        beside = [leaf for leaf in (*row.needs, *row.extras) if leaf in parts]
        rule = f"{row.title}: {main.leaf.lstrip('._') or 'tensor'} {main.dtype}"
        if beside:
            rule += f" beside {', '.join(leaf.lstrip('._') for leaf in beside)}"
        return Unpacked(answer[0], answer[1], rule, frozenset(beside))
    return None
