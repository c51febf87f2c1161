"""Rules on compiled kernels: a listing that keeps each, and one that breaks it; the list of allowances only shrinks."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from moegauge.kernels.triton.inspect import machine_code, rules
from moegauge.kernels.triton.inspect.allowances import ALLOWED

# Every allowance there has ever been, with its first value. Nothing is added here.
FIRST = {
    ("wait to load", "product"): 266, ("wait to load", "experts_up"): 343, ("wait to load", "experts_down"): 156,
    ("wait to load", "attention"): 128, ("wait to load", "plain"): 128, ("wait to load", "group"): 80,
    ("wait to load", "state"): 80, ("serial loads behind the atomic", "product"): 6,
    ("serial loads behind the atomic", "experts_up"): 13, ("serial loads behind the atomic", "experts_down"): 12,
    ("serial loads behind the atomic", "attention"): 6, ("stack of a single token's kernel", "experts_up"): 32,
    ("stack of a single token's kernel", "experts_down"): 32,
}  # fmt: skip

LOOP = [
    ".L_x_1:", "LDG.E.EF.128 R28, desc[UR20][R14.64]", "HMMA.16816.F32.BF16 R4, R8, R12, R4",
    *["LOP3.LUT R9, R9, R10, RZ, 0xc0, !PT"] * 4, "@P0 BRA `(.L_x_1)",
]  # fmt: skip


def sass(*lines: str) -> machine_code.Listing:
    """A listing as nvdisasm prints it, each instruction two words of code with a stall count of 2."""
    text, at = "", 0
    for line in lines:
        if line.startswith(".L"):
            text += f"{line}\n"
            continue
        text += f"        /*{at:04x}*/                   {line} ;   /* 0x{1:016x} */\n{'':60}/* 0x{2 << 41:016x} */\n"
        at += 16
    return machine_code.parse(text)


def ptx(*lines: str) -> str:
    head = [f"\tld.param.b64 \t%rd{n}, [k_param_{n}];" for n in range(3)]
    return ".visible .entry k(\n\t.param .u64 k_param_0\n)\n{\n" + "\n".join([*head, *lines, "\tret;", "}"])


NAMES = ["w_pool", "x", "slots"]
EARLY = "\tld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd9 + 0 ];"
WAITS = "\tgriddepcontrol.wait;"


def test_only_weights_scales_and_named_tables_are_read_before_the_wait():
    good = ptx("\tmul.wide.u32 %rd8, %r5, 4;", "\tadd.s64 %rd9, %rd0, %rd8;", EARLY, WAITS,
               "\tadd.s64 %rd10, %rd1, %rd8;", EARLY.replace("rd9", "rd10"))  # fmt: skip
    assert rules.early_reads(good, NAMES) == {"w_pool"}
    broken = ptx("\tadd.s64 %rd9, %rd1, 16;", EARLY, WAITS)
    assert rules.early_reads(broken, NAMES) == {"x"}
    assert [one.detail for one in judge(early={"w_pool", "x"})] == ["x"]
    assert not judge(early={"w_pool", "s_pool"})
    assert judge(early={"slots"})
    assert not judge("experts_down", early={"slots"})


def test_every_way_to_the_wait_is_followed():
    """One branch waits, the other reads first; where both waited the read is behind."""
    one = ptx("\tadd.s64 %rd9, %rd1, 16;", "\t@%p1 bra \t$L1;", WAITS, "$L1:", EARLY, WAITS)
    assert rules.early_reads(one, NAMES) == {"x"}
    both = ptx(
        "\tadd.s64 %rd9, %rd1, 16;", "\t@%p1 bra \t$L1;", WAITS, "\tbra.uni \t$L2;", "$L1:", WAITS, "$L2:", EARLY
    )
    assert rules.early_reads(both, NAMES) == set()


def test_nothing_is_written_before_the_wait():
    stored = ptx("\t@%p1 st.global.b32 [ %rd1 + 0 ], { %r1 };", WAITS)
    assert rules.early_reads(stored, NAMES) == {"store"}
    added = ptx("\t@%p1 atom.global.gpu.release.add.u32 %r1, [ %rd2 + 0 ], %r2;", WAITS)
    assert rules.early_reads(added, NAMES) == {"store"}


def judge(kernel="kernel", code=None, early=(), stack=0, single=True, loops=()):
    return rules.judge(kernel, code or sass("EXIT"), set(early), stack, single, loops)


@pytest.mark.parametrize(("between", "broken"), [(58, False), (59, False), (60, True)])
def test_sixty_instructions_from_the_wait_to_the_first_load(between, broken):
    code = sass(
        "IMAD.MOV R1, RZ, RZ, R2", "ACQBULK", *["IMAD.MOV R1, RZ, RZ, R2"] * between, "LDG.E R4, desc[UR4][R2.64]"
    )
    assert rules.wait_to_load(code) == between + 1
    assert [one.rule for one in judge(code=code)] == (["wait to load"] if broken else [])


def test_a_wait_that_leads_nowhere_is_near_enough():
    assert (
        rules.wait_to_load(sass("@P0 BRA `(.L_x_0)", "ACQBULK", "EXIT", ".L_x_0:", "LDG.E R4, desc[UR4][R2.64]")) == 0
    )


LOADS = ("LDG.E.STRONG.SYS R10, desc[UR4][R2.64]", "LDG.E.STRONG.SYS R11, desc[UR4][R2.64+0x4]")
ADDED = "ATOMG.E.ADD.STRONG.GPU PT, R7, desc[UR4][R4.64], R7"


def test_two_serial_loads_behind_the_atomic():
    together = sass(ADDED, *LOADS, "FADD R12, R10, R11", "LDG.E R13, desc[UR4][R6.64]", "FADD R14, R12, R13", "EXIT")
    assert rules.serial_behind_atomic(together) == 2
    third = sass(ADDED, *LOADS, "FADD R12, R10, R11", "LDG.E R13, desc[UR4][R6.64]", "FADD R14, R12, R13",
                 "LDG.E R15, desc[UR4][R8.64]", "FADD R14, R14, R15", "EXIT")  # fmt: skip
    assert [str(one) for one in judge(code=third)] == ["serial loads behind the atomic: 3, at most 2"]
    before = sass("LDG.E R13, desc[UR4][R6.64]", "LDG.E R15, desc[UR4][R8.64]", ADDED, *LOADS, "FADD R12, R10, R11",
                  "FADD R14, R12, R13", "FADD R14, R14, R15", "EXIT")  # fmt: skip
    assert rules.serial_behind_atomic(before) == 1


def test_an_address_that_was_loaded_makes_the_next_load_wait():
    code = sass(ADDED, "LDG.E.64 R2, desc[UR4][R8.64]", "LDG.E R4, desc[UR4][R2.64]", "IADD3 R1, R4, R4, RZ")
    assert rules.serial_behind_atomic(code) == 2


@pytest.mark.parametrize(("weights", "broken"), [(4.0, False), (3.0, True)])
def test_each_pipe_has_its_own_limit(weights, broken):
    """Four logic operations at 64 lanes, half of what a budget of 2 instructions a weight is counted in."""
    code = sass(*LOOP)
    (loop,) = code.weight_loops
    found = judge(code=code, loops=[(loop, weights, 2.0)])
    assert [(one.rule, one.detail) for one in found] == ([("share of a pipe", "alu")] if broken else [])
    assert rules.pipe_excess(code.text[slice(*loop)], weights, 2.0) == (round(4 / weights / 1.0, 2), "alu")


def test_no_stack_in_a_single_tokens_kernel():
    assert [one.rule for one in judge(stack=8)] == ["stack of a single token's kernel"]
    assert not judge(stack=8, single=False)


def test_what_is_allowed_for_now_is_no_fault_and_only_shrinks():
    for (rule, kernel), value in ALLOWED.items():
        assert value <= FIRST[rule, kernel], "an allowance grew, or is new"
    one = rules.Broken("wait to load", 70, 60, 80)
    assert not one.fault
    assert rules.Broken("wait to load", 81, 60, 80).fault


def test_stalls_and_ways_are_read_off_the_codes():
    code = sass("IMAD.MOV R1, RZ, RZ, R2", "LDG.E.EF.128 R28, desc[UR20][R14.64]", *LOOP, "STG.E desc[UR4][R6.64], R4",
                ADDED, *LOADS, "FADD R12, R10, R11", "STG.E desc[UR4][R6.64], R12", "EXIT")  # fmt: skip
    way = machine_code.way(code)
    assert (way.head, way.tail, way.arrives, way.finish_loads, way.waits_first) == (2, 2, 1, 1, False)
    assert code.cycles(range(len(code.text))) == 2 * len(code.text)
    late = sass("ACQBULK", "IMAD.MOV R1, RZ, RZ, R2", "LDG.E.EF.128 R28, desc[UR20][R14.64]", *LOOP, "EXIT")
    assert (machine_code.way(late).waits_first, machine_code.way(late).wait_cycles) == (True, 4)
