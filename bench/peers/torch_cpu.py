"""PyTorch's own products on a CPU: bfloat16 `linear`, and the int8 and int4 products its quantisers call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moegauge.bench.peers.linear import Floats, PackedMatrix, Packer, as_float64, prepare_linear
from moegauge.bench.peers.peer import Peer, Prepared, not_installed
from moegauge.bench.peers.work import Work
from moegauge.kernels.content import WEIGHT_STD

GROUP = 32  # columns that share a scale of the int4 product: the smallest it takes, and that of this kit's int4


def _peer(name: str, formats: Mapping[str, str], packer: Callable[[], Packer], operator: str = "") -> Peer:
    """One of torch's products: absent without torch, or in a release without the operator."""

    def absent() -> str | None:
        reason = not_installed("torch", "torch")
        if reason is None and operator:
            import torch

            if not hasattr(torch.ops.aten, operator):
                return f"torch {torch.__version__} has no {operator}"
        return reason

    def prepare(work: Work, threads: int) -> Prepared:
        import torch

        torch.set_num_threads(threads)
        made: Prepared = prepare_linear(work, "cpu", packer(), dtype="bfloat16")
        return made

    return Peer(
        name=name,
        device="cpu",
        kernels=frozenset({"product", "experts"}),
        formats=formats,
        distributions=("torch",),
        absent=absent,
        prepare=prepare,
    )


def _bf16() -> Packer:
    import torch

    def pack(rows: int, columns: int, count: int, seed: int) -> list[PackedMatrix]:
        generator = torch.Generator().manual_seed(seed)
        content = (torch.randn(rows, columns, generator=generator) * WEIGHT_STD).to(torch.bfloat16)
        return [_linear(turned(content, i)) for i in range(count)]

    return pack


def _linear(weight: Any) -> PackedMatrix:
    import torch

    return PackedMatrix((weight,), lambda x: torch.nn.functional.linear(x, weight), lambda: as_float64(weight))


def _int8() -> Packer:
    import torch

    def pack(rows: int, columns: int, count: int, seed: int) -> list[PackedMatrix]:
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=generator)
        scales = (torch.rand(rows, generator=generator) + 0.5) * (WEIGHT_STD / 74)  # 74: deviation of the codes
        return [_int8pack(turned(codes, i), scales.to(torch.bfloat16).clone()) for i in range(count)]

    return pack


def _int8pack(codes: Any, scales: Any) -> PackedMatrix:
    import torch

    return PackedMatrix(
        (codes, scales),
        lambda x: torch.ops.aten._weight_int8pack_mm(x, codes, scales),
        lambda: as_float64(codes) * as_float64(scales)[:, None],
    )


def _int4() -> Packer:
    import torch

    def pack(rows: int, columns: int, count: int, seed: int) -> list[PackedMatrix]:
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 16, (rows, columns), dtype=torch.int32, generator=generator)
        # [group, row, (scale, zero)]; a weight is (code - 8) * scale + zero.
        table = (torch.rand(columns // GROUP, rows, 2, generator=generator) + 0.5) * (WEIGHT_STD / 4.6)
        return [_int4pack(turned(codes, i), table.to(torch.bfloat16).clone()) for i in range(count)]

    return pack


def _int4pack(codes: Any, table: Any) -> PackedMatrix:
    import torch

    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    small = codes.to(torch.int8).numpy()

    def values() -> Floats:
        scale, zero = (np.repeat(as_float64(table[:, :, i]).T, GROUP, axis=1) for i in (0, 1))
        return np.asarray((small.astype(np.float64) - 8) * scale + zero)

    return PackedMatrix(
        (packed, table), lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, table), values
    )


def turned(content: Any, by: int) -> Any:
    """A copy of a random matrix with its rows turned: fresh memory, without drawing a thousand million numbers."""
    return content.roll(by, 0).clone()


PEERS = (
    _peer("torch-linear", {"bf16": "bf16", "fp8": "bf16"}, _bf16),
    _peer("torch-int8pack", {"int8": "int8", "fp8": "int8"}, _int8, "_weight_int8pack_mm"),
    _peer(
        "torch-int4pack",
        {"int4": "int4", "mxfp4": "int4", "nvfp4": "int4"},
        _int4,
        "_weight_int4pack_mm_for_cpu",
    ),
)
