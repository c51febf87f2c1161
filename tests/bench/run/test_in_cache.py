"""Products in cache: what is measured, by a backend that really multiplies and whose clock is made up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moegauge import models
from moegauge.bench.run import in_cache, session
from moegauge.bench.run.in_cache import attention_in_cache, measure_in_cache
from moegauge.errors import NumericsError
from moegauge.kernels.backend import Arena, Runnable
from moegauge.kernels.numpy_backend import NumpyBackend, NumpyRunnable
from moegauge.kernels.program import Program
from moegauge.record import InCache


class Timed(NumpyBackend):
    """numpy in float64 whose every run takes 1 ms, each third one 5 ms."""

    isa = "made up"
    threads = 2

    def __init__(self) -> None:
        super().__init__("reference")
        self.last_level_cache = 1 << 16
        self.took = itertools.cycle((1e-3, 1e-3, 5e-3))

    def time(self, function: Callable[[], None]) -> float:
        function()
        return next(self.took)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_cache, "SAMPLE", 1 << 19)


def test_a_rate_is_of_the_undisturbed_samples_and_of_one_core() -> None:
    bf16, mxfp4 = in_cache.in_cache(Timed(), ["bf16", "mxfp4", "bf16", "no such format"])
    assert (bf16.format, mxfp4.format) == ("bf16", "mxfp4")
    assert (bf16.isa, bf16.threads, bf16.tile) == ("made up", 2, 4)
    # 16 rows of 4096 bf16 are more than a quarter of the made-up cache: one group of them, four times in 512 KiB.
    assert bf16.gb_per_s_per_core == pytest.approx(4 * 16 * 4096 * 2 / 1e-3 / 2 / 1e9)
    assert bf16.tile_gb_per_s_per_core == pytest.approx(bf16.gb_per_s_per_core)
    assert bf16.interval_gb_per_s_per_core == pytest.approx((bf16.gb_per_s_per_core, bf16.gb_per_s_per_core))


def test_attention_is_measured_once_for_each_geometry() -> None:
    shapes = [models.load(name) for name in ("gpt-oss-20b", "gpt-oss-120b", "deepseek-v3")]
    gqa, mla = attention_in_cache(Timed(), shapes, "bf16")
    assert (gqa.kind, gqa.heads, gqa.kv_heads, gqa.head_dim) == ("gqa", 64, 8, 64)
    assert (mla.kind, mla.heads, mla.head_dim, mla.value_dim) == ("mla", 128, 576, 512)
    length = (1 << 14) // (2 * 8 * 64 * 2)
    assert gqa.ps_per_mac == pytest.approx(1e12 * 1e-3 * 2 / (64 * 128 * length))


def test_a_plan_says_what_is_measured() -> None:
    native = models.load("gpt-oss-20b")
    products, attention = measure_in_cache(Timed(), [(native, 0), (native.cast("fp8"), 0)], "bf16")
    assert {row.format for row in products} == {"bf16", "mxfp4", "fp8"}
    assert attention == []
    _, attention = measure_in_cache(Timed(), [(native, 4096)], "fp8")
    assert [row.kv_format for row in attention] == ["fp8"]


def test_a_wrong_product_has_no_time() -> None:
    class WrongRunnable(NumpyRunnable):
        def read(self, register: str) -> NDArray[np.float32]:
            values = super().read(register)
            return values * np.float32(1.5) if register == "y" else values

    class WrongBackend(Timed):
        def compile(self, program: Program, arena: Arena) -> Runnable:
            return WrongRunnable(program, arena, np.float64)

    with pytest.raises(NumericsError, match="in cache"):
        in_cache.in_cache(WrongBackend(), ["bf16"])


def test_a_backend_without_an_instruction_set_is_not_measured() -> None:
    assert in_cache.in_cache(NumpyBackend("reference"), ["bf16"]) == []
    assert attention_in_cache(NumpyBackend("reference"), [models.load("gpt-oss-20b")], "bf16") == []


def test_a_run_measures_its_plan_once(monkeypatch: pytest.MonkeyPatch, fakes: Any) -> None:
    device = fakes.FakeBackend()
    monkeypatch.setattr(session.devices, "get_backend", lambda *_, **__: device)
    row = InCache(format="fp8", isa="made up", gb_per_s_per_core=1.0)
    asked: list[list[tuple[str, int]]] = []

    def told(_: Any, points: Any, kv_format: str) -> Any:
        asked.append([(shape.layers[0].experts[0].matrices[0].format, context) for shape, context in points])
        return [row], []

    monkeypatch.setattr(session, "measure_in_cache", told)
    options = session.Options(kind="decode", device="cpu", models="gpt-oss-20b", formats="fp8", contexts="0,4096")
    run = session.Session(options)
    run._in_cache()
    run._in_cache()
    assert asked == [[("fp8", 0), ("fp8", 4096)]]
    assert run.record.in_cache == [row]
