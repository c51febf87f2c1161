"""The table of weight formats (bf16, fp8, int8, int4, mxfp4, nvfp4): one row each, and nothing else decides one.

A row says how many bits an element takes, how many elements share a scale, and how wide the scale is; bytes follow
from that. The packers (`moegauge.kernels.packing`) and the kernels of every backend have one entry per row.
Storage layouts of checkpoints (GPTQ, AWQ, compressed-tensors, ...) are not rows: `moegauge.counting` maps each to
the row whose bytes it moves.
"""

from __future__ import annotations

from dataclasses import dataclass

from moegauge.errors import UnknownNameError


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class Format:
    """One weight format of a matrix of shape [rows, columns] (rows = outputs, columns = inputs).

    Attributes:
        name: the name used in commands, records and tables.
        element_bits: bits of one stored weight.
        scale_bits: bits of one scale; 0 when the format has none.
        scale_rows, scale_columns: the block of weights that shares a scale; 0 in `scale_columns` means a whole row.
        tensor_scale_bits: bits of one further scale for the whole matrix (NVFP4).
        element, scale: the types by their usual names, for tables.
    """

    name: str
    element_bits: int
    scale_bits: int = 0
    scale_rows: int = 1
    scale_columns: int = 0
    tensor_scale_bits: int = 0
    element: str = ""
    scale: str = "none"

    def weight_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the packed weights of one [rows, columns] matrix; each row ends on a byte."""
        return rows * _ceil_div(columns * self.element_bits, 8)

    def scale_bytes(self, rows: int, columns: int) -> int:
        """Bytes of all scales of one [rows, columns] matrix."""
        if self.scale_bits == 0:
            return 0
        across = _ceil_div(columns, self.scale_columns) if self.scale_columns else 1
        return (_ceil_div(rows, self.scale_rows) * across * self.scale_bits + self.tensor_scale_bits) // 8

    def bytes(self, rows: int, columns: int) -> int:
        """Bytes one product with a [rows, columns] matrix must read: weights and scales."""
        return self.weight_bytes(rows, columns) + self.scale_bytes(rows, columns)

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes per parameter of a large matrix (4096 x 4096), scales included."""
        return self.bytes(4096, 4096) / 4096**2


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("f32", 32, element="float32"),
        Format("bf16", 16, element="bfloat16"),
        Format("fp8", 8, 32, 128, 128, element="float8 e4m3fn", scale="float32 per 128x128"),
        Format("int8", 8, 32, 1, 0, element="int8", scale="float32 per row"),
        Format("int4", 4, 16, 1, 32, element="int4, symmetric", scale="bfloat16 per 32"),
        Format("int4_g128", 4, 16, 1, 128, element="int4, symmetric", scale="bfloat16 per 128"),
        Format("mxfp4", 4, 8, 1, 32, element="float4 e2m1", scale="e8m0 per 32"),
        Format("nvfp4", 4, 8, 1, 16, 32, element="float4 e2m1", scale="float8 e4m3 per 16, float32 per matrix"),
    )
}


def get_format(name: str) -> Format:
    """The row called `name`.

    Raises:
        UnknownNameError: no such row; the message suggests the nearest name.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise UnknownNameError("format", name, FORMATS) from None
