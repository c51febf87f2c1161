"""Time this kit and every peer that serves a point, in rounds, checked before and after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from moegauge.bench.clock import statistics
from moegauge.bench.clock.pairs import Measurement, Throttle
from moegauge.bench.clock.roof import RoofMeter
from moegauge.bench.clock.rounds import REST_S, contest
from moegauge.bench.peers import ours
from moegauge.bench.peers.peer import Peer, Prepared, as_device_error, serves
from moegauge.bench.peers.work import Work
from moegauge.bench.run.case import Settings, make_case, timed
from moegauge.bench.run.timer import StepTimer
from moegauge.bench.step.build import Traffic
from moegauge.errors import MoegaugeError
from moegauge.kernels.backend import Backend
from moegauge.record import Case, CaseBytes, SkippedPeer

OURS = "moegauge"
Prepare = Callable[[Work, Backend, Settings], ours.Ours]


@dataclass(frozen=True, slots=True)
class Versus:
    """What times points: a device, its roof, and the peers that are there.

    Attributes:
        backend: the device.
        meter: its roof, sampled beside everything.
        settings: limits and options of the run.
        peers: those to time.
        prepare: makes this kit's own side.
        throttle: asked after each pair.
        rest_s: pause after every sample.
        progress: told what is being done.
    """

    backend: Backend
    meter: RoofMeter
    settings: Settings
    peers: Sequence[Peer]
    prepare: Prepare = ours.prepare
    throttle: Throttle | None = None
    rest_s: float = REST_S
    progress: Callable[[str], None] = lambda _: None

    def run(self, work: Work) -> tuple[list[Case], list[SkippedPeer]]:
        """This kit's case first, then one per peer; and the peers that failed here, with the reason.

        Raises:
            MoegaugeError: this kit's own side failed; the point has no time.
        """
        skipped: list[SkippedPeer] = []
        with contextlib.ExitStack() as stack:
            mine = self.prepare(work, self.backend, self.settings)
            stack.callback(mine.close)
            error = mine.check()
            ready: dict[str, tuple[Peer, Prepared, float]] = {}
            for peer in self.peers:
                if not serves(peer, work):
                    continue
                self.progress(f"{peer.name}: packing")
                try:
                    prepared = peer.prepare(work, self.backend.threads)
                    stack.callback(prepared.close)
                    ready[peer.name] = peer, prepared, prepared.check()
                except Exception as wrong:  # a peer may raise anything; it is skipped, the point goes on
                    skipped.append(SkippedPeer(peer=peer.name, reason=_reason(peer, wrong), point=label(work)))
            seen: list[Traffic] = []
            timer = StepTimer(mine.step, self.backend, self.meter)
            self.progress("timing")
            results = contest(
                {
                    OURS: timer.whole,
                    **{name: self._timer(prepared.run) for name, (_, prepared, _) in ready.items()},
                },
                self.meter.sample,
                limits=self.settings.limits,
                cuts={OURS: timer.cutter} if timer.cutter else {},
                rest_s=self.rest_s,
                throttle=self.throttle,
                after=lambda name, _counts: seen.append(mine.traffic()) if name == OURS else None,
            )
            # A round in which anything was throttled, or this kit disturbed, counts for nobody.
            counted = [seen[turn] for turn in results[OURS].rounds]
            cases = [self._own(work, mine, results[OURS], counted, max(error, mine.check()))]
            for name, (peer, prepared, before) in ready.items():
                try:
                    after = max(before, prepared.check())
                except Exception as wrong:
                    skipped.append(SkippedPeer(peer=name, reason=_reason(peer, wrong), point=label(work)))
                    continue
                own = [mine.parameters(traffic.distinct_experts) for traffic in counted]
                cases.append(
                    self._peer(work, peer, prepared, results[name], after, cases[0], own, results[OURS].seconds)
                )
        return cases, skipped

    def _timer(self, run: Callable[[], None]) -> Callable[[int], float]:
        def times(count: int) -> float:
            def runs() -> None:
                for _ in range(count):
                    run()

            return self.backend.time(runs)

        return times

    def _own(self, work: Work, mine: ours.Ours, result: Measurement, seen: list[Traffic], error: float) -> Case:
        case = make_case(
            point=work.point,
            shape=work.shape,
            backend=self.backend,
            settings=self.settings,
            result=result,
            seen=list(seen),
            kernels=mine.step.kernels,
            error=error,
            kernel=work.kernel,
        )
        parameters = round(statistics.mean(mine.parameters(t.distinct_experts) for t in seen))
        if work.kernel is None:
            return msgspec.structs.replace(case, parameters=parameters)
        # What describes a whole step says nothing of these matrices.
        return msgspec.structs.replace(
            case,
            parameters=parameters,
            layers=work.layers,
            formula_bytes=None,
            attention_macs=None,
            format_macs={},
            macs=round(parameters * work.tokens * _uses(work)),
        )

    def _peer(
        self,
        work: Work,
        peer: Peer,
        prepared: Prepared,
        result: Measurement,
        error: float,
        mine: Case,
        own_parameters: Sequence[float],
        own_seconds: Sequence[float],
    ) -> Case:
        ratios = time_ratios(own_seconds, own_parameters, result.seconds, prepared.parameters)
        return msgspec.structs.replace(
            mine,
            backend=peer.name,
            peer=peer.version,
            stored=peer.formats[work.format],
            launch_mode=prepared.launch_mode,
            bytes=CaseBytes(weights=prepared.bytes, total=prepared.bytes),
            parameters=prepared.parameters,
            kernels_per_step=prepared.kernels,
            distinct_experts=float(work.experts),
            max_relative_error=error,
            formats={},
            arena_bytes=None,
            time_ratio=statistics.median(ratios),
            time_ratio_interval=statistics.interval(ratios),
            **timed(
                result,
                [prepared.bytes] * len(result.seconds),
                work.tokens,
                self.settings.limits,
            ),
        )


def time_ratios(
    own_seconds: Sequence[float], own_parameters: Sequence[float], seconds: Sequence[float], parameters: float
) -> list[float]:
    """This kit's seconds per weight over the peer's, round by round; below 1 this kit is faster."""
    return [
        (mine / own) / (theirs / parameters)
        for mine, own, theirs in zip(own_seconds, own_parameters, seconds, strict=True)
    ]


def label(work: Work) -> str:
    """The point and the kernel."""
    return f"{work.shape.name} {work.kernel or 'decode'} {work.point.format} batch {work.tokens}"


def _uses(work: Work) -> float:
    """Share of the tokens that go through a matrix."""
    return 1.0 if work.kernel == "product" else min(1.0, work.top_k / work.experts)


def _reason(peer: Peer, error: Exception) -> str:
    return str(error if isinstance(error, MoegaugeError) else as_device_error(peer.name, error))
