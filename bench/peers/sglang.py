"""SGLang's fused experts (its Triton kernels): bfloat16, float8 in 128 x 128 blocks, int4 in groups of 32.

Written against `fused_experts(hidden_states, w1, w2, topk_output, moe_runner_config, ...)` of 2026. Never run here.
"""

from __future__ import annotations

from typing import Any

from moegauge.bench.peers.fused import BLOCK, FORMATS, GROUP, make_pool, prepare_fused
from moegauge.bench.peers.peer import Peer, Prepared, load, not_installed
from moegauge.bench.peers.work import Work

# Where releases keep the function, the newest first.
MODULES = (
    "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe",
    "sglang.srt.layers.moe.fused_moe_triton.fused_moe",
)


def _absent() -> str | None:
    """Without SGLang, or in a release that keeps the function elsewhere."""
    reason = not_installed("sglang", "sglang")
    reasons = [reason] if reason else [not_installed(module, "sglang") for module in MODULES]
    return None if None in reasons else reasons[0]


def _prepare(work: Work, _threads: int) -> Prepared:
    """Make the pool and bind the call."""
    import torch

    pool = make_pool(work)
    module = next(module for module in MODULES if not_installed(module, "sglang") is None)
    fused_experts = load(module).fused_experts
    output = load("sglang.srt.layers.moe.topk").StandardTopKOutput
    # inplace is the default and would overwrite the input.
    runner = load("sglang.srt.layers.moe.moe_runner").MoeRunnerConfig(inplace=False)
    options: dict[str, Any] = {"w1_scale": pool.gate_up_scale, "w2_scale": pool.down_scale}
    if work.format == "fp8":
        options |= {"use_fp8_w8a8": True, "block_shape": [BLOCK, BLOCK]}
    elif work.format == "int4":
        options |= {"use_int4_w4a16": True, "block_shape": [0, GROUP]}
    logits = torch.zeros(work.tokens, pool.down.shape[0], device="cuda")

    def call(x: Any, ids: Any, shares: Any) -> Any:
        return fused_experts(x, pool.gate_up, pool.down, output(shares, ids, logits), runner, **options)

    made: Prepared = prepare_fused(work, pool, call, float8=work.format == "fp8")
    return made


PEERS = (
    Peer(
        name="sglang",
        kernels=frozenset({"experts"}),
        formats={name: name for name in FORMATS},
        distributions=("sglang",),
        absent=_absent,
        prepare=_prepare,
    ),
)
