"""The Triton backend's refusals and its memory of configurations; no GPU, no launch."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moegauge.errors import DeviceError, UnknownNameError
from moegauge.kernels.program import Program
from moegauge.kernels.triton.launching import tuning
from moegauge.kernels.triton.launching.signature import check

torch = pytest.importorskip("torch")


def test_an_absent_gpu_is_one_clear_line():
    from moegauge.kernels.triton.backend import TritonBackend

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceError) as error:
        TritonBackend()
    assert "\n" not in str(error.value)
    assert "--device cpu" in error.value.advice


def test_the_interpreter_must_be_switched_on(monkeypatch):
    from moegauge.kernels.triton.backend import TritonBackend

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(DeviceError, match="interpreter is off"):
        TritonBackend("cpu")


@pytest.fixture
def interpreted(monkeypatch):
    from moegauge.kernels.triton.backend import TritonBackend

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return TritonBackend("cpu")


def test_unknown_names_are_refused(interpreted):
    with pytest.raises(UnknownNameError, match="launch mode 'grapf'"):
        type(interpreted)("cpu", launch_mode="grapf")
    with pytest.raises(UnknownNameError, match="configuration"):
        type(interpreted)("cpu", configuration="broad")


def test_an_arena_of_another_backend_or_too_small_a_memory_is_refused(interpreted):
    with pytest.raises(DeviceError, match="arena is not on cpu"):
        interpreted.compile(Program("p", 1, {}, ()), object())
    with pytest.raises(DeviceError, match="needs"):
        interpreted.arena({"bf16.weight": 1 << 40})


def test_wrong_shapes_and_batches_are_refused_before_any_launch(interpreted):
    arena = interpreted.arena({"bf16.weight": 4096})
    with pytest.raises(DeviceError, match=r"no pool fp8\.weight"):
        interpreted.compile(Program("p", 1, {"x": 8}, (), {"fp8.weight": 1}), arena)
    with pytest.raises(DeviceError, match="batch 65"):
        interpreted.compile(Program("p", 65, {"x": 8}, ()), arena)
    runnable = interpreted.compile(Program("p", 2, {"x": 8}, ()), arena)
    with pytest.raises(DeviceError, match=r"register x: got \(1, 8\)"):
        runnable.write("x", np.zeros((1, 8), np.float32))
    with pytest.raises(IndexError, match=r"bf16\.weight"):
        arena.read("bf16.weight", 4000, 200)


def test_arguments_a_kernel_would_misread_are_named():
    good = torch.zeros(8, 8)
    check("k", {"out": good, "rows": 3}, "cpu")
    with pytest.raises(DeviceError, match=r"k: out is \*fp64|torch.float64"):
        check("k", {"out": good.double()}, "cpu")
    with pytest.raises(DeviceError, match="not contiguous"):
        check("k", {"out": good.t()}, "cpu")
    with pytest.raises(DeviceError, match="lies on cpu"):
        check("k", {"out": good}, "cuda")
    with pytest.raises(DeviceError, match="not a tensor"):
        check("k", {"out": 3}, "cpu")


def test_fp8_content_has_no_nan_in_either_order():
    from moegauge.kernels.triton.lowering import layout
    from moegauge.kernels.triton.lowering.arena import _block

    block = _block("fp8.weight", 0)
    assert not ((block & 0x7F) == 0x7F).any()
    read = layout.decode(block, "fp8", 16, block.size // 16)
    assert not ((read & 0x7F) == 0x7F).any()


def test_the_fastest_configuration_is_measured_once_and_remembered(tmp_path):
    file, calls = tmp_path / "a" / "b.json", []

    def seconds(name):
        calls.append(name)
        return {"deep": 3.0, "even": 1.0, "wide": 2.0}[name]

    assert tuning.choose("k", ["deep", "even", "wide"], seconds, file) == "even"
    assert tuning.choose("k", ["deep", "even", "wide"], seconds, file) == "even"
    assert calls == ["deep", "even", "wide"]
    assert json.loads(file.read_text()) == {"k": "even"}
    file.write_text("not JSON")
    assert tuning.choose("k", ["deep", "wide"], seconds, file) == "wide"
    file.write_text('{"k": "gone"}')
    assert tuning.choose("k", ["deep", "wide"], seconds, file) == "wide"


def test_a_cache_that_cannot_be_written_is_only_a_memory(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert tuning.choose("k", ["deep"], lambda _: 1.0, blocked / "below.json") == "deep"
