"""The read roof: how fast this device reads memory, by the best of its backend's access patterns.

The roof is the denominator of every rate in a record. It is measured twice: once at the start, every pattern, to
choose the best and to state it; then beside every sample of every point (`RoofMeter.sample`), with that pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from moegauge.bench.clock import statistics
from moegauge.errors import DeviceError
from moegauge.kernels.backend import Backend, Stream
from moegauge.record import Pattern, Roof
from moegauge.units import GB

# A pass reads at least this much and at least eight last-level caches, so that little of it is still cached from the
# pass before; at most an eighth of the memory an arena could have.
PASS_BYTES = {"cpu": 512 * 2**20, "triton": 2 * 2**30}
CACHES_PER_PASS = 8
# One pass of a GPU lasts half a millisecond, and a clock around it sees the launch, 4 to 8 % of it: a sample has so
# many passes, unless a pass lasts so long that fewer fill PATTERN_S (while patterns are compared) or STATED_S.
PASSES = 16
# A segment of a step that is cut. Read bandwidth on two shared Zen 4 cores, in slices of 2 ms, correlates with itself
# 0.77 after 2 ms, 0.67 after 21 ms and 0.37 after 208 ms: what is to divide out of a ratio must be as near as that.
SEGMENT_S = 0.01
PATTERN_S, STATED_S = 0.03, 0.25


class RoofMeter:
    """The best read-only stream of a backend, ready to be sampled.

    Attributes:
        swept: what a sweep found.
        failed: patterns that gave no time, with the reason; the roof is the best of the others.
    """

    def __init__(
        self,
        backend: Backend,
        stream: Stream,
        pass_s: float,
        medians: dict[str, float],
        swept: Sequence[Pattern] = (),
        failed: dict[str, str] | None = None,
    ) -> None:
        self.swept, self.failed = list(swept), failed or {}
        self._backend = backend
        self._stream = stream
        self._pass_s = pass_s
        self._medians = medians

    @property
    def stream(self) -> Stream:
        """The best pattern, to be read in slices between the segments of a step."""
        return self._stream

    @property
    def segment_bytes(self) -> int:
        """What is read in SEGMENT_S at the roof."""
        return max(1, round(SEGMENT_S * self._stream.bytes / self._pass_s))

    def sample(self, seconds: float) -> float:
        """Read for about `seconds`, whole passes, at least one; bytes/s."""
        passes = max(1, round(seconds / self._pass_s))

        def read() -> None:
            for _ in range(passes):
                self._stream.run()

        return passes * self._stream.bytes / self._backend.time(read)

    def measure(self, samples: int = 20, datasheet_gb_per_s: float | None = None) -> Roof:
        """The roof as a record states it, from `samples` samples of PASSES passes, or as many as fill STATED_S."""
        passes = _passes(self._pass_s, STATED_S)
        rates = [self.sample(passes * self._pass_s) / GB for _ in range(samples)]
        low, high = statistics.interval(rates)
        return Roof(
            gb_per_s=statistics.median(rates),
            datasheet_gb_per_s=datasheet_gb_per_s,
            samples=rates,
            best_gb_per_s=max(rates),
            interval_gb_per_s=(low, high),
            pattern=self._stream.pattern,
            shape=dict(self._stream.shape),
            patterns={name: rate / GB for name, rate in self._medians.items()},
            bytes=self._stream.bytes,
            sweep=self.swept,
        )


def _passes(pass_s: float, seconds: float) -> int:
    """Passes of one sample."""
    return max(1, min(PASSES, round(seconds / max(pass_s, 1e-9))))


def pass_bytes(backend: Backend) -> int:
    """Bytes one roof pass reads on this backend.

    Raises:
        DeviceError: there is no room for a buffer larger than the last-level cache.
    """
    size = max(PASS_BYTES.get(backend.name, 64 * 2**20), CACHES_PER_PASS * backend.last_level_cache)
    room = backend.memory // 8
    if room < 2 * backend.last_level_cache:
        raise DeviceError(
            f"{backend.description}: {backend.memory:,} bytes free are too few to read past a cache of "
            f"{backend.last_level_cache:,} bytes.",
            advice="Free memory and run again.",
        )
    return min(size, room)


def find_roof(
    backend: Backend,
    *,
    rounds: int = 9,
    progress: Callable[[str], None] = lambda _: None,
    size: int | None = None,
    skip: Collection[str] = (),
) -> RoofMeter:
    """Try every access pattern, `rounds` passes each, patterns taken in turn so that drift falls on all alike.

    Args:
        backend: the device.
        rounds: samples per pattern, after two passes that are thrown away.
        progress: told the `key_of` the pattern being tried.
        skip: keys of patterns not to try.
        size: bytes of the buffer; None chooses.

    Raises:
        DeviceError: no room for the buffer.
    """
    streams = [one for one in backend.streams(size or pass_bytes(backend)) if key_of(one) not in skip]
    return _best(backend, streams, rounds, progress)


def sweep_roof(
    backend: Backend,
    *,
    rounds: int = 3,
    progress: Callable[[str], None] = lambda _: None,
    size: int | None = None,
    skip: Collection[str] = (),
) -> RoofMeter:
    """The roof of a sweep over access width, loads in flight, programs and warps, and over the usual patterns.
    Arguments and errors as for `find_roof`."""
    size = size or pass_bytes(backend)
    streams = {key_of(stream): stream for stream in (*backend.streams(size), *backend.sweep(size))}
    return _best(backend, [one for key, one in streams.items() if key not in skip], rounds, progress)


def is_swept(backend: Backend, patterns: Sequence[Pattern]) -> bool:
    """Whether a record's patterns are those of a sweep; the usual ones alone are what finding the roof leaves."""
    usual = [dict(stream.shape) for stream in backend.streams(pass_bytes(backend))]
    return any(
        {"width": p.width, "unroll": p.unroll, "programs": p.programs, "warps": p.warps} not in usual for p in patterns
    )


def known_roof(backend: Backend, shape: Mapping[str, int], size: int | None = None) -> RoofMeter | None:
    """The meter of a pattern an earlier part of this run found best (its `Stream.shape`), no other tried; None where it
    is not to be had."""
    size = size or pass_bytes(backend)
    for streams in (backend.streams, backend.sweep):
        for stream in streams(size) if shape else ():
            if stream.shape == shape:
                return _best(backend, [stream], 2, lambda _: None)
    return None


def key_of(stream: Stream) -> str:
    """A pattern's name for a machine: `warps=4 width=16`, of its numbers; its words where it has none."""
    return " ".join(f"{name}={value}" for name, value in sorted(stream.shape.items())) or stream.pattern


def _best(backend: Backend, streams: Sequence[Stream], rounds: int, progress: Callable[[str], None]) -> RoofMeter:
    times: dict[str, list[float]] = {stream.pattern: [] for stream in streams}
    failed: dict[str, str] = {}
    for _ in range(rounds + 2):
        for stream in streams:
            if stream.pattern in failed:
                continue
            progress(key_of(stream))
            try:
                passes = _passes(min(times[stream.pattern]), PATTERN_S) if times[stream.pattern] else 1

                def read(stream: Stream = stream, passes: int = passes) -> None:
                    for _ in range(passes):
                        stream.run()

                seconds = backend.time(read) / passes
            except Exception as error:  # Triton's are of classes of its own; the other patterns are tried all the same
                failed[stream.pattern] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
                if len(failed) == len(streams):
                    raise
                continue
            times[stream.pattern].append(seconds)
    # The first pass of each touches pages and wakes clocks, the second tells how many a sample has.
    times = {name: found[2:] for name, found in times.items()}
    streams = [stream for stream in streams if stream.pattern not in failed]
    medians = {s.pattern: s.bytes / statistics.median(times[s.pattern]) for s in streams}
    # The best by what each makes of a round, whose passes see nearly the same milliseconds: on a shared host two
    # patterns 3 % apart would else be told apart by the state in which most of their passes fell.
    each = np.array([[s.bytes / seconds for seconds in times[s.pattern]] for s in streams])  # [patterns, rounds]
    best = streams[int(np.argmax(np.median(each / np.median(each, axis=0), axis=1)))]
    swept = [
        Pattern(name=s.pattern, gb_per_s=medians[s.pattern] / GB, **s.shape)
        for s in streams
        if set(s.shape) == {"width", "unroll", "programs", "warps"}
    ]
    return RoofMeter(backend, best, statistics.median(times[best.pattern]), medians, swept, failed)
