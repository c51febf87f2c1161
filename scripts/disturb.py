"""Make noise on purpose: bursts of another process beside the samples of a step, and what they do to its ratios.

    python scripts/disturb.py                                  three points, memory streamed in bursts
    python scripts/disturb.py --kind core --seconds 60         a core taken instead
    python scripts/disturb.py --points gpt-oss-20b:fp8 --gap 0.5,3

A second process streams memory, or keeps a core busy, for 50 to 500 ms at a time, and tells when each burst began and
ended (CLOCK_MONOTONIC, which all processes of a machine share). Quiet turns and disturbed ones alternate; in each,
every point gives one sample in random order, by both ways of taking a ratio:

- now: the step in segments with slices of the roof between them, segments that lost a core left out, samples that lost
  too many kept apart;
- before: a whole step, and a sample of the roof as long right after it; nothing is marked.

A burst is marked where a segment, or a whole step, that overlaps it lost a core; a sample, where it is kept apart.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from moegauge import models
from moegauge.bench.clock import statistics
from moegauge.bench.clock.pairs import FEWEST
from moegauge.bench.clock.roof import RoofMeter, find_roof
from moegauge.bench.plan.points import NATIVE, Point
from moegauge.bench.run.case import Settings
from moegauge.bench.run.sweep import step_options
from moegauge.bench.run.timer import StepTimer, lost_core
from moegauge.bench.step.build import DecodeStep, plan_step, shared_pools
from moegauge.kernels import devices
from moegauge.kernels.backend import Backend, Segment, Stream

POINTS = "gpt-oss-20b:mxfp4,qwen3-30b-a3b:fp8,gpt-oss-120b:native"
BURST_S = (0.05, 0.5)
GAP_S = (0.3, 2.5)
NEAR, MARKED, MOST = 3.0, 50.0, 40.0  # goals: ratios within so many %, bursts marked at least, samples at most
BUFFER = 256 << 20  # bytes streamed again and again: past any last-level cache but the largest servers'


@dataclass(frozen=True, slots=True)
class Span:
    """From one time to a later one, in seconds of the monotonic clock."""

    begin: float
    end: float

    def meets(self, other: Span) -> bool:
        """Whether they share any time."""
        return self.begin < other.end and other.begin < self.end


@dataclass(frozen=True, slots=True)
class Part(Span):
    """A segment of a step with its slice of the roof, or a whole step; whether a thread lost its core in it."""

    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One turn of one point.

    Attributes:
        disturbed: whether bursts were planted in its turn.
        now, before: its share of the roof by the two ways.
        kept: whether the sample counts, by the way of now.
        parts: what it consists of.
    """

    disturbed: bool
    now: float
    before: float
    kept: bool
    parts: tuple[Part, ...]


class Bully(Protocol):
    """What disturbs."""

    def on(self) -> None:
        """Begin to plant bursts."""
        ...

    def off(self) -> list[Span]:
        """Stop, and tell the bursts since `on`; returns when the last has ended."""
        ...


@dataclass(slots=True)
class Findings:
    """All samples by point, and all bursts."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    bursts: list[Span] = field(default_factory=list)

    def ratios(self, name: str, *, disturbed: bool, before: bool) -> list[float]:
        """Shares of the roof: of the samples that count, or of all of them before."""
        chosen = [one for one in self.samples[name] if one.disturbed == disturbed]
        counted = [one.now for one in chosen if one.kept]
        if before or len(counted) < FEWEST:  # as `bench`: where nearly all are marked, all count
            return [one.before if before else one.now for one in chosen]
        return counted

    def bursts_met(self) -> list[Span]:
        """Bursts during some part of a sample; the others nobody could have seen."""
        parts = self._parts(disturbed=True)
        return [burst for burst in self.bursts if any(burst.meets(part) for part in parts)]

    def bursts_marked(self) -> list[Span]:
        """Bursts during which some part lost a core."""
        lost = [part for part in self._parts(disturbed=True) if part.lost]
        return [burst for burst in self.bursts_met() if any(burst.meets(part) for part in lost)]

    def samples_marked(self, *, disturbed: bool) -> float:
        """Share of the samples that are kept apart, in %."""
        chosen = [one for each in self.samples.values() for one in each if one.disturbed == disturbed]
        return _percent(sum(not one.kept for one in chosen), len(chosen))

    def parts_lost(self, *, disturbed: bool) -> float:
        """Share of the parts that lost a core, in %."""
        parts = self._parts(disturbed=disturbed)
        return _percent(sum(part.lost for part in parts), len(parts))

    def _parts(self, *, disturbed: bool) -> list[Part]:
        return [p for each in self.samples.values() for one in each if one.disturbed == disturbed for p in one.parts]


def _percent(some: int, of: int) -> float:
    return 100 * some / of if of else 0.0


def alternate(
    points: Mapping[str, Callable[[bool], Sample]],
    bully: Bully,
    *,
    enough: Callable[[int], bool],
    shuffle: random.Random,
) -> Findings:
    """Quiet and disturbed turns in pairs, the order inside a pair at random, until `enough` pairs are done.

    Args:
        points: name -> takes one sample, told whether bursts are planted.
        bully: plants them.
        enough: told how many pairs are done.
        shuffle: the order of turns and of points.
    """
    found = Findings(samples={name: [] for name in points})
    pairs = 0
    while not enough(pairs):
        for disturbed in shuffle.sample([False, True], 2):
            if disturbed:
                bully.on()
            for name in shuffle.sample(list(points), len(points)):
                found.samples[name].append(points[name](disturbed))
            if disturbed:
                found.bursts += bully.off()
        pairs += 1
    return found


def table(found: Findings) -> list[str]:
    """The Markdown table of docs/measuring.md, and the lines below it."""
    lines = [
        "| point | quiet | disturbed | off by | 95 % interval | before: quiet | disturbed | off by | 95 % interval |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    worst = {False: 0.0, True: 0.0}
    for name in found.samples:
        cells = [name]
        for before in (False, True):
            quiet, noisy = (found.ratios(name, disturbed=d, before=before) for d in (False, True))
            off, low, high = (100 * (ratio - 1) for ratio in statistics.ratio_interval(noisy, quiet))
            worst[before] = max(worst[before], abs(off))
            cells += [f"{statistics.median(quiet):.3f}", f"{statistics.median(noisy):.3f}"]
            cells += [f"{off:+.1f} %", f"{low:+.1f} to {high:+.1f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    each = next(iter(found.samples.values()))
    turns = sum(one.disturbed for one in each)
    met, marked = found.bursts_met(), found.bursts_marked()
    share = _percent(len(marked), len(met))
    apart = found.samples_marked(disturbed=True)
    quiet_apart = found.samples_marked(disturbed=False)
    lost, quiet_lost = (found.parts_lost(disturbed=disturbed) for disturbed in (True, False))
    lines += [
        "",
        f"{turns} quiet turns and {turns} disturbed ones. Worst ratio off by {worst[False]:.1f} % (before: ",
        f"{len(found.bursts)} bursts planted, {len(met)} beside samples; {share:.0f} % of these marked: ",
        f"Samples kept apart: {apart:.0f} % in disturbed turns: ",
        f"Segments and whole steps that lost a core: {lost:.1f} % disturbed, {quiet_lost:.1f} % quiet.",
    ]
    lines[-4] += f"{worst[True]:.1f} %): goal {NEAR:g} % {_verdict(worst[False] <= NEAR)}."
    lines[-3] += f"goal at least {MARKED:g} % {_verdict(share >= MARKED)}."
    lines[-2] += f"goal at most {MOST:g} % {_verdict(apart <= MOST)}; {quiet_apart:.0f} % in quiet ones."
    return lines


def _verdict(held: bool) -> str:
    return "met" if held else "missed"


class Watched:
    """A step that notes when each of its segments ran, as `StepTimer` sees it."""

    def __init__(self, step: DecodeStep, clock: Callable[[], float] = time.monotonic) -> None:
        self._step, self._clock = step, clock
        self.parts: list[Part] = []

    def run(self) -> None:
        """The whole step."""
        self._step.run()

    def run_cut(self, size: int, stream: Stream | None) -> list[Segment]:
        """The step in segments."""
        segments = self._step.run_cut(size, stream)
        self.parts += placed(segments, self._clock())
        return segments


def placed(segments: Sequence[Segment], end: float) -> list[Part]:
    """When segments ran that followed each other until `end`; barriers and waking, some 50 us, are nobody's."""
    parts = []
    for one in reversed(segments):
        begin = end - one.step_s - one.roof_s
        parts.append(Part(begin, end, lost_core(one)))
        end = begin
    return parts[::-1]


def sampler(step: DecodeStep, backend: Backend, meter: RoofMeter) -> Callable[[bool], Sample]:
    """Takes samples of a step by both ways."""

    def take(disturbed: bool) -> Sample:
        watched = Watched(step)
        timer = StepTimer(watched, backend, meter, cold=True)
        whole = timer.whole(1)
        before = step.traffic().total / (whole * meter.sample(whole))
        cut = timer.cut(1)
        return Sample(
            disturbed=disturbed,
            now=step.traffic().total / (cut.seconds * cut.roof_bytes_per_s),
            before=before,
            kept=not (cut.disturbed or timer.lost()),
            parts=tuple(watched.parts),
        )

    return take


class Process:
    """A second process that plants bursts; see `plant`."""

    def __init__(self, kind: str, gap: tuple[float, float], seed: int) -> None:
        words = [sys.executable, str(Path(__file__).resolve()), "--plant", "--kind", kind, "--seed", str(seed)]
        words += ["--gap", f"{gap[0]},{gap[1]}"]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._ask("")

    def on(self) -> None:
        """Begin."""
        self._say("on")

    def off(self) -> list[Span]:
        """Stop."""
        return [Span(*map(float, line.split())) for line in self._ask("off")]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _say(self, word: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def _ask(self, word: str) -> list[str]:
        """The lines up to an empty one; of the first empty one nobody asks."""
        if word:
            self._say(word)
        assert self._process.stdout
        lines = []
        while line := self._process.stdout.readline().strip():
            lines.append(line)
        return lines


def plant(
    kind: str,
    gap: tuple[float, float],
    rng: random.Random,
    *,
    stop: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    work: Mapping[str, Callable[[], None]] | None = None,
) -> list[Span]:
    """Bursts with gaps between them until `stop`, which is asked every few milliseconds; begins with a gap."""
    piece = (work or _work())[kind]
    bursts = []
    while not stop():
        until = clock() + rng.uniform(*gap)
        while not stop() and clock() < until:
            sleep(0.002)
        begin = clock()
        until = begin + rng.uniform(*BURST_S)
        planted = False
        while not stop() and clock() < until:
            piece()
            planted = True
        if planted:
            bursts.append(Span(begin, clock()))
    return bursts


def _work() -> dict[str, Callable[[], None]]:
    """A few milliseconds of each kind of disturbance."""
    buffer = np.ones(BUFFER, np.uint8)
    at = [0]

    def stream() -> None:
        size = 16 << 20
        at[0] = (at[0] + size) % BUFFER
        buffer[at[0] : at[0] + size].view(np.uint64).max()

    def core() -> None:
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass

    return {"stream": stream, "core": core}


def serve(kind: str, gap: tuple[float, float], seed: int) -> None:
    """The second process: plants bursts between the lines `on` and `off`, ends with its input."""
    rng, work = random.Random(seed), _work()
    stop, bursts = threading.Event(), [[]]  # type: tuple[threading.Event, list[list[Span]]]
    thread: threading.Thread | None = None

    def run() -> None:
        bursts[0] = plant(kind, gap, rng, stop=stop.is_set, work=work)

    print(flush=True)
    for line in sys.stdin:
        if line.strip() == "on":
            stop.clear()
            thread = threading.Thread(target=run)
            thread.start()
        elif thread is not None:
            stop.set()
            thread.join()
            print(*(f"{one.begin!r} {one.end!r}\n" for one in bursts[0]), sep="", flush=True)


def pair(text: str) -> tuple[float, float]:
    """`0.3,2.5`."""
    low, high = map(float, text.split(","))
    return low, high


def parse(texts: Iterable[str]) -> list[Point]:
    """`model:format`, batch 1, no context."""
    return [Point(model, name or NATIVE) for model, _, name in (text.partition(":") for text in texts)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", default=POINTS, help=f"model:format,... (default {POINTS})")
    parser.add_argument("--kind", choices=("stream", "core"), default="stream")
    parser.add_argument("--gap", type=pair, default=GAP_S, help="seconds between bursts, least and most")
    parser.add_argument("--seconds", type=float, default=60.0, help="of sampling")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plant:
        serve(options.kind, options.gap, options.seed)
        return 0
    backend = devices.get_backend("cpu")
    points, settings = parse(options.points.split(",")), Settings(seed=options.seed)
    plans = [plan_step(models.load(p.model).cast(p.format), backend, **step_options(p, settings)) for p in points]
    arena = backend.arena(shared_pools(plans), settings.seed)
    bully = Process(options.kind, options.gap, options.seed)
    try:
        meter = find_roof(backend)
        steps = {point.label: plan.on(arena) for point, plan in zip(points, plans, strict=True)}
        takers = {name: sampler(step, backend, meter) for name, step in steps.items()}
        for take in takers.values():
            take(False)
        start = time.monotonic()
        found = alternate(
            takers,
            bully,
            enough=lambda _: time.monotonic() - start >= options.seconds,
            shuffle=random.Random(options.seed),
        )
    finally:
        bully.close()
        arena.close()
    print(*table(found), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
