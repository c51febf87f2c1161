"""Read a kernel's machine code (SASS): loops, pipes, stall counts, the dependency wait, loads that wait for loads.

A listing is what `nvdisasm -c -hex` prints. Distances are along the text, in which the compiler keeps the usual way
through a kernel together; nothing here knows how often a loop turns.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

# Pipes by the first word of an instruction (CUDA C programming guide, arithmetic instructions; what is in none of these
# takes an issue slot and nothing else): moves and the uniform data path among them.
PIPES = {
    "alu": "LOP3 LOP SHF IADD3 IADD ISETP SEL PRMT VIADD VIADDMNMX IMNMX VIMNMX VIMNMX3 LEA FSETP FMNMX FMNMX3 PLOP3 "
    "FSEL BMSK SGXT IABS VABSDIFF P2R R2P FSET ICMP I2FP F2FP HSETP2 HMNMX2",
    "fma": "FFMA FMUL FADD FFMA2 FMUL2 FADD2",
    "half": "HFMA2 HADD2 HMUL2",
    "imad": "IMAD",
    "special": "MUFU I2F F2I F2F POPC FLO BREV",
    "shuffle": "SHFL REDUX",
    "memory": "LDG STG LDS STS ATOMG ATOM RED REDG LD ST LDL STL LDSM STSM",
    "tensor": "HMMA",
}  # fmt: skip
_PIPE = {word: pipe for pipe, words in PIPES.items() for word in words.split()}
_NO_RESULT = {"STG", "STS", "ST", "STL", "STSM", "RED", "REDG", "BRA", "EXIT", "BAR", "MEMBAR", "CCTL", "R2UR", "NOP"}


@dataclass(frozen=True, slots=True)
class Listing:
    """A kernel's machine code.

    Attributes:
        text: its instructions, predicates first, in order.
        loops: [first, last) between a label and its backward branch.
        stalls: cycles each instruction keeps its warp from the next (bits 41 to 44 of its upper word); empty where the
            listing holds no codes.
        targets: where a branch goes, by the branch's place.
    """

    text: tuple[str, ...]
    loops: tuple[tuple[int, int], ...]
    stalls: tuple[int, ...]
    targets: dict[int, int]

    @property
    def weight_loops(self) -> list[tuple[int, int]]:
        """Innermost loops of tensor-core products on data that is to be evicted first: weights, but not a cache."""
        return [
            (a, b)
            for a, b in innermost(self.loops)
            if any("HMMA" in i for i in self.text[a:b]) and any(".EF" in i for i in self.text[a:b])
        ]

    def cycles(self, places: Iterable[int]) -> int:
        """Cycles a warp alone needs at least for some instructions, by their stall counts; 1 each where not known."""
        return sum(max(1, self.stalls[i]) if self.stalls else 1 for i in places)

    def following(self, place: int) -> list[int]:
        """Where a warp may go from an instruction."""
        one, after = self.text[place], [place + 1] if place + 1 < len(self.text) else []
        name = opcode(one)
        if name in ("EXIT", "BRA"):
            to = [self.targets[place]] if place in self.targets else []
            return to + after if one.startswith("@") else to
        return after

    def path(self, first: int, goals: Container[int], avoid: Container[int] = ()) -> list[int]:
        """The instructions of the way of fewest cycles from `first` to one of `goals`, the goal apart, around `avoid`;
        empty where no way leads there."""
        queue, came, cost = [(0, first)], {first: first}, {first: 0}
        while queue:
            spent, place = heappop(queue)
            if place in goals and place != first:
                way = []
                while place != first:
                    place = came[place]
                    way.append(place)
                return way[::-1]
            if spent > cost[place]:
                continue
            for after in self.following(place):
                total = spent + self.cycles((place,))
                if after not in avoid and total < cost.get(after, total + 1):
                    cost[after], came[after] = total, place
                    heappush(queue, (total, after))
        return []

    def find(self, pattern: str, first: int = 0, last: int | None = None) -> list[int]:
        """Places of the instructions a pattern is found in."""
        seen = re.compile(pattern)
        return [i for i, one in enumerate(self.text[first:last], first) if seen.search(one)]


def parse(listing: str) -> Listing:
    """A disassembly, with or without codes."""
    labels: dict[str, int] = {}
    text: list[str] = []
    loops = []
    branches: dict[int, str] = {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(text)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            text.append(re.sub(r"\s+", " ", instruction[1]))
            if branch := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction[1]):
                branches[len(text) - 1] = branch[1]
                if branch[1] in labels:
                    loops.append((labels[branch[1]], len(text)))
    codes = re.findall(r"/\* (0x[0-9a-f]{16}) \*/", listing)
    stalls = tuple((int(code, 16) >> 41) & 15 for code in codes[1::2])
    targets = {place: labels[label] for place, label in branches.items() if label in labels}
    return Listing(tuple(text), tuple(loops), stalls if len(stalls) == len(text) else (), targets)


def innermost(loops: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Loops that hold no other loop."""
    every = list(loops)
    return [a for a in every if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in every)]


def opcode(instruction: str) -> str:
    """`@P0 IMAD.WIDE R4, ...` -> `IMAD`."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split(" ", 1)[0].split(".", 1)[0].rstrip(";")


def pipes(body: Iterable[str]) -> Counter[str]:
    """Instructions by pipe; `issue` counts all of them."""
    found: Counter[str] = Counter()
    for one in body:
        found["issue"] += 1
        if pipe := _PIPE.get(opcode(one)):
            found[pipe] += 1
    return found


def _registers(instruction: str) -> tuple[set[int], set[int]]:
    """(written, read) registers. A result of several is all of them; an address of 64 bits is two."""
    name = opcode(instruction)
    words = re.findall(r"\bU?R(\d+)(\.64)?", re.sub(r"\bUR\d+(\.64)?", "", instruction))
    if not words:
        return set(), set()
    wide = re.search(r"\.(64|128)\b", instruction.split("desc", 1)[0].split("[", 1)[0])
    many = 4 if name == "HMMA" else {"64": 2, "128": 4}.get(wide[1], 1) if wide and name.startswith("LD") else 1
    reads = {int(n) + i for n, pair in words for i in range(2 if pair else many if name == "HMMA" else 1)}
    if name in _NO_RESULT:
        return set(), reads
    first = int(words[0][0])
    rest = {int(n) + i for n, pair in words[1:] for i in range(2 if pair else many if name == "HMMA" else 1)}
    return set(range(first, first + many)), rest


def serial_loads(text: Sequence[str], unread: bool = True) -> int:
    """How many of the global loads in some instructions wait for one another, a chain as long as it is.

    Instructions are issued in order: a load is behind another if anything before it, an address or not, has read what
    the other brought. Loads issued before that, many as they are, count once. Without `unread` those whose result none
    of the instructions reads, which keep nobody waiting, do not count.
    """
    done, longest = 0, 0
    pending: dict[int, int] = {}
    for one in text:
        written, read = _registers(one)
        done = max((pending[r] for r in read if r in pending), default=done) if read & pending.keys() else done
        pending = {r: at for r, at in pending.items() if r not in written and at > done}
        if re.search(r"\bLDG?\.E\b|\bLDG\b", one):
            longest = max(longest, done + 1)
            pending |= dict.fromkeys(written, done + 1)
    return longest if unread else done


WAIT = r"\bACQBULK\b"
ATOMIC = r"\b(ATOMG?|REDG?)\b"
WEIGHTS = r"\bLDG\S*\.EF\b"
LOAD = r"\bLDG?\b"
STORE = r"\bSTG\b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The usual way through a kernel, in cycles of a warp alone and in loads that wait for one another.

    Attributes:
        head: cycles before the first load of weights, or of all of it up to the atomic addition in a kernel without a
            weight loop.
        head_loads: loads in turn before it that it, or anything before it, waits for.
        waits_first: the dependency wait comes before the first load of weights.
        wait_cycles: cycles from that wait to the first load of weights; 0 where weights come first.
        tail: cycles from the end of the weight loop to the atomic addition, or to the last store.
        finish: cycles from the atomic addition of whoever arrives last to the last store.
        finish_loads: loads in turn behind it.
        finish_all: the same along the text, those that few cases need (biases) among them.
        late_vectors: loads of two bytes behind the atomic addition: gains and biases, which nobody has touched before.
        arrives: atomic additions behind the weight loop, one behind another on one way with no weights in between.
        again: cycles from the end of the weight loop to the next row's first load of weights, without counting in.
        again_loads: loads in turn there, as in `head_loads`.
        whole: cycles from the end of the weight loop to the last store of who holds a whole row tile, and counts nobody
            in; 0 where no way leads around the atomic addition.
        whole_loads: loads in turn there.
        onward: cycles from the atomic addition to the next row tile's first load of weights, for who is not the last.
    """

    head: int
    head_loads: int
    waits_first: bool
    wait_cycles: int
    tail: int
    finish: int
    finish_loads: int
    finish_all: int
    late_vectors: int
    arrives: int
    again: int = 0
    again_loads: int = 0
    whole: int = 0
    whole_loads: int = 0
    onward: int = 0


def way(code: Listing) -> Way:
    """The usual way through a kernel: its first weight loop, the atomic addition behind it, and the end of the last."""
    loops, ends = code.weight_loops, len(code.text)
    waits, atomics, stores = code.find(WAIT), code.find(ATOMIC), code.find(STORE)
    if not loops:
        first = atomics[0] if atomics else max(stores, default=ends)
        before = code.path(0, {first})
        mine = [place for place in before if place in waits][-1:]
        finish = _finish(code, first, ends) if atomics else []
        return Way(
            head=code.cycles(before), head_loads=serial_loads([code.text[i] for i in before]), waits_first=True,
            wait_cycles=code.cycles(before[before.index(mine[0]) :]) if mine else 0, tail=0,
            finish=code.cycles(finish), finish_loads=serial_loads([code.text[i] for i in finish]),
            finish_all=serial_loads(code.text[first:]), late_vectors=0, arrives=len(atomics),
        )  # fmt: skip
    begin, end = loops[0]
    weights = code.find(WEIGHTS)
    before = code.path(0, set(weights))
    mine = [place for place in before if place in waits][-1:]
    behind = [a for a in atomics if a >= end]
    last = behind[0] if behind else max((s for s in stores if s >= end), default=ends - 1)
    tail = code.path(end - 1, {last})[1:]
    heads = {place for place in weights if not begin <= place < end}
    again = code.path(end - 1, heads)[1:]
    onward = code.path(last, heads)[1:] if behind else again
    stop = min([*behind[1:], *(a for a, _ in loops[1:] if a > last), ends])
    finish = _finish(code, last, stop) if behind else []
    ends_at = code.find(STORE, last, stop)[-1:] or code.find(STORE, end)[-1:]
    whole = code.path(end - 1, set(ends_at), set(atomics) if behind else ())[1:]
    return Way(
        head=code.cycles(before),
        head_loads=_waited(code, before, weights),
        waits_first=bool(mine),
        wait_cycles=code.cycles(before[before.index(mine[0]) :]) if mine else 0,
        tail=code.cycles(tail),
        finish=code.cycles(finish),
        finish_loads=serial_loads([code.text[i] for i in finish]),
        finish_all=serial_loads(code.text[last + 1 : stop]) if behind else 0,
        late_vectors=len(code.find(r"\bLDG\S*\.U16\b", last, stop)) if behind else 0,
        arrives=max((_chain(code, place, behind, set(weights)) for place in behind), default=0),
        whole=code.cycles(whole),
        whole_loads=serial_loads([code.text[i] for i in whole]),
        again=code.cycles(again),
        again_loads=_waited(code, again, heads),
        onward=code.cycles(onward),
    )


def _finish(code: Listing, atomic: int, stop: int) -> list[int]:
    """The shortest way of the last to arrive: by the first load behind its addition to its last store."""
    loads = code.find(LOAD, atomic + 1, stop)[:1]
    stores = code.find(STORE, atomic + 1, stop)[-1:]
    first = code.path(atomic, set(loads))[1:] if loads else []
    return first + (code.path(loads[0] if loads else atomic, set(stores)) if stores else [])


def _waited(code: Listing, way: list[int], goals: Iterable[int]) -> int:
    """Loads in turn that a way waits for before the first of `goals` that it leads to is issued."""
    after = set(code.following(way[-1])) & set(goals) if way else set()
    return serial_loads([code.text[i] for i in [*way, *sorted(after)[:1]]], unread=False)


def _chain(code: Listing, atomic: int, atomics: Sequence[int], avoid: Container[int]) -> int:
    """Atomic additions on the longest way onward in the text from one of them, itself included, around `avoid`."""
    seen, open_, found = {atomic}, [atomic], set()
    while open_:
        for after in code.following(open_.pop()):
            if after > atomic and after not in seen and after not in avoid:
                seen.add(after)
                if after in atomics:
                    found.add(after)
                else:
                    open_.append(after)
    return 1 + max((_chain(code, after, atomics, avoid) for after in found), default=0)
