"""Time a step whole and in segments with the roof between them, and say which samples lost a core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from moegauge.bench.clock.pairs import CutStep, Cutter
from moegauge.bench.clock.roof import RoofMeter
from moegauge.kernels.backend import Backend, Segment, Stream

# A part is disturbed where the thread that lost most had no core for so much of it. On two quiet shared cores it is
# 0.6 % in the median segment of 10 ms and 2 % in one of ten (interrupts); a process that takes a core takes all of it,
# for 3.5 ms in the median: a turn of the scheduler's.
LOST = 0.05
# A whole step cannot leave such turns out, and a quiet machine's housekeeping takes some from every step: on the same
# cores 2.7 % of steps of 90 to 180 ms in the median, 6.5 % of one in twenty, never 10 % in 63. A burst that shares a
# core for half of the step takes 25 %. What a step loses below this its median carries; its ratio does not.
LOST_WHOLE = 0.1
# A step counts by its undisturbed segments where they are so much of its bytes, and is kept apart as a whole elsewhere.
COVERED = 0.6
WHOLE = 1 << 62  # bytes of a segment that no step fills


class Cuttable(Protocol):
    """A step that can be run in segments."""

    def run(self) -> None: ...
    def run_cut(self, size: int, stream: Stream | None) -> list[Segment]: ...


class StepTimer:
    """The two ways of timing one step.

    Args:
        step: what is timed.
        backend: whose clock it is.
        meter: the roof; its stream is read between segments.
        cold: read a pass of the roof, eight last-level caches, before each: steps of other points lie in the same
            arena, and the one before may have read the places that this one begins with.
    """

    def __init__(self, step: Cuttable, backend: Backend, meter: RoofMeter, *, cold: bool = False) -> None:
        self._step, self._backend, self._meter, self._cold = step, backend, meter, cold
        self._lost = False  # whether the whole steps timed last lost a core
        self.cutter: Cutter | None = self if backend.cuts else None  # for a timer: None where steps are not cut

    def whole(self, times: int) -> float:
        """Seconds of so many whole steps, waking the threads included."""
        found: list[Segment] = []

        def steps() -> None:
            for _ in range(times):
                if self._backend.cuts:
                    found.extend(self._step.run_cut(WHOLE, None))
                else:
                    self._step.run()

        if self._cold:
            self._meter.stream.run()
        seconds = self._backend.time(steps)
        self._lost = sum(one.step_lost_s for one in found) > LOST_WHOLE * seconds
        return seconds

    def lost(self) -> bool:
        """Whether the whole steps timed last lost a core."""
        return self._lost

    def cut(self, times: int) -> CutStep:
        """So many steps in segments, the roof between them."""
        found: list[Segment] = []
        if self._cold:
            self._meter.stream.run()
        for _ in range(times):
            found += self._step.run_cut(self._meter.segment_bytes, self._meter.stream)
        return summed(found, times)


def lost_core(segment: Segment, share: float = LOST) -> bool:
    """Whether a thread had no core for more than this share of the segment or of the roof behind it."""
    return segment.step_lost_s > share * segment.step_s or segment.roof_lost_s > share * segment.roof_s


def summed(segments: Sequence[Segment], steps: int) -> CutStep:
    """The sums over the segments of so many steps whose threads kept their cores, as seconds of one whole step.

    A segment left out is replaced by the others, byte for byte: bursts fall on any part of a step alike. Where the rest
    is less than COVERED of the bytes, all segments count and the whole is disturbed.
    """
    clean = [one for one in segments if one.roof_bytes and not lost_core(one)]
    total, covered = (sum(one.step_bytes for one in group) for group in (segments, clean))
    disturbed = covered < COVERED * total
    if disturbed:
        clean, covered = [one for one in segments if one.roof_bytes], total
    seconds = sum(one.step_s for one in clean) * (total / max(1, covered)) / steps
    return CutStep(
        seconds,
        sum(one.roof_bytes for one in clean) / max(1e-12, sum(one.roof_s for one in clean)),
        disturbed,
    )
