"""The count-in as compiled, explored over all interleavings; every mutation and every harmful swap is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from moegauge.kernels.triton.inspect import machine_code
from moegauge.kernels.triton.inspect.protocol import Op, count_in, explore, operation, operations

# Count-ins as compiled: the last to arrive stores a zero and reads parts past the L1; or exchanges the counter for a
# zero with an acquire, which drops the L1, and reads parts through it.
LISTINGS = {
    path.stem: path.read_text().splitlines()
    for path in sorted((Path(__file__).parent / "data").glob("count_in_*.sass"))
}
OLD, LAST, COUNTER = "a part is read that is old", "not one program is last", "the counter is not left at zero"
WAITS = "a thread waits for ever"
# Neighbours of the protocol that may change places without harm: the counter is nobody's any more when it is reset.
HARMLESS = {(Op.RESET, Op.READ), (Op.EXCHANGE, Op.DROP)}
MEET = "BAR.SYNC.DEFER_BLOCKING 0x0"

every = pytest.mark.parametrize("name", LISTINGS)


def without(lines: list[str], op: Op, which: int = 0) -> list[str]:
    """A listing without its instruction number `which` of a kind."""
    place = [i for i, one in enumerate(lines) if operation(one) is op][which]
    return [*lines[:place], *lines[place + 1 :]]


def plain(lines: list[str]) -> list[str]:
    """A listing that reads parts through the L1 and drops it nowhere."""
    return [one.replace(".STRONG.SYS", "") for one in lines if "CCTL" not in one]


@every
def test_the_count_in_is_right_in_every_order(name):
    found = explore(operations(LISTINGS[name]))
    assert not found.wrong
    assert found.ends > 0
    assert found.states > 1000


MUTATIONS = {
    "no fence": (lambda lines: without(lines, Op.FENCE), OLD),
    "a fence of the program alone": (lambda lines: [one for one in scoped(lines) if is_known(one)], OLD),
    "no barrier before the fence": (lambda lines: without(lines, Op.BARRIER), OLD),
    "no barrier behind the addition": (lambda lines: without(lines, Op.BARRIER, 1), LAST),
    "parts read through an L1 that is not dropped": (plain, OLD),
    "the counter is not reset": (lambda lines: [one for one in lines if "RZ" not in one.split(",")[-1]], COUNTER),
    "nobody leaves": (lambda lines: without(lines, Op.LEAVE), LAST),
}


def scoped(lines: list[str]) -> list[str]:
    return [one.replace("MEMBAR.ALL.GPU", "MEMBAR.ALL.CTA") for one in lines]


def is_known(instruction: str) -> bool:
    """Whether it is an operation of the protocol: a fence of a narrower scope is none."""
    try:
        operation(instruction)
    except StopIteration:
        return False
    return True


@every
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_are_found(name, mutation):
    change, wrong = MUTATIONS[mutation]
    changed = change(LISTINGS[name])
    assert changed != LISTINGS[name]
    assert {wrong, WAITS} & set(explore(operations(changed)).wrong)


PAIRS = [
    pytest.param(name, i, id=f"{name}: {operation(lines[i])} - {operation(lines[i + 1])}")
    for name, lines in LISTINGS.items()
    for i in range(len(lines) - 1)
    if operation(lines[i]) is not operation(lines[i + 1])
]


@pytest.mark.parametrize(("name", "place"), PAIRS)
def test_reordering_one_instruction_of_the_listing_is_found(name, place):
    lines = LISTINGS[name]
    swapped = [*lines[:place], lines[place + 1], lines[place], *lines[place + 2 :]]
    harmless = (operation(lines[place]), operation(lines[place + 1])) in HARMLESS
    assert bool(explore(operations(swapped)).wrong) is not harmless


@every
def test_an_acquire_makes_plain_reads_right(name):
    """The L1 is dropped by the one thread that counts in; the others meet it before they read."""
    lines = plain(LISTINGS[name])
    first = min(i for i, one in enumerate(lines) if operation(one) is Op.READ_PLAIN)
    assert not explore(operations([*lines[:first], "CCTL.IVALL", MEET, *lines[first:]])).wrong
    assert OLD in explore(operations([*lines[:first], MEET, "CCTL.IVALL", *lines[first:]])).wrong


@every
def test_only_the_listing_decides(name):
    """The listing is found in a whole kernel, among stores of outputs."""
    body = [
        ".L_x_0:", "LDG.E.EF.128 R4, desc[UR4][R2.64]", "HMMA.16816.F32.BF16 R4, R8, R12, R4", "@P0 BRA `(.L_x_0)",
        "@P1 BRA `(.L_x_1)", "STG.E desc[UR4][R8.64], R9", MEET, ".L_x_1:", *LISTINGS[name],
        "STG.E desc[UR4][R8.64], R9", ".L_x_11:", "EXIT",
    ]  # fmt: skip
    text = "".join(f"{one}\n" if one.startswith(".L") else f"        /*0000*/  {one} ;\n" for one in body)
    assert count_in(machine_code.parse(text)) == LISTINGS[name]


COMPILE = """
from moegauge.kernels.triton.backend import column_order
from moegauge.kernels.triton.inspect import compile_report, machine_code, protocol
cases = {case.name: case for case in compile_report.cases(90, column_order())}
cubin = compile_report.compile_case(cases["product fp8, 7168 columns, residual, pdl"], 90)
code = machine_code.parse(compile_report.disassembled(cubin)[1])
print("\\n".join(protocol.count_in(code)))
"""


def test_what_compiles_now_is_one_of_the_listings():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    known = [operations(lines) for lines in LISTINGS.values()]
    assert operations(done.stdout.splitlines()) in known, done.stdout
