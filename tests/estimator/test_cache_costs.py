"""Seconds in cache against sums by hand, and tokens per expert against routing drawn at random."""

from __future__ import annotations

import made_up
import numpy as np
import pytest

from moegauge import models
from moegauge.estimator.cache_costs import CacheCosts
from moegauge.estimator.traffic import format_macs, format_passes
from moegauge.formats import FORMATS
from moegauge.record import SCHEMA, AttentionInCache, InCache, Record


def record(*, products: dict[str, tuple[float, float]], attention: list[AttentionInCache] | None = None) -> Record:
    rows = [
        InCache(format=name, isa="made up", threads=2, gb_per_s_per_core=one, tile=4, tile_gb_per_s_per_core=four)
        for name, (one, four) in products.items()
    ]
    return Record(schema=SCHEMA, created="", machine={}, cases=[], in_cache=rows, attention_in_cache=attention or [])


def test_one_token_takes_its_bytes_over_the_rate_of_all_cores() -> None:
    shape = models.load("gpt-oss-20b").cast("fp8")
    rates = {"fp8": (20.0, 8.0), "bf16": (40.0, 16.0)}
    ((name, seconds),) = CacheCosts(record(products=rates), threads=2).measured(shape, batch=1, context=0)
    sizes = {f: count * FORMATS[f].bytes_per_parameter for f, count in format_macs(shape).items()}
    assert set(sizes) <= set(rates)
    assert name == "products"
    assert seconds == pytest.approx(sum(size / (2e9 * rates[f][0]) for f, size in sizes.items()))


def test_four_tokens_of_a_dense_model_take_what_four_took() -> None:
    shape = made_up.model([made_up.dense_layer(made_up.gqa(64, 4, 2, 16), 128, 64)] * 2, 64)
    macs = format_macs(shape)
    (name,) = macs
    costs = CacheCosts(record(products={name: (20.0, 8.0)}), threads=1)
    size = macs[name] * FORMATS[name].bytes_per_parameter
    for batch, rate in ((4, 8e9), (8, 4e9)):
        ((_, seconds),) = costs.measured(shape, batch=batch, context=0)
        assert seconds == pytest.approx(size / rate)


def test_a_format_that_was_not_measured_leaves_products_to_be_fitted() -> None:
    native = models.load("gpt-oss-20b")  # mxfp4 experts, the rest bf16
    assert CacheCosts(record(products={"mxfp4": (20.0, 8.0)}), threads=2).measured(native, batch=1, context=0) == ()
    assert CacheCosts(record(products={}), threads=2).measured(native, batch=1, context=4096) == ()


def attention(kind: str, head_dim: int, ps: float) -> AttentionInCache:
    heads = {"kind": kind, "heads": 64, "kv_heads": 8, "head_dim": head_dim, "value_dim": head_dim}
    return AttentionInCache(**heads, kv_format="bf16", isa="made up", threads=2, ps_per_mac=ps)


def test_attention_costs_what_its_own_geometry_did() -> None:
    shape = models.load("gpt-oss-20b")  # 64 heads of 64 on 8; every other layer sees 128 tokens
    seen = [attention("gqa", 64, 40.0), attention("gqa", 128, 20.0), attention("mla", 64, 7.0)]
    found = CacheCosts(record(products={}, attention=seen), threads=2).measured(shape, batch=3, context=4096)
    macs = 12 * 64 * 128 * (4096 + 128)
    assert found == (("attention", pytest.approx(3 * macs * 40e-12 / 2)),)
    others = CacheCosts(record(products={}, attention=seen[1:]), threads=2)
    assert others.measured(shape, batch=3, context=4096)[0][1] == pytest.approx(3 * macs * 20e-12 / 2)


@pytest.mark.parametrize(("batch", "tile"), [(1, 4), (9, 4), (32, 4), (32, 1)])
def test_weights_are_decoded_once_for_a_tile_of_tokens(batch: int, tile: int) -> None:
    shape = models.load("qwen3-30b-a3b").cast("fp8")
    pool = shape.layers[0].experts[0]
    rng = np.random.default_rng(0)
    draws = [
        np.bincount(
            np.concatenate([rng.permutation(pool.count)[: pool.top_k] for _ in range(batch)]), minlength=pool.count
        )
        for _ in range(300)
    ]
    per_layer = np.mean([np.ceil(tokens / tile).sum() for tokens in draws])
    experts = sum(m.parameters for m in pool.matrices)
    dense = format_macs(shape)["fp8"] - len(shape.layers) * pool.top_k * experts
    expected = dense * -(-batch // tile) + len(shape.layers) * per_layer * experts
    assert format_passes(shape, batch=batch, tile=tile)["fp8"] == pytest.approx(expected, rel=0.02)
