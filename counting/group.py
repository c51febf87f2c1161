"""One group of tensors alike in all but the numbers in their names: what roles, formats and counts work on."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from moegauge.counting.headers.header import DTYPE_BITS
from moegauge.counting.packings import Shape
from moegauge.counting.storage import UNREAD_LEAVES

NO_LAYER = -1


@dataclass(slots=True)
class Group:
    """Tensors alike in everything but the numbers in their names.

    Attributes:
        module, leaf: the name, numbers as `#`, split where the module ends.
        layer: the layer's number, NO_LAYER outside layers.
        stack: what the layers belong to, e.g. `model.layers`.
        dtype, shape: as stored, of each tensor.
        tensors: how many there are.
        role: what they are counted under.
        owner: the role of what they belong to: for scales, that of their weights; else `role`.
        pool: what holds the experts it belongs to, where structure placed it; empty where its name says.
        format: storage format, e.g. `fp8_block`; that of their weights for scales.
        rule: what decided the format.
        logical: shape of one tensor's weights after unpacking; None when it holds no parameters.
        exact: False when `logical` is an upper bound.
    """

    module: str
    leaf: str
    layer: int
    stack: str
    dtype: str
    shape: Shape
    tensors: int
    role: str = "unclassified"
    owner: str = "unclassified"
    pool: str = ""
    format: str = ""
    rule: str = ""
    logical: Shape | None = None
    exact: bool = True

    @property
    def template(self) -> str:
        """The full name, numbers as `#`."""
        return self.module + self.leaf

    @property
    def elements(self) -> int:
        """Stored elements of all of them."""
        return self.tensors * prod(self.shape)

    @property
    def bytes(self) -> int:
        """Stored bytes of all of them."""
        return self.tensors * (prod(self.shape) * DTYPE_BITS[self.dtype] // 8)

    @property
    def parameters(self) -> int:
        """Logical parameters of all of them."""
        return 0 if self.logical is None else self.tensors * prod(self.logical)

    @property
    def read_bytes(self) -> int:
        """Bytes a step may read of them: all, but for integers that only tell a loader the packing."""
        return 0 if self.role == "buffer" or self.leaf in UNREAD_LEAVES else self.bytes
