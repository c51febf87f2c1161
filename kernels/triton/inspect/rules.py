"""Rules on compiled kernels (`make ptx`): loads before the dependency wait, distances, serial loads, pipes, stack.

Each rule gives a number or names, and a limit; what today's kernels break stands in `allowances.py`, where it may only
become less.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from moegauge.kernels.triton.inspect.allowances import ALLOWED
from moegauge.kernels.triton.inspect.machine_code import ATOMIC, LOAD, WAIT, Listing, pipes, serial_loads

WAIT_TO_LOAD = 60  # instructions
SERIAL_LOADS = 2
# Lanes of a pipe over the 128 that a multiprocessor issues in a clock: the CUDA C programming guide's arithmetic
# throughputs for compute capability 9.0 (8.0 has the same; 16 special lanes, 32 of shuffles and of loads).
PIPE_SHARE = {"issue": 1.0, "alu": 0.5, "fma": 1.0, "half": 1.0, "imad": 0.5, "special": 0.125, "shuffle": 0.25,
              "memory": 0.25}  # fmt: skip

# Parameters that hold what no earlier launch of a step writes: weights, scales, gains, biases, and the routing law.
STATIC = {
    "w_pool", "s_pool", "t_pool", "shared_w_pool", "shared_s_pool", "shared_t_pool", "bias", "bias_f32", "gate_bias",
    "up_bias", "gain", "next_gain", "prior",
}  # fmt: skip
# Tables that a kernel may read before its wait, since they were written two launches before it: every kernel waits
# before it lets the next one start.
# `experts_up` streams its shared expert before it waits, from an input and to an output that the launch before it does
# not touch (EARLY, which the lowering sets only then); it waits before it stores a part.
TABLES = {
    "experts_down": {"slots", "counts", "members", "distinct", "share", "slot_of"},
    "experts_up": {"x", "squares", "store"},
}


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that a kernel breaks, by how much, and what is allowed for now."""

    rule: str
    value: float
    limit: float
    allowed: float
    detail: str = ""

    @property
    def fault(self) -> bool:
        """Whether it is more than is allowed for now."""
        return self.value > self.allowed

    def __str__(self) -> str:
        """`wait to load: 376, at most 60`."""
        return f"{self.rule}: {self.value:g}, at most {self.limit:g}" + (f" ({self.detail})" if self.detail else "")


def early_reads(ptx: str, names: Sequence[str]) -> set[str]:
    """Parameters behind the global loads, stores and atomics that may run before the dependency wait: reached from the
    kernel's entry on a way that does not wait, and above the last wait in the text. (A way around a loop that waits in
    every turn leads to what stands below it; no program takes it, since one without work waits at once.) A store or
    atomic is named `store` whatever it goes to.

    Args:
        ptx: the kernel's PTX.
        names: its parameters in order, constants apart.
    """
    body = [line.strip() for line in ptx[ptx.index("{", ptx.index(".entry")) :].splitlines()]
    labels = {match[1]: i for i, line in enumerate(body) if (match := re.match(r"(\$\w+):", line))}
    made: dict[str, set[str]] = {}
    for line in body:
        if match := re.match(r"(?:@!?%\w+ )?[\w.]+\s+(%rd\d+), (.*);", line):
            made.setdefault(match[1], set()).update(re.findall(r"%rd\d+|\w+_param_\d+", match[2]))
    found: set[str] = set()
    seen: set[int] = set()
    last = max((i for i, line in enumerate(body) if "griddepcontrol.wait" in line), default=-1)
    stack = [0]
    while stack:
        i = stack.pop()
        if i in seen or i > last:
            continue
        seen.add(i)
        line = body[i]
        if "griddepcontrol.wait" in line or re.match(r"(ret|exit)\b", line):
            continue
        if re.search(r"\b(st|atom|red)\.\S*global", line):
            found.add("store")
        elif re.search(r"\bld\.\S*global", line):
            base = re.search(r"\[\s*(%rd\d+)", line)
            found |= {names[n] if n < len(names) else "scratch" for n in _parameters(base[1] if base else "", made)}
        if branch := re.search(r"\bbra(?:\.uni)?\s+(\$\w+)", line):
            stack.append(labels[branch[1]])
            if not line.startswith("@"):
                continue
        stack.append(i + 1)
    return found


def _parameters(register: str, made: dict[str, set[str]]) -> set[int]:
    """Numbers of the pointer parameters an address is made from."""
    found, seen, stack = set(), set(), [register]
    while stack:
        one = stack.pop()
        if one in seen:
            continue
        seen.add(one)
        if match := re.search(r"_param_(\d+)$", one):
            found.add(int(match[1]))
        stack += made.get(one, ())
    return found


def wait_to_load(code: Listing) -> int:
    """Most instructions from a dependency wait to the nearest load behind it; a wait with none behind it counts 0."""
    counted, loads = replace(code, stalls=()), set(code.find(LOAD))
    return max((len(counted.path(place, loads)) for place in code.find(WAIT)), default=0)


def serial_behind_atomic(code: Listing) -> int:
    """Most loads in turn behind an atomic addition, up to the next one, a weight loop or the end."""
    atomics = code.find(ATOMIC)
    stops = sorted([*atomics, *(a for a, _ in code.weight_loops), len(code.text)])
    return max((serial_loads(code.text[a + 1 : next(s for s in stops if s > a)]) for a in atomics), default=0)


def pipe_excess(body: Iterable[str], weights: float, budget: float) -> tuple[float, str]:
    """(largest share of its own limit, pipe) of a weight loop's instructions; issuing is what `budget` is for."""
    counts = pipes(body)
    shares = {pipe: counts[pipe] / weights / (budget * part) for pipe, part in PIPE_SHARE.items()}
    worst = max(shares, key=lambda pipe: shares[pipe])
    return round(shares[worst], 2), worst


def judge(
    kernel: str,
    code: Listing,
    early: set[str],
    stack: int,
    single: bool,
    loops: Iterable[tuple[tuple[int, int], float, float]] = (),
) -> list[Broken]:
    """The rules a kernel breaks.

    Args:
        kernel: its function.
        code, early: its machine code; `early_reads`.
        stack: bytes per thread.
        single: it is for a single token.
        loops: ([first, last), weights of a turn and lane, budget) of its weight loops.
    """
    unlisted = sorted(early - STATIC - TABLES.get(kernel, set()))
    excess = [pipe_excess(code.text[a:b], weights, budget) for (a, b), weights, budget in loops]
    share, pipe = max(excess, default=(0.0, ""))
    checks = (
        ("read before the wait", len(unlisted), 0, ", ".join(unlisted)),
        ("wait to load", wait_to_load(code), WAIT_TO_LOAD, "instructions"),
        ("serial loads behind the atomic", serial_behind_atomic(code), SERIAL_LOADS, ""),
        ("share of a pipe", share, 1.0, pipe),
        ("stack of a single token's kernel", stack if single else 0, 0, "bytes"),
    )
    return [
        Broken(rule, value, limit, ALLOWED.get((rule, kernel), limit), detail)
        for rule, value, limit, detail in checks
        if value > limit
    ]
