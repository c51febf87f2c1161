"""vLLM's fused experts (its Triton kernels): bfloat16, float8 in 128 x 128 blocks, int4 in groups of 32.

Written against `fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, quant_config=)` of 2026. Never run here.
"""

from __future__ import annotations

from typing import Any

from moegauge.bench.peers.fused import BLOCK, FORMATS, GROUP, Pool, make_pool, prepare_fused
from moegauge.bench.peers.peer import Peer, Prepared, load, needs
from moegauge.bench.peers.work import Work


def _prepare(work: Work, _threads: int) -> Prepared:
    """Make the pool and bind the call."""
    pool = make_pool(work)
    config = _config(work.format, pool)
    settings = load("vllm.config")
    fused_experts = load("vllm.model_executor.layers.fused_moe").fused_experts

    def call(x: Any, ids: Any, shares: Any) -> Any:
        with settings.set_current_vllm_config(settings.VllmConfig()):
            return fused_experts(x, pool.gate_up, pool.down, shares, ids, quant_config=config)

    made: Prepared = prepare_fused(work, pool, call, float8=work.format == "fp8")
    return made


def _config(name: str, pool: Pool) -> Any:
    configs = load("vllm.model_executor.layers.fused_moe.config")
    scales = {"w1_scale": pool.gate_up_scale, "w2_scale": pool.down_scale}
    if name == "fp8":
        return configs.fp8_w8a8_moe_quant_config(**scales, block_shape=[BLOCK, BLOCK])
    if name == "int4":
        return configs.int4_w4a16_moe_quant_config(**scales, w1_zp=None, w2_zp=None, block_shape=[0, GROUP])
    return None


PEERS = (
    Peer(
        name="vllm",
        kernels=frozenset({"experts"}),
        formats={name: name for name in FORMATS},
        distributions=("vllm",),
        absent=needs("vllm", "vllm.model_executor.layers.fused_moe"),
        prepare=_prepare,
    ),
)
