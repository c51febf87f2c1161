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

LISTING = (Path(__file__).parent / "data" / "count_in.sass").read_text().splitlines()
OLD, LAST, COUNTER = "a part is read that is old", "not one program is last", "the counter is not left at zero"
# Neighbours of the protocol that may change places without harm: the counter is nobody's any more when it is reset.
HARMLESS = {(Op.RESET, Op.READ)}
STRONG = [i for i, one in enumerate(LISTING) if operation(one) is Op.READ]


def at(op: Op, which: int = 0) -> int:
    return [i for i, one in enumerate(LISTING) if operation(one) is op][which]


def test_the_count_in_is_right_in_every_order():
    found = explore(operations(LISTING))
    assert not found.wrong
    assert found.ends > 0
    assert found.states > 1000


def without(*places: int) -> list[str]:
    return [one for i, one in enumerate(LISTING) if i not in places]


MUTATIONS = {
    "no fence": (without(at(Op.FENCE)), OLD),
    "no barrier before the fence": (without(at(Op.BARRIER)), OLD),
    "no barrier behind the addition": (without(at(Op.BARRIER, 1)), LAST),
    "a fence of the program's own scope": ([one.replace("MEMBAR.ALL.GPU", "MEMBAR.ALL.CTA") for one in LISTING], OLD),
    "parts read through the L1": ([one.replace(".STRONG.SYS", "") for one in LISTING], OLD),
    "the counter is not reset": (without(at(Op.RESET)), COUNTER),
    "nobody leaves": (without(at(Op.LEAVE)), LAST),
}


def kept(lines):
    """Lines that are an operation: a fence of another scope is none."""
    return [one for one in lines if "MEMBAR.ALL.CTA" not in one]


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_are_found(name):
    lines, wrong = MUTATIONS[name]
    assert wrong in explore(operations(kept(lines))).wrong


PAIRS = [i for i in range(len(LISTING) - 1) if operation(LISTING[i]) is not operation(LISTING[i + 1])]


@pytest.mark.parametrize("place", PAIRS, ids=lambda i: f"{operation(LISTING[i])} - {operation(LISTING[i + 1])}")
def test_reordering_one_instruction_of_the_listing_is_found(place):
    swapped = [*LISTING[:place], LISTING[place + 1], LISTING[place], *LISTING[place + 2 :]]
    harmless = (operation(LISTING[place]), operation(LISTING[place + 1])) in HARMLESS
    assert bool(explore(operations(swapped)).wrong) is not harmless


def test_an_acquire_makes_plain_reads_right():
    """As the router's last program has it: the L1 is dropped behind the addition."""
    plain = [one.replace(".STRONG.SYS", "") for one in LISTING]
    dropped = [*plain[: STRONG[0]], "CCTL.IVALL", *plain[STRONG[0] :]]
    assert not explore(operations(dropped)).wrong
    early = ["CCTL.IVALL", *plain]
    assert OLD not in explore(operations(early), 1).wrong  # dropped once, nothing refills the L1 before it is read


def test_only_the_listing_decides():
    """The listing is found in a whole kernel, among stores of outputs and loads of gains."""
    body = [
        ".L_x_0:", "LDG.E.EF.128 R4, desc[UR4][R2.64]", "HMMA.16816.F32.BF16 R4, R8, R12, R4", "@P0 BRA `(.L_x_0)",
        "@P1 BRA `(.L_x_1)", "STG.E desc[UR4][R8.64], R9", "BAR.SYNC.DEFER_BLOCKING 0x0", ".L_x_1:", *LISTING,
        "LDG.E R50, desc[UR4][R60.64]", "STG.E desc[UR4][R8.64], R9", ".L_x_11:", "EXIT",
    ]  # fmt: skip
    text = "".join(f"{one}\n" if one.startswith(".L") else f"        /*0000*/  {one} ;\n" for one in body)
    assert count_in(machine_code.parse(text)) == LISTING


COMPILE = """
from moegauge.kernels.triton.backend import column_order
from moegauge.kernels.triton.inspect import compile_report, machine_code, protocol
cases = {case.name: case for case in compile_report.cases(90, column_order())}
cubin = compile_report.compile_case(cases["product fp8, 7168 columns, residual, pdl"], 90)
code = machine_code.parse(compile_report.disassembled(cubin)[1])
print("\\n".join(protocol.count_in(code)))
"""


def test_the_fixture_is_what_compiles_now():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert operations(done.stdout.splitlines()) == operations(LISTING), done.stdout
