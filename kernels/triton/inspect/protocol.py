"""The count-in of partial sums as its machine code has it, explored over all interleavings with store buffers and L1s.

`count_in` reads the operations that matter off a kernel's listing, in order: stores of parts, barriers, fences, the
atomic addition, the way out of whoever is not last, the counter's reset or exchange, reads of parts (past the L1 or
not), drops of the L1. `explore` runs them in several programs of two threads each, on two multiprocessors, in every
order:

- a store waits in its thread's buffer and reaches the L2 cache at any later time, in any order but two to one place;
- a fence waits until its thread's stores have, and those of threads it met at a barrier since they were made;
- an atomic addition and a strong load work in the L2, a plain load in the multiprocessor's L1 where the line is there:
  an earlier launch has left old lines of every part in both;
- a barrier is for the threads of a program.

Right is: one program is last, reads what all wrote, and leaves the counter at zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from moegauge.kernels.triton.inspect.machine_code import ATOMIC, Listing


class Op(StrEnum):
    """One operation of the protocol."""

    STORE = "store part"
    BARRIER = "barrier"
    FENCE = "fence"
    ADD = "add"
    LEAVE = "leave unless last"
    RESET = "reset counter"
    EXCHANGE = "exchange counter for zero"
    READ = "read part, strong"
    READ_PLAIN = "read part"
    DROP = "drop L1"


# What only one thread of a program does; the others go on.
_ALONE = {Op.FENCE, Op.ADD, Op.RESET, Op.EXCHANGE, Op.DROP}
_RESET = r"\bSTG\b.*, RZ$"
_PATTERNS = (
    (Op.BARRIER, r"\bBAR\.SYNC\b"),
    (Op.FENCE, r"\bMEMBAR\.(SC|ALL)\.(GPU|SYS)\b"),
    (Op.EXCHANGE, r"\bATOMG?\S*\.EXCH\b"),
    (Op.ADD, ATOMIC),
    (Op.RESET, _RESET),
    (Op.STORE, r"\bSTG\b"),
    (Op.READ, r"\bLDG\S*\.STRONG\b"),
    (Op.READ_PLAIN, r"\bLDG\b"),
    (Op.DROP, r"\bCCTL\.IVALL\b"),
)


def count_in(code: Listing, which: int = 0) -> list[str]:
    """The instructions of a kernel's count-in, number `which` behind its weight loop: from the stores above the atomic
    addition to the last read of parts below it."""
    loops = code.weight_loops
    begin = loops[0][1] if loops else 0
    atomics = [i for i in code.find(ATOMIC, begin) if "EXCH" not in code.text[i]]
    atomic = atomics[which]
    since = atomics[which - 1] + 1 if which else begin
    # Stores of a whole row tile's outputs stand above the parts': the way that ends here begins behind a branch.
    stores = [i for i in code.find(r"\bSTG\b", since, atomic) if not re.search(_RESET, code.text[i])]
    fences = code.find(r"\bBAR\.SYNC\b", since, stores[-1]) if stores else []
    first = next((i for i in stores if not fences or i > fences[-1]), atomic)
    until = atomics[which + 1] if which + 1 < len(atomics) else len(code.text)
    until = min([until, *(a for a, _ in loops if a > atomic)])
    stop = next(iter(i for i in code.find(r"\bSTG\b", atomic, until) if "RZ" not in code.text[i]), until)
    kept: list[str] = []
    left = False
    for i in range(first, stop):
        one = code.text[i]
        met = any(re.search(pattern, one) for _, pattern in _PATTERNS)
        if i > atomic and not left and kept and re.search(r"\bBAR\.SYNC\b", kept[-1]) and re.match(r"@\S+ BRA\b", one):
            met = left = True
        if met:
            kept.append(one)
    if any(operation(one) is Op.READ for one in kept):
        # Beside strong reads, which are of parts, plain ones are of residuals, gains and biases.
        kept = [one for one in kept if operation(one) is not Op.READ_PLAIN]
    while kept and operation(kept[-1]) is Op.BARRIER:  # of what is done with the sums
        kept.pop()
    return kept


def operation(instruction: str) -> Op:
    """What an instruction of a count-in does."""
    if re.match(r"@\S+ BRA\b", instruction):
        return Op.LEAVE
    return next(op for op, pattern in _PATTERNS if re.search(pattern, instruction))


def operations(instructions: Sequence[str]) -> tuple[Op, ...]:
    """The protocol, alike neighbours once."""
    found: list[Op] = []
    for one in instructions:
        if (op := operation(one)) not in found[-1:]:
            found.append(op)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an exploration found.

    Attributes:
        states, ends: how many there are.
        wrong: what some order of events does wrong; empty where nothing.
    """

    states: int
    ends: int
    wrong: tuple[str, ...]


THREADS = 2


class _Thread(NamedTuple):
    """A thread: the operation it is at, places of stores in its buffer, whether its program is last, what it read."""

    pc: int = 0
    buffer: tuple[int, ...] = ()
    last: bool | None = None
    read: tuple[int, ...] = ()


class _State(NamedTuple):
    """Threads; the L2 (the parts each thread stores, then the counter); whether each L1 holds old lines of all parts;
    the sum each program's addition brought back."""

    threads: tuple[_Thread, ...]
    memory: tuple[int, ...]
    stale: tuple[bool, ...]
    sums: tuple[int | None, ...]

    def move(self, i: int, thread: _Thread, **changes: Any) -> _State:
        """The same with thread `i` changed."""
        return self._replace(threads=(*self.threads[:i], thread, *self.threads[i + 1 :]), **changes)


def explore(ops: Sequence[Op], programs: int = 2) -> Outcome:
    """Run a protocol in every order; program p is on multiprocessor p mod 2, thread 0 of each counts it in."""
    threads = programs * THREADS
    parts = threads * max(1, ops.count(Op.STORE))
    start = _State((_Thread(),) * threads, (*[0] * parts, 0), (True, True), (None,) * programs)
    seen, stack, ends, wrong = {start}, [start], 0, set[str]()
    while stack:
        state = stack.pop()
        following = list(_steps(state, ops, programs))
        if not following:
            ends += 1
            if any(thread.pc < len(ops) for thread in state.threads):
                wrong.add("a thread waits for ever")
            else:
                wrong |= _verdict(state)
        for after in following:
            if after not in seen:
                seen.add(after)
                stack.append(after)
    return Outcome(len(seen), ends, tuple(sorted(wrong)))


def _verdict(state: _State) -> set[str]:
    """What is wrong at an end."""
    found = set()
    last = [thread for thread in state.threads if thread.last]
    if len(last) != THREADS:
        found.add("not one program is last")
    if any(thread.read != tuple(100 + i for i in range(len(state.memory) - 1)) for thread in last):
        found.add("a part is read that is old")
    if state.memory[-1] != 0:
        found.add("the counter is not left at zero")
    return found


def _steps(state: _State, ops: Sequence[Op], programs: int) -> Iterator[_State]:
    """Every state one event later."""
    counter = len(state.memory) - 1
    each = counter // len(state.threads)
    for i, thread in enumerate(state.threads):
        for place in thread.buffer:  # a store reaches the L2
            value = 0 if place == counter else 100 + place
            memory = (*state.memory[:place], value, *state.memory[place + 1 :])
            yield state.move(i, thread._replace(buffer=tuple(p for p in thread.buffer if p != place)), memory=memory)
        if thread.pc >= len(ops):
            continue
        op, program = ops[thread.pc], i // THREADS
        onward = thread._replace(pc=thread.pc + 1)
        if op in _ALONE and i % THREADS:
            yield state.move(i, onward)
        elif op in (Op.STORE, Op.RESET):
            place = i * each + ops[: thread.pc].count(Op.STORE) if op is Op.STORE else counter
            yield state.move(i, onward._replace(buffer=(*thread.buffer, place)))
        elif op is Op.BARRIER:
            yield from _pass_barrier(state, ops, i)
        elif op is Op.FENCE:
            if not _unseen(state, ops, i):
                yield state.move(i, onward)
        elif op is Op.ADD:
            sums = (*state.sums[:program], state.memory[counter], *state.sums[program + 1 :])
            yield state.move(i, onward, memory=(*state.memory[:counter], state.memory[counter] + 1), sums=sums)
        elif op is Op.EXCHANGE:
            yield state.move(i, onward, memory=(*state.memory[:counter], 0))
        elif op is Op.LEAVE:  # a sum that is not there yet is taken for some other number
            last = state.sums[program] == programs - 1
            yield state.move(i, thread._replace(pc=thread.pc + 1 if last else len(ops), last=last))
        elif op is Op.DROP:
            stale = tuple(old and side != program % 2 for side, old in enumerate(state.stale))
            yield state.move(i, onward, stale=stale)
        else:
            old = op is Op.READ_PLAIN and state.stale[program % 2]
            read = tuple(0 if old else 100 + p if p in thread.buffer else state.memory[p] for p in range(counter))
            # What is old stays old: other parts are read again later, not this one.
            seen = tuple(min(pair) for pair in zip(thread.read, read, strict=True)) if thread.read else read
            yield state.move(i, onward._replace(read=seen))


def _unseen(state: _State, ops: Sequence[Op], i: int) -> bool:
    """Whether a part that thread `i`'s fence must wait for is still in a buffer: its own, or that of a thread of its
    program which has passed every barrier it has passed."""
    passed = ops[: state.threads[i].pc].count(Op.BARRIER)
    first = i // THREADS * THREADS
    for m in range(first, first + THREADS):
        met = m == i or (passed > 0 and ops[: state.threads[m].pc].count(Op.BARRIER) >= passed)
        if met and any(place < len(state.memory) - 1 for place in state.threads[m].buffer):
            return True
    return False


def _pass_barrier(state: _State, ops: Sequence[Op], i: int) -> Iterator[_State]:
    """The threads of a program pass a barrier together, once all of them are at it."""
    mates = state.threads[i : i + THREADS]
    if i % THREADS == 0 and len({thread.pc for thread in mates}) == 1:
        moved = tuple(thread._replace(pc=thread.pc + 1) for thread in mates)
        yield state._replace(threads=(*state.threads[:i], *moved, *state.threads[i + THREADS :]))
