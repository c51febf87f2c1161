"""How evenly a step's weights are shared out between a GPU's programs; no GPU, nothing compiled.

    python scripts/shares.py                                    four models, batch 1, 132 multiprocessors (H100, H200)
    python scripts/shares.py --model kimi-k2 --batch 8 --processors 148 --configuration even

A line for each distinct launch that streams weights: how many there are in a step, its programs, the turns (8 KB of
weights each) they share (the fewest there can be, where that depends on the routing), the longest share, and what of
all programs' time is idle beside it, 1 - mean / longest.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from moegauge.bench.plan.gpu_suite import LEADING
from moegauge.bench.run.launches import uneven
from moegauge.bench.step.lowered import lowered
from moegauge.kernels.triton.lowering.configuration import CONFIGURATIONS

Row = tuple[str, int, int]


def rows(model: str, batch: int, processors: int, name: str) -> tuple[int, Counter[Row]]:
    """(launches of a step, how many of each (kernel, programs, chunks) that shares chunks out)."""
    found: Counter[Row] = Counter()
    launches = [one for one in lowered(model, True, batch=batch, processors=processors, name=name) if one.enqueued]
    for launch in launches:
        if launch.chunks:
            kernel = f"{launch.kernel.fn.__name__} {launch.constants['FORMAT']}"
            shape = f"{launch.arguments['rows']} rows, {launch.arguments['tiles']} tiles"
            found[f"{kernel}, {shape}", launch.grid[0], launch.chunks] += 1
    return len(launches), found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="default: " + ", ".join(LEADING))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--processors", type=int, default=132)
    parser.add_argument("--configuration", default="wide", choices=CONFIGURATIONS)
    options = parser.parse_args()
    for model in options.model or LEADING:
        launches, found = rows(model, options.batch, options.processors, options.configuration)
        print(f"{model}, {launches} launches a step\n  launches programs    turns longest   idle  kernel")
        for (kernel, programs, chunks), count in found.items():
            longest, idle = -(-chunks // programs), 100 * uneven(chunks, programs)
            print(f"  {count:8d} {programs:8d} {chunks:8d} {longest:7d} {idle:4.1f} %  {kernel}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
