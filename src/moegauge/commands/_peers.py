"""`moegauge bench peers`: peers timed beside this kit, and their table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from moegauge.commands._measure import Options, Session, throttle_of
from moegauge.commands._output import print_table, warn
from moegauge.commands._tables import machine_line, roof_line, show_warnings
from moegauge.errors import MoegaugeError, UnknownNameError, UsageError
from moegauge.record import Case, Record, Skipped
from moegauge.units import human_bytes

if TYPE_CHECKING:
    from moegauge.bench.clock.roof import RoofMeter
    from moegauge.bench.peers.peer import Peer
    from moegauge.bench.peers.point import Versus
    from moegauge.bench.peers.work import Work
    from moegauge.bench.plan.points import Point

KINDS = ("kernel", "product", "experts", "decode")


@dataclass(kw_only=True)
class PeerOptions(Options):
    """Options of one run; `kind` is a word of KINDS."""

    layers: int | None = None
    peers: str | None = None


class PeerSession(Session):
    """One run of comparisons. A point is stored with all its peers at once, and done when this kit's case is in."""

    options: PeerOptions

    def __init__(self, options: PeerOptions) -> None:
        from moegauge.bench.peers.registry import PEERS
        from moegauge.bench.plan import suites

        wanted = suites.parse_list(options.peers, "--peer") if options.peers else None
        for name in wanted or ():
            if name not in {peer.name for peer in PEERS}:
                raise UnknownNameError("peer", name, {peer.name for peer in PEERS})
        self._all = [peer for peer in PEERS if wanted is None or peer.name in wanted]
        super().__init__(options)
        if options.layers is not None and options.kind != "decode":
            raise UsageError("--layers cuts the depth of whole steps.", advice="Add --kind decode.")

    def _sweep(self, meter: RoofMeter) -> None:
        from moegauge.bench.peers.point import Versus

        here = self._present()
        bench = Versus(
            self.backend,
            meter,
            self.settings(),
            here,
            throttle=throttle_of(self.device),
            progress=lambda text: self.progress(f"{len(self.record.cases)} measured, now {text}"),
        )
        done: set[object] = {(c.kernel, c.model, c.format, c.batch, c.context) for c in self.record.own_cases}
        for point in self.points:
            for kernel in self._kernels():
                self._point(bench, point, kernel, done)

    def _point(self, bench: Versus, point: Point, kernel: str | None, done: set[object]) -> None:
        from moegauge.bench.run.sweep import Failure, guarded

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
        from moegauge.bench.peers.work import decode_work, kernel_work

        shape, seed = point.cast(self.shapes), self.options.seed
        if kernel is None:
            return decode_work(point, shape, self.options.layers, seed)
        return kernel_work(point, shape, kernel, self.backend.last_level_cache, seed)

    def _kernels(self) -> tuple[str | None, ...]:
        from moegauge.bench.peers.work import KERNELS

        kind = self.options.kind
        return (None,) if kind == "decode" else KERNELS if kind == "kernel" else (kind,)

    def _present(self) -> list[Peer]:
        """The peers of this device that can be timed; the others are noted with their reasons."""
        from moegauge.bench.peers.registry import present

        here, absent = present(self.device, {kernel or "decode" for kernel in self._kernels()}, self._all)
        for left_out in absent:
            self._skip(left_out)
        return here

    def _skip(self, left_out: Skipped) -> None:
        where = f" at {left_out.point}" if left_out.point else ""
        warn(f"{left_out.peer} skipped{where}: {left_out.reason}")
        if left_out not in self.record.skipped:  # a resumed run finds it again
            self.record.skipped.append(left_out)

    def show(self, record: Record) -> None:
        """Roof and one row per program and point on stdout."""
        click.echo(machine_line(record.machine))
        click.echo(roof_line(record))
        headings = ["model", "what", "program", "format", "batch", "bytes", "ms", "GB/s", "of roof"]
        print_table(
            [*headings, "weights/s", "ours/its time", "95 % interval", "max error"], [_row(c) for c in record.cases], 4
        )
        show_warnings(record)
        if self.options.out is None:
            click.echo("Not stored: give --out FILE to keep the record.", err=True)
        else:
            click.echo(f"Record: {self.options.out}", err=True)


def _row(case: Case) -> list[str]:
    low, high = case.time_ratio_interval or (0.0, 0.0)
    weights = (case.parameters or 0) / (case.median_ms / 1e3)
    return [
        case.model,
        case.kernel or "decode",
        case.backend if case.peer else f"moegauge {case.backend}",
        case.stored or case.format,
        str(case.batch),
        human_bytes(case.bytes.total),
        f"{case.median_ms:.4g}",
        f"{case.gb_per_s:.2f}",
        f"{case.roof_fraction:.3f}",
        f"{weights / 1e9:.2f} G",
        "" if case.time_ratio is None else f"{case.time_ratio:.3f}",
        "" if case.time_ratio is None else f"{low:.3f} to {high:.3f}",
        f"{case.max_relative_error:.0e}",
    ]
