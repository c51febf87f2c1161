"""PyTorch's own products on a GPU: bfloat16 `linear`, float8 by row (`_scaled_mm`), int4 in groups of 32.

Never run here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import numpy as np

from moegauge.bench.peers.linear import Floats, PackedMatrix, Packer, as_float64, prepare_linear
from moegauge.bench.peers.peer import Peer, Prepared, not_installed
from moegauge.bench.peers.work import Work
from moegauge.errors import DeviceError
from moegauge.kernels.content import WEIGHT_STD

GROUP = 32
E4M3_MAX = 448.0


def lacking(space: str, function: str, products: str, capability: tuple[int, int]) -> str | None:
    """Why torch cannot run a peer on a GPU: it is not there, finds none, lacks `torch.<space>.<function>`, or the GPU
    is older than `products` need."""
    reason = not_installed("torch", "torch")
    if reason is not None:
        return reason
    import torch

    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if not hasattr(attrgetter(space)(torch), function):
        return f"torch {torch.__version__} has no {function}"
    if torch.cuda.get_device_capability() < capability:
        return f"{products} need compute capability {capability[0]}.{capability[1]}"
    return None


def _peer(
    name: str, formats: Mapping[str, str], packer: Callable[[], Packer], operator: str, *, float8: bool = False
) -> Peer:
    """One of torch's products: absent without torch, a GPU torch can use, or the operator."""

    def prepare(work: Work, _threads: int) -> Prepared:
        made: Prepared = prepare_linear(work, "cuda", packer(), dtype="bfloat16", float8=float8)
        return made

    return Peer(
        name=name,
        kernels=frozenset({"product", "experts"}),
        formats=formats,
        distributions=("torch",),
        absent=lambda: lacking("ops.aten", operator, "float8 products", (8, 9) if float8 else (0, 0)),
        prepare=prepare,
    )


def _each(make: Callable[[int, int], PackedMatrix]) -> Callable[[], Packer]:
    def packer() -> Packer:
        def pack(rows: int, columns: int, count: int, seed: int) -> list[PackedMatrix]:
            import torch

            torch.manual_seed(seed)
            return [make(rows, columns) for _ in range(count)]

        return pack

    return packer


def _bf16(rows: int, columns: int) -> PackedMatrix:
    import torch

    weight = torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda").normal_(0, WEIGHT_STD)
    return PackedMatrix((weight,), lambda x: torch.nn.functional.linear(x, weight), lambda: as_float64(weight))


def _float8(rows: int, columns: int) -> PackedMatrix:
    import torch

    weight = torch.randn(rows, columns, device="cuda").to(torch.float8_e4m3fn)
    scales = (torch.rand(1, rows, device="cuda") + 0.5) * WEIGHT_STD
    scaled: Any = torch._scaled_mm

    def product(x: tuple[Any, Any]) -> Any:
        codes, scale = x
        return scaled(codes, weight.t(), scale_a=scale, scale_b=scales, out_dtype=torch.bfloat16, use_fast_accum=True)

    return PackedMatrix((weight, scales), product, lambda: as_float64(weight) * as_float64(scales).T, _as_float8)


def _as_float8(x: Any) -> tuple[Any, Any]:
    """Rows as float8 with a scale each."""
    import torch

    scale = x.abs().amax(-1, keepdim=True).float() / E4M3_MAX
    return (x / scale).to(torch.float8_e4m3fn), scale


def _int4(rows: int, columns: int) -> PackedMatrix:
    import torch

    # Tiles of 16 columns a thread block takes at once: the most that divide the matrix.
    tiles = next((n for n in (8, 4, 2) if columns % (16 * n) == 0), None)
    if tiles is None:
        raise DeviceError(f"torch's int4 product needs a multiple of 32 columns, not {columns}.")
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device="cuda")
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, tiles)
    table = (torch.rand(columns // GROUP, rows, 2, device="cuda") + 0.5) * (WEIGHT_STD / 4.6)
    table = table.to(torch.bfloat16)  # scale and zero; a weight is (code - 8) * scale + zero

    def values() -> Floats:
        raw = codes.cpu().numpy()  # the higher nibble first
        elements = np.stack([raw >> 4, raw & 15], -1).reshape(rows, columns).astype(np.float64)
        scale, zero = (np.repeat(as_float64(table[:, :, i]).T, GROUP, axis=1) for i in (0, 1))
        return np.asarray((elements - 8) * scale + zero)

    return PackedMatrix((packed, table), lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, table), values)


PEERS = (
    _peer("torch-linear", {"bf16": "bf16", "fp8": "bf16"}, _each(_bf16), "linear"),
    _peer("torch-scaled-mm", {"fp8": "fp8 by row"}, _each(_float8), "_scaled_mm", float8=True),
    _peer("torch-int4pack", {"int4": "int4", "mxfp4": "int4", "nvfp4": "int4"}, _each(_int4), "_weight_int4pack_mm"),
)
