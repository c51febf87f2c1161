"""gemlite's products with bfloat16 inputs: float8 by channel, int4 in groups of 32, MXFP4.

Written against the helpers of gemlite 0.6. Never run here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moegauge.bench.peers.linear import Floats, PackedMatrix, Packer, as_float64, prepare_linear
from moegauge.bench.peers.peer import Peer, Prepared, load, needs
from moegauge.bench.peers.work import Work
from moegauge.kernels import codes
from moegauge.kernels.content import WEIGHT_STD

GROUP = 32


def _prepare(work: Work, _threads: int) -> Prepared:
    """Pack and bind."""
    make = {"fp8": _float8, "int4": _int4}.get(work.format, _mxfp4)
    made: Prepared = prepare_linear(work, "cuda", _packer(make), dtype="bfloat16")
    return made


def _packer(make: Any) -> Packer:
    def pack(rows: int, columns: int, count: int, seed: int) -> list[PackedMatrix]:
        import torch

        torch.manual_seed(seed)
        return [make(rows, columns) for _ in range(count)]

    return pack


def _packed(layer: Any, values: Any) -> PackedMatrix:
    tensors = tuple(t for t in (layer.W_q, layer.scales, layer.zeros) if t is not None)
    return PackedMatrix(tensors, layer.forward, values)


def _float8(rows: int, columns: int) -> PackedMatrix:
    import torch

    weight = torch.randn(rows, columns, device="cuda").to(torch.float8_e4m3fn)
    scales = ((torch.rand(rows, 1, device="cuda") + 0.5) * WEIGHT_STD).to(torch.bfloat16)
    helper = load("gemlite.helper").A16W8_FP8(device="cuda", dtype=torch.bfloat16)
    layer = helper.from_weights(weight, scales=scales)
    return _packed(layer, lambda: as_float64(weight) * as_float64(scales))


def _int4(rows: int, columns: int) -> PackedMatrix:
    import torch

    weight = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, device="cuda")
    scales = ((torch.rand(rows, columns // GROUP, device="cuda") + 0.5) * (WEIGHT_STD / 4.6)).to(torch.bfloat16)
    zeros = torch.full_like(scales, 8)
    layer = (
        load("gemlite.helper").A16W4_HQQ_INT(device="cuda", dtype=torch.bfloat16).from_weights(weight, scales, zeros)
    )
    return _packed(layer, lambda: (as_float64(weight) - 8) * np.repeat(as_float64(scales), GROUP, 1))


def _mxfp4(rows: int, columns: int) -> PackedMatrix:
    import torch

    weight = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, device="cuda")
    scales = torch.exp2(torch.randint(-9, -6, (rows, columns // GROUP), device="cuda").float())
    layer = load("gemlite.helper").A16W4_MXFP(device="cuda", dtype=torch.bfloat16).from_weights(weight, scales)

    def values() -> Floats:
        return np.asarray(codes.E2M1[weight.cpu().numpy()] * np.repeat(as_float64(scales), GROUP, 1))

    return _packed(layer, values)


PEERS = (
    Peer(
        name="gemlite",
        kernels=frozenset({"product", "experts"}),
        formats={"fp8": "fp8 by channel", "int4": "int4", "mxfp4": "mxfp4", "nvfp4": "mxfp4"},
        distributions=("gemlite",),
        absent=needs("gemlite", "gemlite.helper"),
        prepare=_prepare,
    ),
)
