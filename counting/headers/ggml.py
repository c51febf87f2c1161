"""The table of ggml tensor types (Q4_K, Q8_0, IQ2_XXS, MXFP4, ...): weights of one block and the bytes they take.

Source: `ggml/include/ggml.h` (enum ggml_type) and the block structs of `ggml/src/ggml-common.h` in llama.cpp. Numbers
missing here were types that llama.cpp has removed.
"""

from __future__ import annotations

from typing import NamedTuple


class GgmlType(NamedTuple):
    """One type: `weights` of a block take `bytes`. `dtype` is safetensors' name where a block is one plain number,
    empty where weights are packed."""

    name: str
    weights: int
    bytes: int
    dtype: str = ""


GGML_TYPES: dict[int, GgmlType] = {
    0: GgmlType("f32", 1, 4, "F32"),
    1: GgmlType("f16", 1, 2, "F16"),
    2: GgmlType("q4_0", 32, 18),
    3: GgmlType("q4_1", 32, 20),
    6: GgmlType("q5_0", 32, 22),
    7: GgmlType("q5_1", 32, 24),
    8: GgmlType("q8_0", 32, 34),
    9: GgmlType("q8_1", 32, 40),
    10: GgmlType("q2_K", 256, 84),
    11: GgmlType("q3_K", 256, 110),
    12: GgmlType("q4_K", 256, 144),
    13: GgmlType("q5_K", 256, 176),
    14: GgmlType("q6_K", 256, 210),
    15: GgmlType("q8_K", 256, 292),
    16: GgmlType("iq2_xxs", 256, 66),
    17: GgmlType("iq2_xs", 256, 74),
    18: GgmlType("iq3_xxs", 256, 98),
    19: GgmlType("iq1_s", 256, 50),
    20: GgmlType("iq4_nl", 32, 18),
    21: GgmlType("iq3_s", 256, 110),
    22: GgmlType("iq2_s", 256, 82),
    23: GgmlType("iq4_xs", 256, 136),
    24: GgmlType("i8", 1, 1, "I8"),
    25: GgmlType("i16", 1, 2, "I16"),
    26: GgmlType("i32", 1, 4, "I32"),
    27: GgmlType("i64", 1, 8, "I64"),
    28: GgmlType("f64", 1, 8, "F64"),
    29: GgmlType("iq1_m", 256, 56),
    30: GgmlType("bf16", 1, 2, "BF16"),
    34: GgmlType("tq1_0", 256, 54),
    35: GgmlType("tq2_0", 256, 66),
    39: GgmlType("mxfp4", 32, 17),
    40: GgmlType("nvfp4", 64, 36),
    41: GgmlType("q1_0", 128, 18),
}

# What the name of a packed tensor ends in once it is read: `.weight.q4_K`. Bytes alone do not tell the types apart.
PACKED_LEAVES: dict[str, GgmlType] = {f".weight.{row.name}": row for row in GGML_TYPES.values() if not row.dtype}
