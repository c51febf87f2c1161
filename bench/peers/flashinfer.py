"""flashinfer's CUTLASS experts: bfloat16, and float8 in 128 x 128 blocks on Hopper.

Written against `flashinfer.fused_moe.cutlass_fused_moe` of August 2026. Never run here.
"""

from __future__ import annotations

from typing import Any

from moegauge.bench.peers.fused import make_pool, prepare_fused
from moegauge.bench.peers.peer import Peer, Prepared, load, needs
from moegauge.bench.peers.work import Work


def _prepare(work: Work, _threads: int) -> Prepared:
    """Make the pool, the up projection's rows first, and bind the call."""
    import torch

    pool = make_pool(work, up_first=True)
    fused = load("flashinfer.fused_moe").cutlass_fused_moe
    float8 = work.format == "fp8"
    options: dict[str, Any] = {"quant_scales": None}
    if float8:
        options = {
            "quant_scales": [pool.gate_up_scale, pool.down_scale],
            "use_deepseek_fp8_block_scale": True,
        }
    out = torch.empty(work.tokens, work.columns, dtype=torch.bfloat16, device="cuda")

    def call(x: Any, ids: Any, shares: Any) -> Any:
        fused(x, ids, shares, pool.gate_up, pool.down, torch.bfloat16, output=out, **options)
        return out

    made: Prepared = prepare_fused(work, pool, call, float8=float8)
    return made


PEERS = (
    Peer(
        name="flashinfer",
        kernels=frozenset({"experts"}),
        formats={"bf16": "bf16", "fp8": "fp8"},
        distributions=("flashinfer-python",),
        absent=needs("flashinfer", "flashinfer.fused_moe"),
        prepare=_prepare,
    ),
)
