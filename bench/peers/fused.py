"""Peers that run a layer's routed experts in one fused call: expert pool, routing, check of the answer.

The pool has as many experts as the model, or as many as one run needs to stay cold where that is more, so that tuned
configurations are found by the model's own number. Layer l of a run uses experts l D to l D + D - 1 of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moegauge.bench.peers.linear import Floats, as_float64, captured, judge, swiglu
from moegauge.bench.peers.work import Work
from moegauge.kernels.content import WEIGHT_STD

BLOCK = 128  # rows and columns that share a float8 scale
GROUP = 32  # columns that share an int4 scale
FORMATS = ("bf16", "fp8", "int4")  # what `make_pool` makes
BF16_BOUND, FLOAT8_BOUND = 0.02, 0.1  # as in `linear`; bfloat16 and int4 keep their inputs


@dataclass(frozen=True, slots=True)
class Pool:
    """Weights of E experts.

    Attributes:
        gate_up: [E, 2 inner, hidden], packed along the last.
        down: [E, hidden, inner], packed along the last.
        gate_up_scale, down_scale: their scales; None without.
        up_first: the up projection's rows come before the gate's.
        values: expert -> float64 (gate, up, down).
    """

    gate_up: Any
    down: Any
    gate_up_scale: Any
    down_scale: Any
    values: Callable[[int], tuple[Floats, Floats, Floats]]

    @property
    def expert_bytes(self) -> int:
        """Of one expert."""
        tensors = (self.gate_up, self.down, self.gate_up_scale, self.down_scale)
        return sum(int(t[0].numel()) * int(t.element_size()) for t in tensors if t is not None)


@dataclass(slots=True)
class FusedExperts:
    """`experts` work by a library's own call.

    Attributes:
        call: (x [tokens, hidden], ids [tokens, top_k] of the pool, shares [tokens, top_k]) -> y [tokens, hidden].
        expert_bytes: of one expert, as stored.
        values: expert of the pool -> float64 (gate, up, down).
        activation: of gate and up.
        device: where the pool lies; tests use `cpu`.
    """

    work: Work
    call: Callable[[Any, Any, Any], Any]
    expert_bytes: int
    values: Callable[[int], tuple[Floats, Floats, Floats]]
    bound: float
    activation: Callable[[Floats, Floats], Floats] = swiglu
    launch_mode: str = "eager"
    device: str = "cuda"
    x: Any = field(init=False)
    ids: list[Any] = field(init=False)
    shares: Any = field(init=False)
    _checked: bool = False

    def __post_init__(self) -> None:
        import torch

        work = self.work
        generator = torch.Generator().manual_seed(work.seed)
        # Values that float8 holds exactly with a power of two as the row's scale, so that its rounding changes nothing.
        x = torch.randn(work.tokens, work.columns, generator=generator).clamp(-3.5, 3.5).to(torch.float8_e4m3fn).float()
        x[:, :: BLOCK // 2] = 3.5
        self.x = x.to(torch.bfloat16).to(self.device)
        chosen = torch.from_numpy(work.chosen()).to(torch.int32)
        self.ids = [(chosen + layer * work.experts).to(self.device) for layer in range(work.layers)]
        self.shares = torch.full((work.tokens, work.top_k), 1 / work.top_k, device=self.device)

    @property
    def bytes(self) -> int:
        """Of all experts a run reads."""
        return self.work.layers * self.work.experts * self.expert_bytes

    @property
    def parameters(self) -> int:
        """Of all experts a run reads."""
        return self.work.parameters

    @property
    def kernels(self) -> int:
        """One call a layer."""
        return self.work.layers

    def run(self) -> None:
        """Every layer once."""
        for ids in self.ids:
            self.call(self.x, ids, self.shares)

    def check(self) -> float:
        """The first layer, then the last: see `Prepared.check`."""
        ids = self.ids[-1 if self._checked else 0]
        self._checked = True
        got = as_float64(self.call(self.x, ids, self.shares))
        x, chosen, expected = as_float64(self.x), ids.cpu().numpy(), np.zeros_like(got)
        for expert in np.unique(chosen):
            gate, up, down = self.values(int(expert))
            rows = np.flatnonzero((chosen == expert).any(axis=1))
            inner = self.activation(x[rows] @ gate.T, x[rows] @ up.T)
            expected[rows] += inner @ down.T / self.work.top_k
        return judge(got, expected, self.bound, f"experts in {self.work.format}")

    def close(self) -> None:
        """Let go of the pool."""
        self.call, self.values = _nothing, _no_values


def prepare_fused(work: Work, pool: Pool, call: Callable[[Any, Any, Any], Any], *, float8: bool) -> Any:
    """The work of a point from a pool and a library's call, captured in a CUDA graph where that can be done."""
    bound = FLOAT8_BOUND if float8 else BF16_BOUND
    return captured(FusedExperts(work, call, pool.expert_bytes, pool.values, bound))


def make_pool(work: Work, *, up_first: bool = False, device: str = "cuda", name: str = "") -> Pool:
    """Random weights in the work's format, or that called `name`: bf16, fp8 (128 x 128 blocks) or int4 (groups of 32,
    value + 8, low nibble first)."""
    experts = max(work.pool, work.layers * work.experts)
    shapes = ((experts, 2 * work.rows, work.columns), (experts, work.columns, work.rows))
    make = {"bf16": _bf16, "fp8": _fp8, "int4": _int4}[name or work.format]
    (gate_up, gate_up_scale), (down, down_scale) = (make(shape, device) for shape in shapes)
    decode = {"bf16": _decode_bf16, "fp8": _decode_fp8, "int4": _decode_int4}[name or work.format]

    def values(expert: int) -> tuple[Floats, Floats, Floats]:
        both = decode(gate_up[expert], None if gate_up_scale is None else gate_up_scale[expert])
        first, second = both[: work.rows], both[work.rows :]
        gate, up = (second, first) if up_first else (first, second)
        return gate, up, decode(down[expert], None if down_scale is None else down_scale[expert])

    return Pool(gate_up, down, gate_up_scale, down_scale, values)


def _bf16(shape: tuple[int, int, int], device: str) -> tuple[Any, Any]:
    import torch

    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, WEIGHT_STD), None


def _fp8(shape: tuple[int, int, int], device: str) -> tuple[Any, Any]:
    import torch

    experts, rows, columns = shape
    codes = torch.randint(0, 254, shape, dtype=torch.uint8, device=device)
    for one in codes:  # past the NaN codes 127 and 255; one expert at a time, a whole pool may be 11 GB
        one.add_(one >= 127)
    blocks = (experts, -(-rows // BLOCK), -(-columns // BLOCK))
    scales = (torch.rand(blocks, device=device) + 0.5) * (WEIGHT_STD / 116)  # 116: deviation of e4m3's codes
    return codes.view(torch.float8_e4m3fn), scales


def _int4(shape: tuple[int, int, int], device: str) -> tuple[Any, Any]:
    import torch

    experts, rows, columns = shape
    codes = torch.randint(0, 256, (experts, rows, columns // 2), dtype=torch.uint8, device=device)
    scales = (torch.rand((experts, rows, columns // GROUP), device=device) + 0.5) * (WEIGHT_STD / 4.6)
    return codes, scales.to(torch.bfloat16)


def _decode_bf16(weights: Any, _scales: Any) -> Floats:
    return as_float64(weights)


def _decode_fp8(weights: Any, scales: Any) -> Floats:
    values = as_float64(weights)
    spread = np.repeat(np.repeat(as_float64(scales), BLOCK, 0), BLOCK, 1)
    return values * spread[: values.shape[0], : values.shape[1]]


def _decode_int4(weights: Any, scales: Any) -> Floats:
    packed = weights.cpu().numpy()
    values = np.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1).astype(np.float64) - 8
    return values * np.repeat(as_float64(scales), GROUP, 1)


def _nothing(*_: Any) -> Any:
    return None


def _no_values(_: int) -> tuple[Floats, Floats, Floats]:
    raise RuntimeError("closed")
