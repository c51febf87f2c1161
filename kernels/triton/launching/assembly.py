"""Write the persistent kernel: a step's launches as one kernel's source and a table of records.

Launches of one kernel with the same constants are a *class*: one branch of the source. A table record is one launch:
its class, its grid, and the arguments in which the launches of its class differ. An argument they agree on is written
into the source, a tensor as a parameter of the kernel, a number as a constant: sixty arguments do not fit in the
registers of a thread, and a parameter keeps what the compiler knows of its alignment.
"""

from __future__ import annotations

import hashlib
import linecache
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from moegauge.kernels.triton.launching.launch import Launch

HEADER = 4  # words of a record before its arguments: class, three grid sizes
ALIGNED = 16  # bytes; what a load of 16 bytes needs to be known of a pointer

# Numbers never written into the source though launches agree on them: places in the arena, which another copy of the
# same step has elsewhere, what a configuration decides, and the context's length. So one kernel serves them all.
VARYING = {
    *(f"{kind}{i}" for kind in ("w", "s", "t", "bias") for i in range(4)),
    *(
        prefix + kind
        for prefix in ("", "gate_", "up_", "down_", "shared_", "shared_gate_", "shared_up_")
        for kind in "wst"
    ),
    "depth",
    *("length", "per_split", "padded", "spans"),
}

# The language's name of a tensor's elements and the compiler's.
_POINTED = {"torch.uint32": "uint32", "torch.uint8": "uint8", "torch.bfloat16": "bfloat16", "torch.float32": "float32",
            "torch.int32": "int32"}  # fmt: skip
_TYPES = {"torch.uint32": "u32", "torch.uint8": "u8", "torch.bfloat16": "bf16", "torch.float32": "fp32",
          "torch.int32": "i32"}  # fmt: skip


def class_of(launch: Launch) -> tuple[Any, ...]:
    """What two launches must share to be one branch: kernel, constants and the numbers that are not whole."""
    floats = tuple((k, v) for k, v in launch.arguments.items() if isinstance(v, float))
    return (_path(launch), tuple(sorted(launch.constants.items())), floats)


def _path(launch: Launch) -> str:
    function = launch.kernel.fn
    return f"{function.__module__}.{function.__name__}"


@dataclass(slots=True)
class Assembly:
    """The source of a persistent kernel and what to call it with.

    Attributes:
        source: the text of a module whose `persistent` is the kernel.
        parameters: tensors behind the kernel's own parameters, in order.
        records: words of the table, row by row, all of one length.
        classes: (kernel, constants) of every branch.
    """

    source: str
    parameters: list[Any]
    records: list[list[int]]
    classes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def words(self) -> int:
        """Words of one record."""
        return len(self.records[0]) if self.records else HEADER

    @property
    def signature(self) -> tuple[tuple[str, str, bool], ...]:
        """(name, Triton's type, whether on 16 bytes) of every parameter but the constants."""
        given = [
            (f"p{i}", "*" + _TYPES[str(p.dtype)], p.data_ptr() % ALIGNED == 0) for i, p in enumerate(self.parameters)
        ]
        return (
            ("table", "*i64", True),
            ("barrier", "*i32", True),
            *given,
            ("first", "i32", False),
            ("last", "i32", False),
        )

    def kernel(self) -> Any:
        """The `triton.jit` function of the source."""
        return load(self.source)


def assemble(launches: Sequence[Launch]) -> Assembly:
    """One kernel for `launches`, whose records stand in the table in their order."""
    kinds: dict[tuple[Any, ...], list[Launch]] = {}
    for launch in launches:
        kinds.setdefault(class_of(launch), []).append(launch)
    parameters: dict[tuple[int, str], tuple[str, Any]] = {}
    branches, columns = [], {}
    for number, (key, alike) in enumerate(kinds.items()):
        lines, tabled = _branch(number, alike, parameters)
        branches += lines
        columns[key] = tabled
    numbers = {key: number for number, key in enumerate(kinds)}
    widest = HEADER + max((len(names) for names in columns.values()), default=0)
    words = -(-widest // 16) * 16  # records on cache lines of 128 bytes
    records = []
    for launch in launches:
        key = class_of(launch)
        grid = [*launch.grid, 1, 1][:3]
        record = [numbers[key], *grid, *(_word(launch.arguments[name]) for name in columns[key])]
        records.append(record + [0] * (words - len(record)))
    source = _module(list(kinds.values()), [name for name, _ in parameters.values()], branches, words)
    classes = [(_path(alike[0]), alike[0].constants) for alike in kinds.values()]
    return Assembly(source, [tensor for _, tensor in parameters.values()], records, classes)


def _word(value: Any) -> int:
    """What the table holds of an argument; for a float, which no table holds, its bits."""
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<d", value), "little")
    return int(value.data_ptr()) if hasattr(value, "data_ptr") else int(value)


def _kind(value: Any, words: Iterable[int]) -> str:
    """The type of an argument in the source."""
    if hasattr(value, "data_ptr"):
        return f"tl.pointer_type(tl.{_POINTED[str(value.dtype)]})"
    if isinstance(value, float):
        return "tl.float32"
    return "tl.int32" if all(-(2**31) <= word < 2**31 for word in words) else "tl.int64"


def _branch(
    number: int, alike: list[Launch], parameters: dict[tuple[int, str], tuple[str, Any]]
) -> tuple[list[str], list[str]]:
    """(lines of one class's branch, arguments its records hold)."""
    first = alike[0]
    tabled: list[str] = []
    lines: list[str] = []
    call: list[str] = []
    held: dict[tuple[Any, ...], str] = {}  # arguments equal in every launch are one: the matrices a product lacks
    for name, given in first.arguments.items():
        words = tuple(_word(launch.arguments[name]) for launch in alike)
        same = len(set(words)) == 1
        kind = _kind(given, words)
        if hasattr(given, "data_ptr") and same:
            call.append(f"{name}={parameters.setdefault((words[0], kind), (f'p{len(parameters)}', given))[0]}")
        elif same and name not in VARYING:
            call.append(f"{name}=tl.full((), {given!r}, {kind})")
        elif (kind, words) in held:
            call.append(f"{name}={held[kind, words]}")
        else:
            value = f"tl.load(record + {HEADER + len(tabled)}).to({kind})"
            if hasattr(given, "data_ptr") and all(word % ALIGNED == 0 for word in words):
                value = f"tl.multiple_of({value}, {ALIGNED})"  # said of the pointer: a cast forgets it of the number
            held[kind, words] = f"{name}_{number}"
            tabled.append(name)
            lines.append(f"            {name}_{number} = {value}")
            call.append(f"{name}={name}_{number}")
    constants = [f"{name}={value!r}" for name, value in {**first.constants, "PDL": False}.items()]
    at = "at=(v % n0, v // n0 % n1, v // n0 // n1, n0, n1, n2)"
    head = f"        {'if' if number == 0 else 'elif'} kind == {number}:"
    loop = f"            for v in range(me, n0 * n1 * n2, grid):\n                {_alias(first)}("
    return [head, *lines, loop + ", ".join([*call, *constants, at]) + ")"], tabled


def _alias(launch: Launch) -> str:
    return f"{launch.kernel.fn.__module__.rsplit('.', 1)[-1]}_{launch.kernel.fn.__name__}"


def _module(kinds: list[list[Launch]], parameters: list[str], branches: list[str], words: int) -> str:
    imports = sorted(
        {f"from {a[0].kernel.fn.__module__} import {a[0].kernel.fn.__name__} as {_alias(a[0])}" for a in kinds}
    )
    return "\n".join(
        [
            '"""Made by moegauge.kernels.triton.launching.assembly."""',
            "import triton",
            "import triton.language as tl",
            "from moegauge.kernels.triton.device.barrier import count_in, generation_of, wait",
            *imports,
            "",
            "",
            '@triton.jit(do_not_specialize=["first", "last"])',
            f"def persistent({', '.join(['table', 'barrier', *parameters, 'first', 'last'])},",
            "               SHARDS: tl.constexpr, LINE: tl.constexpr, ASM: tl.constexpr):",
            "    me = tl.program_id(0)",
            "    grid = tl.num_programs(0)",
            "    generation = generation_of(barrier, SHARDS, LINE)",
            "    for i in range(first, last):",
            f"        record = table + i * {words}",
            "        kind = tl.load(record)",
            "        n0 = tl.load(record + 1).to(tl.int32)",
            "        n1 = tl.load(record + 2).to(tl.int32)",
            "        n2 = tl.load(record + 3).to(tl.int32)",
            *branches,
            "        if i + 1 < last:",
            "            count_in(barrier, generation, me, grid, SHARDS, LINE)",
            "            generation = wait(barrier, generation, SHARDS, LINE, ASM)",
            "",
        ]
    )


_loaded: dict[str, Any] = {}


def load(source: str) -> Any:
    """The kernel of an assembly's source. Triton reads a function's source again, so `linecache` is told of it; no file
    is written, and none can be stale."""
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    if name not in _loaded:
        file = f"<moegauge persistent {name}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        space: dict[str, Any] = {"__name__": f"moegauge_persistent_{name}"}
        exec(compile(source, file, "exec"), space)  # noqa: S102 - text made above from our own kernels' names
        _loaded[name] = space["persistent"]
    return _loaded[name]
