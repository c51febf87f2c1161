"""The floor: what one empty kernel launch costs, in every launch mode the backend has.

A backend names its boundaries in `chains` and runs so many empty operations one after the other by `chain`. The floor
is the difference between a long chain and a short one: what both pay once (a launch from Python, waking threads) drops
out.
"""

from __future__ import annotations

from moegauge.bench.clock import statistics
from moegauge.kernels.backend import Backend
from moegauge.record import Floor

LENGTHS = (64, 576)  # operations; a difference of 512 at 2 us each lasts 1 ms, far over a clock's resolution
ROUNDS = 25


def measure_floor(backend: Backend, name: str, rounds: int = ROUNDS) -> Floor:
    """The cost of one boundary.

    Args:
        backend: the device; its `chains` list `name`.
        name: which boundary.
        rounds: pairs of a short and a long chain, after one that warms up.
    """
    short, long = (backend.chain(name, length) for length in LENGTHS)
    samples = []
    for turn in range(rounds + 1):
        before, after = backend.time(short), backend.time(long)
        if turn:
            samples.append(1e6 * (after - before) / (LENGTHS[1] - LENGTHS[0]))
    return Floor(
        name=name,
        us_per_kernel=statistics.median(samples),
        interval_us=statistics.interval(samples),
        samples_us=samples,
        lengths=LENGTHS,
    )
