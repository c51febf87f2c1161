"""Every peer, in the order they are listed and timed."""

from __future__ import annotations

from moegauge.bench.peers import llama_cpp, torch_cpu
from moegauge.bench.peers.peer import Peer

PEERS: tuple[Peer, ...] = (*torch_cpu.PEERS, *llama_cpp.PEERS)
