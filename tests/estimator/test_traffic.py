"""Bytes of a step against sums made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moegauge import models
from moegauge.errors import UnknownNameError, UsageError
from moegauge.estimator import predict
from moegauge.estimator.additive import PARAMETERS
from moegauge.estimator.batching import Replica, curve, dollars_per_million, largest_batch, weight_bytes
from moegauge.estimator.parallel import Parallel, cached_bytes
from moegauge.estimator.traffic import coverage_factor, kernel_boundaries, step_traffic
from moegauge.shape import ModelShape

ATTENTION = (64 * 64 + 32 * 64 + 32 * 64 + 64 * 64) * 2
DENSE_MLP = 3 * 128 * 64 * 2
ROUTER = 8 * 64 * 2
EXPERT = 3 * 32 * 64 * 2
HEAD = 1000 * 64 * 2
NORMS = 2 * 256 + 128


def test_batch_one_by_hand(moe: ModelShape) -> None:
    traffic = step_traffic(moe)
    assert traffic.dense_bytes == 2 * ATTENTION + DENSE_MLP + ROUTER + HEAD + NORMS
    assert traffic.routed_bytes == pytest.approx(2 * EXPERT)
    assert traffic.embedding_bytes == 64 * 2
    assert traffic.kv_bytes == 0
    assert traffic.macs == (2 * ATTENTION + DENSE_MLP + ROUTER + HEAD) / 2 + 2 * EXPERT / 2


def test_a_batch_reads_distinct_experts(moe: ModelShape) -> None:
    traffic = step_traffic(moe, batch=3)
    # 8 experts, 2 a token: an expert is missed by all three tokens with probability (3/4)^3.
    distinct = 8 * (1 - 0.75**3)
    assert traffic.distinct_experts == pytest.approx(distinct)
    assert traffic.routed_bytes == pytest.approx(distinct * EXPERT)
    assert traffic.dense_bytes == step_traffic(moe).dense_bytes


def test_a_large_batch_reads_every_expert_once(moe: ModelShape) -> None:
    assert step_traffic(moe, batch=1000).routed_bytes == pytest.approx(8 * EXPERT)


def test_cache_bytes_by_hand(moe: ModelShape) -> None:
    assert step_traffic(moe, batch=3, context=100).kv_bytes == 2 * 64 * 100 * 3 * 2
    assert step_traffic(moe, batch=3, context=100, kv_format="fp8").kv_bytes == 2 * 64 * 100 * 3


def test_format_changes_quantised_roles_alone(moe: ModelShape) -> None:
    native, int8 = step_traffic(moe), step_traffic(moe.cast("int8"))
    # Half the bytes, and a float32 scale for each row.
    rows = 2 * (64 + 32 + 32 + 64) + (128 + 128 + 64)
    assert int8.dense_bytes - ROUTER - HEAD - NORMS == (native.dense_bytes - ROUTER - HEAD - NORMS) / 2 + 4 * rows


def test_kernels_are_layers_times_boundaries(moe: ModelShape) -> None:
    dense, routed = moe.layers
    assert kernel_boundaries(dense) == 3 + 2
    assert kernel_boundaries(routed) == 3 + 4
    assert step_traffic(moe).kernels == 5 + 7 + 2


@pytest.mark.parametrize("name", models.names())
def test_shipped_shapes_agree_with_their_own_count(name: str) -> None:
    shape = models.load(name)
    traffic = step_traffic(shape)
    # Without context, beside the weights is only the recurrent state of linear layers, read and written in float32.
    assert traffic.kv_bytes == 8 * sum(layer.attention.state_elements for layer in shape.layers)
    assert traffic.total_bytes - traffic.kv_bytes == pytest.approx(shape.bytes_per_token, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"batch": 0}, "batch"),
        ({"batch": 10**9}, "batch"),
        ({"context": -1}, "context"),
        ({"context": 10**12}, "context"),
    ],
)
def test_absurd_sizes_are_refused_by_name(moe: ModelShape, options: dict[str, int], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        step_traffic(moe, **options)  # type: ignore[arg-type]


def test_unknown_cache_format(moe: ModelShape) -> None:
    with pytest.raises(UnknownNameError, match="fp4"):
        step_traffic(moe, kv_format="fp4")


def test_coverage_factor_limits() -> None:
    assert coverage_factor(32, 1) == pytest.approx(1)
    assert coverage_factor(32, 1e6) == pytest.approx(32)
    assert coverage_factor(4, 2) == pytest.approx(4 * (1 - 0.75**2))
    assert coverage_factor(1, 50) == 1


def nothing_but_bytes() -> Replica:
    """Eight devices of 3 TB/s whose floors, formats and arithmetic cost nothing."""
    constants = np.where([name in ("floor", "hop", "batch", "token") for name in PARAMETERS], -40.0, 0.0)
    return Replica("bytes", 3e12, 8, None, constants)


def test_inversion_misleads_when_sparsities_differ(moe: ModelShape) -> None:
    place = nothing_but_bytes()
    same = curve(moe, moe, place)
    assert all(point.misled == pytest.approx(1) for point in same)
    kimi, mixtral = models.load("kimi-k2"), models.load("mixtral-8x7b")
    points = curve(kimi, mixtral, place, dollars_per_device_hour=2.0)
    assert points[0].tokens_per_s == pytest.approx(24e12 / step_traffic(kimi).weight_bytes, rel=0.001)
    folds = [p.misled for p in points]
    # 8 of 384 against 2 of 8: at batch 256 Kimi reads nearly all of 1 T parameters, Mixtral has long read all of its;
    # at batch 2 both still read nearly twice their experts.
    assert folds[0] == pytest.approx(1)
    assert folds[1] == pytest.approx(1, abs=0.05)
    assert folds[1:] == sorted(folds[1:])
    assert folds[-1] > 5
    costs = [p.dollars_per_million for p in points]
    assert costs == sorted(costs, reverse=True)


def test_the_curve_ends_where_caches_no_longer_fit(moe: ModelShape) -> None:
    each = step_traffic(moe, context=1000).kv_bytes
    room = Replica("box", 1e12, 1, weight_bytes(moe) + 37.5 * each, nothing_but_bytes().constants)
    points = curve(moe, moe, room, context=1000)
    assert [p.batch for p in points] == [1, 2, 4, 8, 16, 32, 37]
    assert points[-1].kv_share == pytest.approx(37 / 37.5)
    with pytest.raises(UsageError, match="no room for one cache"):
        curve(moe, moe, replace(room, memory=weight_bytes(moe) + 0.5 * each), context=1000)
    with pytest.raises(UsageError, match="Give more --devices"):
        curve(moe, moe, replace(room, memory=1.0), context=1000)


def test_cost_by_hand() -> None:
    # 8 devices at 2 $/h that make 1000 tokens/s: 16 $ for 3.6 M tokens.
    assert dollars_per_million(2.0, 8, 1000.0) == pytest.approx(16 / 3.6)
    with pytest.raises(UsageError, match="price"):
        dollars_per_million(0.0, 8, 1000.0)
    with pytest.raises(UsageError, match="speed"):
        dollars_per_million(1.0, 8, float("nan"))


def test_a_latent_cache_is_held_by_every_tensor_parallel_device() -> None:
    shape = models.load("deepseek-v3").cast("fp8")
    box = Replica("box", 8e12, 8, weight_bytes(shape) + 1e11, nothing_but_bytes().constants)
    one = step_traffic(shape, context=8000).kv_bytes
    copied = largest_batch(shape, box, context=8000)
    split = largest_batch(shape, replace(box, kv_cache="split"), context=8000)
    assert (copied, split) == (int(1e11 // (8 * one)), int(1e11 // one))
    assert box.held(shape, batch=3, context=8000, kv_format="bf16") == pytest.approx(3 * 8 * one)
    # Eight key/value heads are split by eight devices and held twice by sixteen.
    glm = models.load("glm-4.7")
    each = step_traffic(glm, context=100).kv_bytes
    assert [cached_bytes(glm, tp, batch=1, context=100) / each for tp in (1, 8, 16)] == pytest.approx([1, 1, 2])
    # A step reads the copies: eight times the cache in the same time of eight devices.
    short, long = (predict.by_hand(shape, bandwidth_gb_per_s=1000, context=8000, parallel=Parallel(n)) for n in (1, 8))
    assert long.seconds["kv"] == pytest.approx(short.seconds["kv"])
