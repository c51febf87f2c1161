"""Recognise storage formats: how many weights a module's tensors hold once unpacked.

A format is one row of `LAYOUTS`, recognised by which tensors stand side by side and by their dtypes and shapes; the
config is asked only for what those cannot say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from moegauge.counting import packings
from moegauge.counting.headers.ggml import PACKED_LEAVES
from moegauge.counting.packings import FP8, PLAIN, SUB_BYTE, Answer, Hints, Part, Parts, Shape


class StorageLayout(NamedTuple):
    """One storage format.

    Attributes:
        title: what makes it, for the rule that is reported.
        main: leaf of the tensor that holds the weights.
        dtypes: dtypes it may have.
        needs: leaves that must stand beside it.
        unpack: its packing, see `moegauge.counting.packings`.
        extras: further leaves that describe it.
    """

    title: str
    main: str
    dtypes: tuple[str, ...]
    needs: tuple[str, ...]
    unpack: Callable[[Part, Parts, Hints], Answer | None]
    extras: tuple[str, ...] = ()


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


# Tensors whose data, two integers, is the logical shape of their module's weight.
SHAPE_LEAVES = (".weight_shape", ".shape")
_HQQ_NOTES = tuple(
    f".{name}"
    for name in (
        *("shape", "nbits", "group_size", "axis", "packing", "unpack_view_dtype", "view_as_float", "quant_scale"),
        *("quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise"),
        *("optimize", "round_zero"),
    )
)
# Tensors a step never reads: they describe the packing to a loader.
UNREAD_LEAVES = frozenset(
    (".original_shape", ".weight_shape", ".weight_g_idx", ".g_idx", ".weight_format", *_HQQ_NOTES)
)
_SCALES = (".weight_scale", ".weight_zero_point", ".input_scale", ".input_zero_point", ".output_scale")
_CALIBRATION = (
    *(".input_scale", ".k_scale", ".v_scale", ".q_scale", ".pre_quant_scale", ".input_global_scale"),
    *(".input_scale_ub", ".activation_scale", ".bias_scale", ".qscale_act", ".act_scale", ".weight_zero_point"),
    *(".input_amax", ".original_shape"),
)
_FUSED_CALIBRATION = (
    *("_input_scale", "_activation_scale", ".input_scale", ".activation_scale", "_pre_quant_scale"),
    *(".input_amax", ".original_shape"),
)
_BNB = (
    *("quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4"),
    "quant_state.bitsandbytes__fp4",
)
_BNB_STORAGE = ("U8", "I8", "BF16", "F16", "F32")
_FLOATS = (*PLAIN, *FP8)
# Scales by what they are called beside `x.weight`, and beside a bare `x` (experts fused in one parameter).
_BESIDE_WEIGHT = (".weight_scale", ".weight_scale_inv", ".scale", ".scales", ".qscale_weight", ".weight.scale")
_BESIDE_BARE = ("_weight_scale", "_scale", "_scale_inv", "_scales", ".weight_scale", ".scale", ".weight_scale_inv")
# NVFP4's two scales: per 16 weights, and per matrix.
_NVFP4_WEIGHT = (
    *((".weight_scale", ".weight_scale_2"), (".weight_scale", ".weight_scale2"), (".weight_scale", ".global_scale")),
    *((".weight_scale", ".weight_global_scale"), (".scale", ".scale2"), (".scale", ".scale_2")),
    *((".scale", ".global_scale"), (".qscale_weight", ".qscale_weight_2"), (".qscale_weight", ".qscale_global")),
)
_NVFP4_BARE = (
    *(("_weight_scale", "_weight_scale_2"), ("_scale", "_scale_2"), (".weight_scale", ".weight_scale_2")),
    (".scale", ".scale2"),
)

LAYOUTS: tuple[StorageLayout, ...] = (
    StorageLayout("gpt-oss MXFP4", "_blocks", ("U8",), ("_scales",), packings.mxfp4_blocks),
    StorageLayout("gpt-oss MXFP4", ".blocks", ("U8",), (".scales",), packings.mxfp4_blocks),
    StorageLayout(
        *("compressed-tensors pack-quantized", ".weight_packed", ("I32",), (".weight_scale",), packings.packed_words),
        (*_SCALES, ".weight_shape", ".weight_g_idx"),
    ),
    StorageLayout(
        *("compressed-tensors FP4", ".weight_packed", ("U8",), (".weight_scale",), packings.packed_bytes),
        (*_SCALES, ".weight_global_scale", ".input_global_scale", ".weight_shape"),
    ),
    *(
        StorageLayout("NVFP4", ".weight", ("U8",), scales, packings.packed_bytes, _CALIBRATION)
        for scales in _NVFP4_WEIGHT
    ),
    *(StorageLayout("NVFP4", "", ("U8",), scales, packings.packed_bytes, _FUSED_CALIBRATION) for scales in _NVFP4_BARE),
    StorageLayout(
        *("modelopt INT4 AWQ", ".weight", ("U8",), (".weight_scale",), packings.int4_rows),
        (*_CALIBRATION, ".weight_scale_2"),
    ),
    StorageLayout("BitNet", ".weight", ("U8",), (".weight_scale",), packings.bitnet),
    *(
        StorageLayout("MX in bytes", ".weight", ("U8",), (scale,), packings.packed_bytes, _CALIBRATION)
        for scale in _BESIDE_WEIGHT
    ),
    *(
        StorageLayout("MX in bytes", "", ("U8",), (scale,), packings.packed_bytes, _FUSED_CALIBRATION)
        for scale in _BESIDE_BARE
    ),
    *(
        StorageLayout(
            *("FP4 or FP6", ".weight", tuple(SUB_BYTE), scales, packings.sub_byte),
            _CALIBRATION,
        )
        for scales in (*_NVFP4_WEIGHT, *((scale,) for scale in _BESIDE_WEIGHT))
    ),
    *(
        StorageLayout("FP4 or FP6", "", tuple(SUB_BYTE), scales, packings.sub_byte, _FUSED_CALIBRATION)
        for scales in (*_NVFP4_BARE, *((scale,) for scale in _BESIDE_BARE))
    ),
    *(
        StorageLayout(
            *("bitsandbytes 4-bit", main, _BNB_STORAGE, (f"{main}.absmax",), packings.bitsandbytes4),
            tuple(f"{main}.{name}" for name in _BNB),
        )
        for main in (".weight", "")
    ),
    StorageLayout("FP8 blocks", ".weight", FP8, (".weight_scale_inv",), packings.fp8, _CALIBRATION),
    StorageLayout("FP8 blocks", "", FP8, ("_scale_inv",), packings.fp8, _FUSED_CALIBRATION),
    *(
        StorageLayout("FP8", ".weight", FP8, (scale,), packings.fp8, (*_SCALES, *_CALIBRATION))
        for scale in _BESIDE_WEIGHT
    ),
    *(StorageLayout("FP8", "", FP8, (scale,), packings.fp8, _FUSED_CALIBRATION) for scale in _BESIDE_BARE),
    StorageLayout("8-bit or paired FP4", ".weight", ("I8",), (".scale",), packings.int8),
    StorageLayout("INT8", ".weight", ("I8",), (".weight_scale",), packings.int8, (*_SCALES, *_CALIBRATION)),
    StorageLayout("INT8", ".weight", ("I8",), (".scales",), packings.int8, (".zeros", ".biases")),
    StorageLayout("INT8", "", ("I8",), ("_scale",), packings.int8, _FUSED_CALIBRATION),
    StorageLayout("bitsandbytes 8-bit", ".weight", ("I8",), (".SCB",), packings.int8, (".weight_format",)),
    StorageLayout("EETQ", ".weight", ("I8",), (".weight_scales",), packings.int8),
    StorageLayout(
        *("quanto", ".weight._data", ("I8", *FP8), (".weight._scale",), packings.int8_or_fp8),
        (".input_scale", ".output_scale"),
    ),
    StorageLayout("Paddle weight-only", ".quant_weight", ("I8",), (".weight_scale",), packings.paddle),
    StorageLayout(
        *("Paddle WINT2", ".quant_weight", ("U8",), (".weight_scale", ".super_scales"), packings.paddle2),
        (".code_scale", ".code_zp"),
    ),
    StorageLayout("EXL3", ".trellis", ("I16",), (), packings.exl3, (".suh", ".svh", ".su", ".sv", ".mcg", ".mul1")),
    StorageLayout(
        *("EXL2", ".q_weight", ("I32",), (".q_invperm", ".q_scale"), packings.exl2),
        (".q_scale_max", ".q_groups", ".q_perm", ".q_group_map"),
    ),
    StorageLayout("AQLM", ".codes", ("I8", "I16", "I32"), (".codebooks",), packings.aqlm, (".scales",)),
    StorageLayout("GPTQ", ".qweight", ("I32",), (".qzeros", ".scales"), packings.gptq, (".g_idx",)),
    StorageLayout("AWQ", ".qweight", ("I32",), (".qzeros", ".scales"), packings.awq),
    StorageLayout("GPTQ", ".qweight", ("I32",), (".scales",), packings.gptq, (".g_idx",)),
    StorageLayout("FP4 in bytes", ".qweight", ("U8",), (".scales",), packings.packed_bytes, (".weight_global_scale",)),
    StorageLayout("MLX", ".weight", ("U32",), (".scales",), packings.mlx, (".biases", ".global_scale")),
    StorageLayout("HQQ", ".W_q", ("U8", "I32"), (".scale",), packings.hqq, (".zero", *_HQQ_NOTES)),
    StorageLayout(
        *("torchao", "._weight_qdata", ("I8", "U8", "I32", *FP8), (), packings.torchao),
        ("._weight_scale", "._weight_zero_point", "._weight_scale_and_zero", "._weight_act_pre_scale"),
    ),
    *(StorageLayout("GGUF", leaf, ("U8",), (), packings.ggml) for leaf in PACKED_LEAVES),
    StorageLayout("as stored", ".weight", _FLOATS, (), packings.as_stored),
    StorageLayout("as stored", "", _FLOATS, (), packings.as_stored),
    StorageLayout("as stored", ".bias", _FLOATS, (), packings.as_stored),
)

# Leaves whose role is their module's; any other leaf that describes no sibling is a name of its own.
MAIN_LEAVES = frozenset(row.main for row in LAYOUTS)
_BY_LEAF = {leaf: tuple(row for row in LAYOUTS if row.main == leaf) for leaf in MAIN_LEAVES}
# Leaf -> the main leaves it may describe.
_DESCRIBED: dict[str, frozenset[str]] = {}
for _row in LAYOUTS:
    for _leaf in (*_row.needs, *_row.extras):
        _DESCRIBED[_leaf] = _DESCRIBED.get(_leaf, frozenset()) | {_row.main}
# Every leaf a module's tensors may end in, longest first.
LEAVES: tuple[str, ...] = tuple(
    sorted(
        {leaf for row in LAYOUTS for leaf in (row.main, *row.needs, *row.extras) if leaf},
        key=lambda leaf: (-len(leaf), leaf),
    )
)


def split_leaf(template: str, present: Collection[str] = ()) -> tuple[str, str]:
    """(module, leaf) of a tensor's template: `a.b.weight_scale` -> (`a.b`, `.weight_scale`).

    Args:
        template: the tensor's name.
        present: every name there is. Of several leaves a name ends in, the one with a tensor to describe is meant: the
            scale of `a.w13_weight` is `a.w13_weight_scale`, that of `a.w13` would be called the same.
    """
    if not template.endswith(LEAVES):
        return template, ""
    fits = [leaf for leaf in LEAVES if template.endswith(leaf) and len(template) > len(leaf)]
    for leaf in fits:
        module = template[: -len(leaf)]
        if leaf in MAIN_LEAVES or any(f"{module}{main}" in present for main in _DESCRIBED[leaf]):
            return module, leaf
    return (template[: -len(fits[0])], fits[0]) if fits else (template, "")


def unpack(main: Part, parts: Parts, hints: Hints) -> Unpacked | None:
    """What `main` holds, given the tensors beside it; None when no layout fits or `main` only describes another.

    Args:
        main: the tensor in question.
        parts: every tensor of its module by leaf, itself included.
        hints: what the config says of the module.
    """
    for row in _BY_LEAF.get(main.leaf, ()):
        if main.dtype not in row.dtypes or not all(leaf in parts for leaf in row.needs):
            continue
        try:
            answer = row.unpack(main, parts, hints)
        except (ValueError, IndexError, ZeroDivisionError):
            continue  # shapes no packer of this format makes
        if answer is None:
            continue
        beside = [leaf for leaf in dict.fromkeys((*row.needs, *row.extras)) if leaf in parts]
        rule = f"{row.title}: {main.leaf.lstrip('._') or 'tensor'} {main.dtype}"
        if beside:
            rule += f" beside {', '.join(leaf.lstrip('._') for leaf in beside)}"
        if hints != Hints() and answer != row.unpack(main, parts, Hints()):
            rule += ", with the config's " + ("method" if row.unpack is packings.bitnet else "bits and group size")
        return Unpacked(answer.format, answer.shape, rule, frozenset(beside), answer.exact)
    return None
