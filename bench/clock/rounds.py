"""Time several programs in the same minutes: in a round each gives one sample beside one of the roof.

The order of a round moves on by one from round to round and the order inside a pair alternates, so that a machine that
drifts favours nobody. Ratios are taken within rounds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from moegauge.bench.clock.pairs import (
    Cutter,
    Limits,
    Measurement,
    NoThrottle,
    Pairs,
    Taken,
    Throttle,
    all_throttled,
    counts,
    settled,
)

# Pause after every sample, in seconds. GNU OpenMP's threads spin on after a parallel region, and what is timed at once
# shares its cores with them: on two Zen 5 cores torch's burnt 4 ms of processor time after a product (8 at most of 30),
# llama.cpp's 7 ms after a token (11 at most); this kit's threads sleep. A passive wait policy would end that too, but
# would also slow the peer down at every region. Waking threads costs some 50 us of a sample of 20 ms or more.
REST_S = 0.02


def contest(
    steps: Mapping[str, Callable[[int], float]],
    roof: Callable[[float], float],
    *,
    limits: Limits,
    cuts: Mapping[str, Cutter] | None = None,
    shuffle: random.Random | None = None,
    rest_s: float = REST_S,
    clock: Callable[[], float] = time.perf_counter,
    throttle: Throttle | None = None,
    after: Callable[[str, bool], None] = lambda _name, _counts: None,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Measurement]:
    """Time several programs side by side.

    Args:
        steps: name -> runs that many steps and returns the seconds they took together, measured on the device.
        roof: reads for about that many seconds and returns bytes/s.
        cuts: name -> runs the same steps in segments, the roof between them; programs it lacks are not cut.
        shuffle: orders each round at random; None moves the order on by one from round to round.
        limits: when to stop; the time limit holds for each program, so that three take three times as long.
        rest_s: seconds of rest after every sample, outside the timing.
        clock: seconds; only differences count.
        throttle: asked after each pair. A round in which one pair was throttled counts for none.
        after: called after each pair, outside the timing, with the name and whether its sample counts.
        sleep: rests and backs off.

    Returns:
        name -> its samples; sample i of every program is of the same round.

    Raises:
        DeviceError: a time was not above 0, or every round was throttled.
    """
    probe = throttle or NoThrottle()
    cuts = cuts or {}
    pairs = {
        name: Pairs(step, roof, limits, rest=lambda: sleep(rest_s) if rest_s else None, cut=cuts.get(name))
        for name, step in steps.items()
    }
    names = list(pairs)
    start = clock()
    turn = 0
    while True:
        first = turn % len(names)
        order = shuffle.sample(names, len(names)) if shuffle else names[first:] + names[:first]
        taken: dict[str, tuple[Taken, dict[str, Any]]] = {}
        for name in order:
            # Turned once every program has been first, so that place in the round and in the pair are not confounded.
            one = pairs[name].take(step_first=turn // (1 if shuffle else len(names)) % 2 == 0)
            taken[name] = one, {"disturbed": one.disturbed, **probe.read()}
            after(name, counts(taken[name][1]))
        turn += 1
        held = any(state.get("throttled") for _, state in taken.values())
        for name, (one, state) in taken.items():
            pairs[name].keep(one, {**state, "throttled": held})
        if held:
            sleep(limits.backoff_s)
        elapsed = clock() - start
        results = {name: pair.result for name, pair in pairs.items()}
        count = min(len(result.seconds) for result in results.values())
        done = count >= limits.min_samples and all(settled(r, limits.relative_half_width) for r in results.values())
        out_of_time = elapsed >= limits.time_limit_s * len(names) and turn >= 3
        if done or out_of_time or count >= limits.max_samples:
            for pair in pairs.values():
                pair.take_disturbed()
            if not all(result.seconds for result in results.values()):
                raise all_throttled(turn)
            return {
                name: replace(r, settled=settled(r, limits.relative_half_width), elapsed_s=elapsed)
                for name, r in results.items()
            }
