"""The decode step of a model on a backend: true depth, order, dependencies and bytes; weights from an arena.

The interface (the bodies live beside it):

    backend = get_backend("cpu", threads=None)          # moegauge.kernels.backend
    step = build_step(shape, backend, batch=1, context=0, format="native", kv_format="bf16", routing="uniform",
                      arena_bytes=None, seed=0)         # -> DecodeStep
    worst = step.check(sample_rows=16)                  # numerical gate: NumericsError past the bound
    seconds = backend.time(step.run)                    # one step
    step.traffic().total                                # bytes of that step
    stream = backend.streams(1 << 30)[0]
    roof = stream.bytes / backend.time(stream.run)      # bytes/s, the denominator beside it
    step.close()
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one step, counted from what was passed to the kernels.

    Attributes:
        weights: packed elements, norms' gains and biases.
        scales: every scale.
        kv: KV cache (and recurrent state) read.
        distinct_experts: mean distinct routed experts per MoE layer in the last run; 0 without MoE layers.
    """

    weights: int
    scales: int
    kv: int
    distinct_experts: float

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.scales + self.kv
