"""The list of peers, in the order they are shown and timed."""

from __future__ import annotations

from collections.abc import Sequence, Set

from moegauge.bench.peers import (
    flashinfer,
    gemlite,
    llama_cpp,
    sglang,
    torch_cpu,
    torch_cuda,
    torch_grouped,
    triton_kernels,
    vllm,
)
from moegauge.bench.peers.peer import Peer
from moegauge.record import SkippedPeer

PEERS: tuple[Peer, ...] = (
    *torch_cpu.PEERS,
    *llama_cpp.PEERS,
    *torch_cuda.PEERS,
    *torch_grouped.PEERS,
    *gemlite.PEERS,
    *triton_kernels.PEERS,
    *flashinfer.PEERS,
    *vllm.PEERS,
    *sglang.PEERS,
)


def present(device: str, kernels: Set[str], peers: Sequence[Peer] = PEERS) -> tuple[list[Peer], list[SkippedPeer]]:
    """The peers of a device that serve any of `kernels` (`product`, `experts`, `decode`) and can be timed here; and the
    others of that device, with their reasons."""
    here, absent = [], []
    for peer in peers:
        if peer.device != device or not kernels & peer.kernels:
            continue
        reason = peer.absent()
        if reason is None:
            here.append(peer)
        else:
            absent.append(SkippedPeer(peer=peer.name, reason=reason))
    return here, absent
