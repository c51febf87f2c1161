"""Every peer, in the order they are listed and timed."""

from __future__ import annotations

from moegauge.bench.peers import (
    flashinfer,
    gemlite,
    llama_cpp,
    sglang,
    torch_cpu,
    torch_cuda,
    triton_kernels,
    vllm,
)
from moegauge.bench.peers.peer import Peer

PEERS: tuple[Peer, ...] = (
    *torch_cpu.PEERS,
    *llama_cpp.PEERS,
    *torch_cuda.PEERS,
    *gemlite.PEERS,
    *triton_kernels.PEERS,
    *flashinfer.PEERS,
    *vllm.PEERS,
    *sglang.PEERS,
)
