"""This kit's own kernels and step for the work at a point: what every peer is held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moegauge.bench.peers.work import Work, experts_only
from moegauge.bench.run.case import Settings
from moegauge.bench.step.build import DecodeStep, Traffic, build_step
from moegauge.bench.step.rings import Layout
from moegauge.kernels.backend import Backend
from moegauge.kernels.program import Product, Program, View
from moegauge.shape import Matrix

EXPERTS = ("route", "experts up", "experts down")


@dataclass(slots=True)
class Ours:
    """A step of this kit, or the part of one that a work names; `whole` holds its memory."""

    step: DecodeStep
    whole: DecodeStep
    work: Work

    def run(self) -> None:
        """Enqueue one run."""
        self.step.run()

    def traffic(self) -> Traffic:
        """Bytes of the last run."""
        return self.step.traffic()

    def parameters(self, distinct_experts: float) -> float:
        """Weights a run with so many distinct experts a layer multiplied by."""
        work = self.work
        if work.kernel == "product":
            return work.parameters
        one = 3 * work.rows * work.columns * work.layers
        if work.kernel == "experts":
            return one * distinct_experts
        return work.parameters + one * (distinct_experts - work.top_k)

    def check(self) -> float:
        """As `DecodeStep.check`."""
        return self.step.check()

    def close(self) -> None:
        """Give the arenas back: a part's before the whole's."""
        if self.step is not self.whole:
            self.step.close()
        self.whole.close()


def prepare(work: Work, backend: Backend, settings: Settings) -> Ours:
    """This kit's kernels for a work.

    Raises:
        DeviceError: no room for the arena.
    """
    if work.kernel == "product":
        step = _products(work, backend)
        return Ours(step, step, work)
    experts = work.kernel == "experts"
    whole = build_step(
        experts_only(work) if experts else work.shape,
        backend,
        batch=work.tokens,
        context=work.point.context,
        kv_format=settings.kv_format,
        routing=settings.routing,
        arena_bytes=settings.arena_bytes,
        seed=settings.seed,
    )
    return Ours(whole.part(*EXPERTS) if experts else whole, whole, work)


def _products(work: Work, backend: Backend) -> DecodeStep:
    """As many products as the peers run, one matrix each, all of the same input."""
    matrix = Matrix("gate_proj", "routed_expert", work.rows, work.columns, work.format)
    layout = Layout()
    x, y = View("x", 0, work.columns), View("y", 0, work.rows)
    products = tuple(Product(f"matrix {i}: product", x, y, (layout.weight(matrix),)) for i in range(work.experts))
    program = Program("products", work.tokens, {"x": work.columns, "y": work.rows}, products, dict(layout.demand))
    arena = backend.arena(layout.demand, work.seed)
    runnable = backend.compile(program, arena)
    rng = np.random.default_rng(work.seed)
    runnable.write("x", rng.standard_normal((work.tokens, work.columns)).astype(np.float32))
    return DecodeStep(backend, arena, [runnable], work.seed)
