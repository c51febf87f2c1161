"""A run of `moegauge bench peers`: from options to peers timed beside this kit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moegauge.bench.clock.roof import RoofMeter
from moegauge.bench.peers import registry
from moegauge.bench.peers.peer import Peer
from moegauge.bench.peers.point import Versus
from moegauge.bench.peers.work import KERNELS, Work, decode_work, kernel_work
from moegauge.bench.plan import suites
from moegauge.bench.plan.points import Point
from moegauge.bench.run.session import Options, Session, Tell
from moegauge.bench.run.sweep import Failure, guarded
from moegauge.errors import MoegaugeError, UnknownNameError, UsageError
from moegauge.record import SkippedPeer


@dataclass(kw_only=True)
class PeerOptions(Options):
    """Options of one run; `kind` is `kernel` (both of the next two), `product`, `experts` or `decode`."""

    layers: int | None = None
    peers: str | None = None


class PeerSession(Session):
    """One run of comparisons. A point is stored with all its peers at once, and done when this kit's case is in."""

    options: PeerOptions

    def __init__(self, options: PeerOptions, argv: Sequence[str] = (), tell: Tell | None = None) -> None:
        wanted = suites.parse_list(options.peers, "--peer") if options.peers else None
        for name in wanted or ():
            if name not in {peer.name for peer in registry.PEERS}:
                raise UnknownNameError("peer", name, {peer.name for peer in registry.PEERS})
        self._all = [peer for peer in registry.PEERS if wanted is None or peer.name in wanted]
        super().__init__(options, argv, tell)
        if options.layers is not None and options.kind != "decode":
            raise UsageError("--layers cuts the depth of whole steps.", advice="Add --kind decode.")

    def _sweep(self, meter: RoofMeter) -> None:
        here = self._present()
        bench = Versus(
            self.backend,
            meter,
            self.settings(),
            here,
            throttle=self.throttle(),
            progress=lambda text: self.tell.progress(f"{len(self.record.cases)} measured, now {text}"),
        )
        done: set[object] = {(c.kernel, c.model, c.format, c.batch, c.context) for c in self.record.own_cases}
        for point in self.points:
            for kernel in self._kernels():
                self._point(bench, point, kernel, done)

    def _point(self, bench: Versus, point: Point, kernel: str | None, done: set[object]) -> None:
        try:
            work = self._work(point, kernel)
            if (kernel, work.shape.name, point.format, point.batch, point.context) in done:
                return
            with guarded():
                cases, skipped = bench.run(work)
        except MoegaugeError as error:
            self.failures.append(Failure(point, error))
            return
        self.record.cases.extend(cases)
        for left_out in skipped:
            self._skip(left_out)
        self.save()

    def _work(self, point: Point, kernel: str | None) -> Work:
        shape, seed = point.cast(self.shapes), self.options.seed
        if kernel is None:
            return decode_work(point, shape, self.options.layers, seed)
        return kernel_work(point, shape, kernel, self.backend.last_level_cache, seed)

    def _kernels(self) -> tuple[str | None, ...]:
        kind = self.options.kind
        return (None,) if kind == "decode" else KERNELS if kind == "kernel" else (kind,)

    def _present(self) -> list[Peer]:
        """The peers of this device that can be timed; the others are noted with their reasons."""

        here, absent = registry.present(self.device, {kernel or "decode" for kernel in self._kernels()}, self._all)
        for left_out in absent:
            self._skip(left_out)
        return here

    def _skip(self, left_out: SkippedPeer) -> None:
        where = f" at {left_out.point}" if left_out.point else ""
        self.tell.warn(f"{left_out.peer} skipped{where}: {left_out.reason}")
        if left_out not in self.record.skipped:  # a resumed run finds it again
            self.record.skipped.append(left_out)
