"""The table of weight formats (bf16, fp8, int8, int4, mxfp4, mxfp8, nvfp4): one row each, and nothing else decides one.

A row says what type an element has, what type a scale, and which elements share one; bytes follow from that. The
kernels keep the same traits in their own language, one row each: `kernels/triton/device/formats.py` and
`kernels/cpu/native/formats.h`; tests compare the three.
Storage layouts of checkpoints (GPTQ, AWQ, compressed-tensors, ...) are not rows: `moegauge.counting` maps each to
the row whose bytes it moves.
"""

from __future__ import annotations

from dataclasses import dataclass

from moegauge.errors import UnknownNameError


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# Bits of every type that an element or a scale may have: IEEE float32 and bfloat16, two's complement integers, and the
# OCP floating-point types e4m3 (finite, one NaN code), e2m1 and e8m0 (a power of two).
BITS = {"f32": 32, "bf16": 16, "e4m3": 8, "int8": 8, "int4": 4, "e2m1": 4, "e8m0": 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One weight format of a matrix of shape [rows, columns] (rows = outputs, columns = inputs): its traits.

    What packers and kernels do follows from these, not from the name: one decoding per type of element, one per type of
    scale, and where scales lie from the block that shares one.

    Attributes:
        name: the name used in commands, records and tables.
        element: type of a stored weight, a key of `BITS`.
        scale: type of a scale; "" when the format has none.
        scale_rows, scale_columns: the block of weights that shares a scale; 0 in `scale_columns` means a whole row.
        tensor_scale: whether there is one further float32 for the whole matrix (NVFP4).
    """

    name: str
    element: str
    scale: str = ""
    scale_rows: int = 1
    scale_columns: int = 0
    tensor_scale: bool = False

    @property
    def element_bits(self) -> int:
        """Bits of one stored weight."""
        return BITS[self.element]

    @property
    def scale_bits(self) -> int:
        """Bits of one scale; 0 when the format has none."""
        return BITS[self.scale] if self.scale else 0

    @property
    def tensor_scale_bits(self) -> int:
        """Bits of the matrix's own scale; 0 when it has none."""
        return 32 if self.tensor_scale else 0

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
        Format(name="f32", element="f32"),
        Format(name="bf16", element="bf16"),
        Format(name="fp8", element="e4m3", scale="f32", scale_rows=128, scale_columns=128),
        Format(name="int8", element="int8", scale="f32"),
        Format(name="int4", element="int4", scale="bf16", scale_columns=32),
        Format(name="int4_g128", element="int4", scale="bf16", scale_columns=128),
        Format(name="mxfp4", element="e2m1", scale="e8m0", scale_columns=32),
        Format(name="mxfp8", element="e4m3", scale="e8m0", scale_columns=32),
        Format(name="nvfp4", element="e2m1", scale="e4m3", scale_columns=16, tensor_scale=True),
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
