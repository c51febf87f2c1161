"""A step's launches as one source and a table; how many programs are resident. No GPU, no launch."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("triton")

import torch

from moegauge.errors import DeviceError
from moegauge.kernels.triton.device import attention_narrow, experts_down, experts_up, plain, prepare, product, route
from moegauge.kernels.triton.launching import assembly
from moegauge.kernels.triton.launching.launch import PERSISTENT_REGISTERS, PERSISTENT_WARPS, Launch
from moegauge.kernels.triton.launching.residency import resident

X = torch.zeros(64)


def state(x=X, elements=6, out=X, block=128):
    arguments = {
        "pool": X, "x": x, "out": out, "elements": elements, "x_width": 3, "x_stride": 3, "out_width": 2,
        "out_stride": 2,
    }  # fmt: skip
    return Launch(prepare.state, (1, 5), arguments, {"BLOCK": block})


def embed(w=1, s=2):
    arguments = {"w_pool": X, "s_pool": X, "t_pool": X, "out": X, "w": w, "s": s, "t": s, "columns": 8, "out_stride": 8}
    return Launch(prepare.embed, (2, 3, 4), arguments, {"FORMAT": "bf16", "BLOCK": 512})


def test_launches_of_one_kernel_and_the_same_constants_are_one_class():
    made = assembly.assemble([state(), embed(), state(elements=7), state(block=64)])
    assert [record[0] for record in made.records] == [0, 1, 0, 2]
    assert [record[1:4] for record in made.records] == [[1, 5, 1], [2, 3, 4], [1, 5, 1], [1, 5, 1]]
    assert [constants["BLOCK"] for _, constants in made.classes] == [128, 512, 64]


def test_the_table_holds_only_what_the_launches_of_a_class_differ_in():
    made = assembly.assemble([state(elements=6), state(elements=7)])
    assert [record[4:6] for record in made.records] == [[6, 0], [7, 0]]
    assert "tl.full((), 3, tl.int32)" in made.source  # x_width, of both
    assert [p.data_ptr() for p in made.parameters] == [X.data_ptr()]
    assert made.signature[2:3] == (("p0", "*fp32", True),)


def test_a_tensor_the_launches_differ_in_is_an_address_of_known_alignment():
    other = torch.zeros(64)
    made = assembly.assemble([state(x=X), state(x=other)])
    assert [record[4] for record in made.records] == [X.data_ptr(), other.data_ptr()]
    assert "tl.multiple_of(tl.load(record + 4).to(tl.pointer_type(tl.float32)), 16)" in made.source
    odd = assembly.assemble([state(x=X), state(x=other[1:])])
    assert "multiple_of" not in odd.source
    odd = assembly.assemble([state(x=other[1:])])
    assert ("p1", "*fp32", False) in odd.signature


def test_places_in_the_arena_stay_in_the_table_and_equal_ones_share_a_word():
    made = assembly.assemble([embed(5, 9)])
    assert made.records[0][4:7] == [5, 9, 0]  # t is s in every launch
    assert "t=s_0" in made.source


def test_numbers_too_large_for_32_bits_stay_64_wide():
    made = assembly.assemble([state(elements=6), state(elements=2**31)])
    assert "elements_0 = tl.load(record + 4).to(tl.int64)" in made.source


def test_every_name_kept_out_of_the_source_is_a_parameter_of_a_kernel():
    modules = (attention_narrow, experts_down, experts_up, plain, prepare, product, route)
    names = {
        name
        for module in modules
        for kernel in vars(module).values()
        if hasattr(kernel, "fn") and "PDL" in inspect.signature(kernel.fn).parameters
        for name in inspect.signature(kernel.fn).parameters
    }
    unused = {"bias3", "down_t", "shared_t"} - names
    assert assembly.VARYING - names <= unused | {"bias3"}
    # Wherever weights, scales or tensor scales lie, another lap has them elsewhere.
    places = {n for n in names if n.endswith(("_w", "_s", "_t")) or (len(n) == 2 and n[0] in "wst" and n[1].isdigit())}
    assert places <= assembly.VARYING


def test_a_step_of_another_lap_has_the_same_source():
    assert assembly.assemble([embed(5, 9)]).source == assembly.assemble([embed(6, 10)]).source


def test_residency_follows_registers_memory_and_the_limit_of_programs():
    h100 = (9, 0)
    assert resident(128, 1024, 1, 228 << 10, h100) == 16
    assert resident(PERSISTENT_REGISTERS, 1024, 1, 228 << 10, h100) == PERSISTENT_WARPS
    assert resident(169, 1024, 1, 228 << 10, h100) == 8  # three warps of 176 no longer fit a quarter
    assert resident(32, 0, 1, 228 << 10, h100) == 32
    assert resident(32, 0, 1, 228 << 10, (8, 6)) == 16
    assert resident(32, 0, 1, 228 << 10, (11, 0)) == 16  # one nobody has told us of
    assert resident(64, 50 << 10, 1, 100 << 10, h100) == 1
    assert resident(64, 0, 4, 228 << 10, h100) == 8


def test_a_kernel_no_multiprocessor_holds_is_refused():
    with pytest.raises(DeviceError, match="no multiprocessor holds one") as error:
        resident(64, 100 << 10, 1, 100 << 10, (9, 0))
    assert "'graph'" in error.value.advice
