"""PyTorch's grouped product (`torch.nn.functional.grouped_mm`): a layer's chosen experts in two calls, bfloat16.

Sorting tokens by expert is made ahead and not timed. Never run on a GPU here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moegauge.bench.peers.fused import Pool, make_pool, prepare_fused
from moegauge.bench.peers.peer import Peer, Prepared
from moegauge.bench.peers.torch_cuda import lacking
from moegauge.bench.peers.work import Work


def _prepare(work: Work, _threads: int) -> Prepared:
    """Make the pool and bind the two products."""
    pool = make_pool(work, name="bf16")
    made: Prepared = prepare_fused(work, pool, grouped(pool, work.top_k), float8=False)
    return made


def grouped(pool: Pool, top_k: int) -> Callable[[Any, Any, Any], Any]:
    """The routed experts of a layer as two grouped products."""
    import torch

    product: Any = torch.nn.functional.grouped_mm
    silu = torch.nn.functional.silu
    gate_up, down = pool.gate_up.transpose(-2, -1), pool.down.transpose(-2, -1)
    experts = pool.gate_up.shape[0]
    plans: dict[int, tuple[Any, Any]] = {}

    def call(x: Any, ids: Any, shares: Any) -> Any:
        if id(ids) not in plans:
            flat = ids.flatten().long()
            ends = torch.bincount(flat, minlength=experts).cumsum(0).to(torch.int32)
            plans[id(ids)] = torch.argsort(flat, stable=True), ends
        order, ends = plans[id(ids)]
        gate, up = product(x[order // top_k], gate_up, offs=ends).chunk(2, -1)
        y = product(silu(gate) * up, down, offs=ends)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        return out.index_add_(0, order // top_k, y.float() * shares.flatten()[order][:, None])

    return call


PEERS = (
    Peer(
        name="torch-grouped-mm",
        kernels=frozenset({"experts"}),
        formats={"bf16": "bf16", "fp8": "bf16"},
        distributions=("torch",),
        absent=lambda: lacking("nn.functional", "grouped_mm", "grouped products", (8, 0)),
        prepare=_prepare,
    ),
)
