"""GPU arena: pools of random packed weights in the order the Triton kernels read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moegauge.errors import DeviceError
from moegauge.formats import get_format
from moegauge.kernels import codes, content
from moegauge.kernels.backend import Arena
from moegauge.kernels.program import ALIGNMENT, Place, Weight
from moegauge.kernels.triton.lowering import layout

if TYPE_CHECKING:
    import torch

Bytes = NDArray[np.uint8]


@cache
def _block(pool: str, seed: int) -> Bytes:
    """Random content whose every word is valid in the canonical order and in the kernels'.

    Only e4m3 weights have codes that must not occur (NaN): a byte of the packed order is not a code. Kept (8 MiB a
    pool): their block takes 2 s to make, and a suite builds dozens of arenas. Not to be written to.
    """
    block = content.block(pool, seed)
    name, _, part = pool.partition(".")
    if part != "weight" or get_format(name).element != "e4m3":
        return block
    rng = np.random.default_rng(seed + 1)
    words = block.view(np.uint32).copy()
    while True:
        bytes_ = words.view(np.uint8)
        nan = codes.E4M3_NAN
        read = layout.decode(bytes_, name, 16, words.size // 4)
        # `decode` permutes whole words: encode which word each code came from by decoding the word numbers' order.
        bad = ((bytes_ & 0x7F) == nan).reshape(-1, 4).any(axis=1)
        bad |= _words_of(read & 0x7F == nan, words.size, name)
        if not bad.any():
            return words.view(np.uint8)
        words[bad] = rng.integers(0, 1 << 32, int(bad.sum()), dtype=np.uint32)


def _words_of(marked: NDArray[np.bool_], words: int, name: str) -> NDArray[np.bool_]:
    """Which packed words hold a marked element of a matrix of 16 rows."""
    packed = layout.encode(np.where(marked, 0xFF, 0).astype(np.uint16), name).view(np.uint32)
    assert packed.size == words
    return np.asarray(packed != 0)


class TritonArena(Arena):
    """Pools on one device.

    Attributes:
        pools: bytes of each.
        device: where they are, `cuda` or `cpu`.
        tiled: the matrices kept in the kernels' order, noted when a program is compiled.
    """

    def __init__(self, pools: Mapping[str, int], seed: int, device: str) -> None:
        import torch

        self.pools, self.device = dict(pools), device
        self.tiled: set[Weight] = set()
        self._memory: dict[str, torch.Tensor] = {}
        try:
            for name, size in pools.items():
                self._memory[name] = self._fill(name, size, seed, device)
        except torch.OutOfMemoryError:
            self.close()
            raise DeviceError(
                f"{sum(pools.values())} bytes of arena do not fit on {device}.", advice="Lower --arena-bytes."
            ) from None

    @staticmethod
    def _fill(name: str, size: int, seed: int, device: str) -> torch.Tensor:
        import torch

        # Slack: a kernel may ask for up to one tile behind the last matrix and not use it.
        memory = torch.empty(
            -(-size // ALIGNMENT) * ALIGNMENT + 4 * layout.TILE_BYTES, dtype=torch.uint8, device=device
        )
        block = torch.from_numpy(_block(name, seed).copy()).to(device)
        for i, start in enumerate(range(0, memory.numel(), content.BLOCK_BYTES)):
            part = memory[start : start + content.BLOCK_BYTES]
            turn = i * 7919 * 64 % content.BLOCK_BYTES
            head = min(part.numel(), content.BLOCK_BYTES - turn)
            part[:head] = block[turn : turn + head]
            part[head:] = block[: part.numel() - head]
        return memory

    def memory(self, pool: str) -> torch.Tensor:
        """A pool's bytes."""
        return self._memory[pool]

    def read(self, pool: str, offset: int, size: int, within: Weight | None = None) -> Bytes:
        """A copy of some bytes, in canonical order; `within` is the matrix (or scales) they belong to."""
        if not 0 <= offset <= offset + size <= self.pools[pool]:
            raise IndexError(f"bytes {offset} to {offset + size} of pool {pool} of {self.pools[pool]}")
        if within is None or within not in self.tiled:
            return self._raw(pool, offset, size)
        if pool == within.weights.pool:
            return self._canonical(within, within.weights, offset, size, scales=False)
        if within.scales and pool == within.scales.pool:
            return self._canonical(within, within.scales, offset, size, scales=True)
        return self._raw(pool, offset, size)

    def _raw(self, pool: str, offset: int, size: int) -> Bytes:
        return np.asarray(self._memory[pool][offset : offset + size].cpu().numpy()).copy()

    def _canonical(self, weight: Weight, place: Place, offset: int, size: int, *, scales: bool) -> Bytes:
        """Read whole row tiles around the bytes asked for and put them in canonical order."""
        fmt = get_format(weight.format)
        if scales and not layout.permutes_scales(weight.format):
            return self._raw(place.pool, offset, size)
        slot = (offset - place.offset) // place.stride if place.stride else 0
        start = place.at(slot)
        row = place.bytes // weight.rows
        first = (offset - start) // (16 * row)
        last = -(-(offset - start + size) // (16 * row))
        rows = 16 * (last - first)
        raw = self._raw(place.pool, start + first * 16 * row, rows * row)
        if scales:
            canonical = layout.unpack_scales(raw, weight.format, rows, weight.columns)
        else:
            canonical = _canonical_bytes(layout.decode(raw, weight.format, rows, weight.columns), fmt.element_bits)
        inside = offset - start - first * 16 * row
        return canonical[inside : inside + size]

    def close(self) -> None:
        """Give the memory back."""
        self._memory.clear()


def _canonical_bytes(elements: NDArray[np.uint16], bits: int) -> Bytes:
    """Codes [rows, columns] -> canonical packed bytes: row-major, lower nibble first."""
    if bits == 16:
        return np.ascontiguousarray(elements).reshape(-1).view(np.uint8)
    narrow: Bytes = elements.astype(np.uint8)
    if bits == 4:
        narrow = np.asarray(narrow[:, ::2] | (narrow[:, 1::2] << 4), np.uint8)
    return np.ascontiguousarray(narrow).reshape(-1)


def canonical_codes(raw: Bytes, bits: int, rows: int, columns: int) -> NDArray[np.uint16]:
    """Inverse of `_canonical_bytes`: what `layout.encode` takes."""
    if bits == 16:
        return raw.view(np.uint16).reshape(rows, columns)
    if bits == 4:
        return np.stack([raw & 15, raw >> 4], axis=-1).reshape(rows, columns).astype(np.uint16)
    return raw.reshape(rows, columns).astype(np.uint16)


def typed(memory: Any, kind: str) -> Any:
    """A pool's bytes as words (`u32`), `f32`, `bf16` or bytes (`u8`)."""
    import torch

    kinds = {"u32": torch.uint32, "f32": torch.float32, "bf16": torch.bfloat16, "u8": torch.uint8}
    return memory.view(kinds[kind])
