"""triton_kernels (of the Triton repository): ragged products with bfloat16 inputs, bfloat16 or MXFP4 weights.

Written against its `matmul` with `a_ragged_metadata`, `gather_indx` and `scatter_indx`; older releases call it
`matmul_ogs` and are skipped. Routing is made ahead and not timed. Its SwiGLU is gpt-oss's, silu(gate) * (up + 1), with
gate and up side by side in every other row. Never run here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from moegauge.bench.peers.fused import BF16_BOUND, FusedExperts
from moegauge.bench.peers.linear import Floats, as_float64, captured, swiglu
from moegauge.bench.peers.peer import Peer, Prepared, load, needs
from moegauge.bench.peers.work import Work
from moegauge.kernels import codes
from moegauge.kernels.content import WEIGHT_STD

LIMIT = 1e4  # its SwiGLU clamps; no activation here comes near
CHOSEN = 100.0  # logit of an expert a token uses: all others vanish in the softmax


def _prepare(work: Work, _threads: int) -> Prepared:
    """Make weights and routing, and bind the two products."""
    experts = max(work.pool, work.layers * work.experts)
    make = _bf16 if work.format == "bf16" else _mxfp4
    first, second = make(experts, 2 * work.rows, work.columns), make(experts, work.columns, work.rows)
    matmul, act = load("triton_kernels.matmul"), load("triton_kernels.swiglu")
    specs = matmul.FnSpecs("swiglu", act.swiglu_fn, ("alpha", "limit"), reduction_n=2)
    swiglu_op = matmul.FusedActivation(specs, (1.0, LIMIT))
    routes: dict[int, tuple[Any, Any]] = {}

    def call(x: Any, ids: Any, shares: Any) -> Any:
        if id(ids) not in routes:
            routes[id(ids)] = _route(ids, experts)
        ragged, index = routes[id(ids)]
        inner = matmul.matmul(
            x,
            first.weight,
            None,
            a_ragged_metadata=ragged,
            gather_indx=index // work.top_k,
            precision_config=first.config,
            fused_activation=swiglu_op,
        )
        y = matmul.matmul(
            inner, second.weight, None, a_ragged_metadata=ragged, scatter_indx=index, precision_config=second.config
        )
        return (y.view(work.tokens, work.top_k, work.columns) * shares[:, :, None]).sum(1)

    def values(expert: int) -> tuple[Floats, Floats, Floats]:
        both = first.values(expert)
        return both[::2], both[1::2], second.values(expert)

    size = first.expert_bytes + second.expert_bytes
    made: Prepared = captured(FusedExperts(work, call, size, values, BF16_BOUND, _gpt_oss))
    return made


@dataclass(frozen=True, slots=True)
class _Weights:
    """One projection of all experts: as the library takes it, and what it stands for."""

    weight: Any
    config: Any
    expert_bytes: int
    values: Callable[[int], Floats]


def _bf16(experts: int, rows: int, columns: int) -> _Weights:
    import torch

    stored = torch.empty(experts, rows, columns, dtype=torch.bfloat16, device="cuda").normal_(0, WEIGHT_STD)
    config = load("triton_kernels.matmul").PrecisionConfig()
    # The library wants [experts, columns, rows], columns next to each other.
    return _Weights(stored.transpose(-1, -2), config, 2 * rows * columns, lambda e: as_float64(stored[e]))


def _mxfp4(experts: int, rows: int, columns: int) -> _Weights:
    import torch

    tensor, layout = load("triton_kernels.tensor"), load("triton_kernels.tensor_details.layout")
    packed = torch.randint(0, 256, (experts, rows, columns // 2), dtype=torch.uint8, device="cuda")
    scales = torch.randint(118, 121, (experts, rows, columns // 32), dtype=torch.uint8, device="cuda")
    weight = _converted(
        tensor.wrap_torch_tensor(packed.transpose(-1, -2), dtype=tensor.FP4),
        layout.make_default_matmul_mxfp4_w_layout(mx_axis=1),
    )
    scale = _converted(
        tensor.wrap_torch_tensor(scales.transpose(-1, -2)),
        layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=1, num_warps=4),
    )

    def values(expert: int) -> Floats:
        raw = packed[expert].cpu().numpy()
        elements = codes.E2M1[np.stack([raw & 15, raw >> 4], -1).reshape(rows, columns)]
        return np.asarray(elements * np.repeat(codes.E8M0[scales[expert].cpu().numpy()], 32, 1))

    config = load("triton_kernels.matmul").PrecisionConfig(b_mx_scale=scale)
    return _Weights(weight, config, rows * columns // 2 + rows * columns // 32, values)


def _converted(wrapped: Any, layout: Any) -> Any:
    """In the layout the library prefers here: releases give it alone, or with its options."""
    convert = load("triton_kernels.tensor").convert_layout
    return convert(wrapped, layout[0], **layout[1]) if isinstance(layout, tuple) else convert(wrapped, layout)


def _route(ids: Any, experts: int) -> tuple[Any, Any]:
    """(ragged metadata, places of (token, choice) pairs sorted by expert)."""
    import torch

    logits = torch.zeros(ids.shape[0], experts, device="cuda")
    logits.scatter_(1, ids.long(), CHOSEN)
    mask = load("triton_kernels.topk").topk(logits, ids.shape[1], apply_softmax=True).mask_metadata
    index = mask.col_sorted_indx
    return load("triton_kernels.tensor").make_ragged_tensor_metadata(mask.col_sum, index.shape[0]), index


def _gpt_oss(gate: Floats, up: Floats) -> Floats:
    return swiglu(gate, up + 1)


PEERS = (
    Peer(
        name="triton_kernels",
        kernels=frozenset({"experts"}),
        formats={"bf16": "bf16", "mxfp4": "mxfp4", "int4": "mxfp4"},
        distributions=("triton_kernels", "triton"),
        absent=needs("triton_kernels", "triton_kernels", "triton_kernels.matmul"),  # no matmul: an older release
        prepare=_prepare,
    ),
)
