"""What one safetensors header holds once validated: the tensors of a shard, the dtypes there are, and the limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from moegauge.counting.errors import HeaderTooLargeError
from moegauge.limits import CHECKPOINT_LIMIT_BYTES

LENGTH_BYTES = 8
U64_MAX = 2**64 - 1

# Bits of one element, for every dtype of safetensors 0.8 (safetensors/src/tensor.rs, Dtype::bitsize).
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


class HeaderBudget:
    """What the headers of one checkpoint may take together, so that ten thousand shards of 100 MB are not read."""

    def __init__(self) -> None:
        self.left_bytes = CHECKPOINT_LIMIT_BYTES

    def take(self, size: int, file: str) -> None:
        """Account for a header of `size` bytes, before it is read.

        Raises:
            HeaderTooLargeError: there is no room for it.
        """
        self.left_bytes -= size
        if self.left_bytes < 0:
            problem = f"with it, the headers of this checkpoint take more than {CHECKPOINT_LIMIT_BYTES:,} bytes."
            raise HeaderTooLargeError(problem, file=file)


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of one shard, as parallel lists in the order of the header.

    Attributes:
        file: the shard's name in its folder or repo.
        names, dtypes: one string each per tensor.
        shapes: one tuple of dimensions per tensor; () is a scalar, which has one element.
        offsets: (begin, end) of each tensor's data in bytes, relative to the first byte after the header.
        metadata: `__metadata__`, None when absent or null.
        header_bytes: the 8-byte length and the JSON after it.
        data_bytes: bytes of tensor data; the validated tensors fill it without hole or overlap.
        warnings: what was accepted but is worth a line, or could not be checked.
    """

    file: str
    names: list[str]
    dtypes: list[str]
    shapes: list[tuple[int, ...]]
    offsets: list[tuple[int, int]]
    metadata: dict[str, str] | None = None
    header_bytes: int = 0
    data_bytes: int = 0
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def elements(self) -> list[int]:
        """Stored elements of each tensor, the product of its shape."""
        return [math.prod(shape) for shape in self.shapes]

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
        """(name, dtype, shape, stored bytes) of every tensor."""
        sizes = (end - begin for begin, end in self.offsets)
        return zip(self.names, self.dtypes, self.shapes, sizes, strict=True)
