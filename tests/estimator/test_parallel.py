"""Tensor, expert and pipeline parallelism, drafts, and whether a model fits."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from moegauge import hardware, models
from moegauge.errors import UsageError
from moegauge.estimator import predict
from moegauge.estimator.parallel import Parallel, cache_parts, fits, imbalance, most_on_one
from moegauge.estimator.predict import Draft
from moegauge.estimator.traffic import step_traffic
from moegauge.shape import ModelShape

B200 = hardware.device("NVIDIA B200 SXM")


def test_parse() -> None:
    assert Parallel.parse("tp=8,ep=4,pp=2") == Parallel.parse(" pp=2, tp=8, ep=4") == Parallel(8, 4, 2)
    assert Parallel.parse("tp=8,pp=2").world == 16
    assert str(Parallel(8, 1, 2)) == "tp=8, pp=2"
    for text in ("", "tp", "tp=", "tp=-1", "tp=8;ep=8", "tp=1.5", "tp=99999999999", "tp=²"):
        with pytest.raises(UsageError):
            Parallel.parse(text)


@pytest.mark.parametrize(("experts", "chosen", "parts"), [(8, 2, 2), (8, 3, 4), (12, 5, 3), (6, 6, 2), (9, 1, 3)])
def test_the_fullest_part_is_counted_over_every_choice(experts: int, chosen: int, parts: int) -> None:
    each = experts // parts
    most = [max(sum(e // each == p for e in c) for p in range(parts)) for c in combinations(range(experts), chosen)]
    assert most_on_one(experts, chosen, parts) == pytest.approx(sum(most) / len(most))


def test_large_pools_stay_finite() -> None:
    assert most_on_one(896, 16, 8) > 2
    assert most_on_one(384, 350, 64) == pytest.approx(6, abs=0.01)
    assert most_on_one(256, 256, 8) == 32


def test_experts_kept_whole_wait_for_the_fullest_device() -> None:
    shape = models.load("deepseek-v3")
    assert imbalance(shape, 1, 1) == 1
    # Eight of 256 experts over eight devices: the fullest holds 2.6 of them on average, not 1.
    assert 2.3 < imbalance(shape, 1, 8) < 3
    assert imbalance(shape, 64, 8) < 1.3
    split = predict.by_device(shape, B200, stack="SGLang", parallel=Parallel(8))
    whole = predict.by_device(shape, B200, stack="SGLang", parallel=Parallel(8, ep=8))
    assert whole.seconds["weights"] > 1.5 * split.seconds["weights"]
    assert whole.seconds["communication"] == split.seconds["communication"]


def test_layer_parallelism_serves_more_streams_and_none_faster() -> None:
    shape = models.load("deepseek-v3")
    one = predict.by_device(shape, B200, stack="SGLang", parallel=Parallel(8))
    two = predict.by_device(shape, B200, stack="SGLang", parallel=Parallel(8, pp=2))
    assert 0.99 * one.tokens_per_s < two.tokens_per_s < one.tokens_per_s
    assert two.seconds["communication"] > two.all_reduce == one.all_reduce
    assert two.to_json()["aggregate_tokens_per_s"] == pytest.approx(2 * two.tokens_per_s)
    hand = predict.by_hand(shape, bandwidth_gb_per_s=4000, parallel=Parallel(8, pp=2))
    assert hand.seconds["communication"] > hand.all_reduce > 0


def test_tensor_parallelism_speeds_a_stream_until_the_all_reduce() -> None:
    shape = models.load("gpt-oss-20b")
    speeds = {n: predict.by_device(shape, B200, stack="SGLang", parallel=Parallel(n)) for n in (1, 2, 64)}
    assert speeds[64].seconds["weights"] < speeds[1].seconds["weights"] / 50
    assert speeds[64].tokens_per_s < speeds[2].tokens_per_s
    assert speeds[1].all_reduce == 0
    document = speeds[2].to_json()["terms_ms"]
    assert document["communication"] == pytest.approx(document["all_reduce"])


def test_a_draft_multiplies_tokens_and_pays_for_it(moe: ModelShape) -> None:
    plain = predict.by_hand(moe, bandwidth_gb_per_s=1.0, floor_us=5.0)
    useless = predict.by_hand(moe, bandwidth_gb_per_s=1.0, floor_us=5.0, draft=Draft(3, 0.0))
    perfect = predict.by_hand(moe, bandwidth_gb_per_s=1.0, floor_us=5.0, draft=Draft(3, 1.0))
    assert useless.tokens_per_s < plain.tokens_per_s
    assert perfect.tokens_per_s == pytest.approx(4 * useless.tokens_per_s)
    # The step that verifies reads the experts of four tokens and the cache of one stream.
    assert perfect.seconds["weights"] == pytest.approx(step_traffic(moe, batch=4).weight_bytes / 1e9)
    far = predict.by_hand(moe, bandwidth_gb_per_s=1.0, context=1000, draft=Draft(3, 1.0))
    assert far.seconds["kv"] == pytest.approx(step_traffic(moe, context=1000).kv_bytes / 1e9)
    assert plain.seconds["draft"] == 0
    assert perfect.seconds["draft"] > 0
    head = moe.head_matrix.bytes
    assert perfect.draft_bytes > 3 * head


def test_eight_b200_hold_deepseek_and_two_do_not() -> None:
    shape = models.load("deepseek-v3")
    room = fits(shape, B200, Parallel(8))
    # 673 GB of weights; 180 GB a device. One latent of 576 elements a layer is held by every device: 70 kB a token.
    assert room.devices == 4
    assert room.kv_tokens == int((180e9 - room.weight_bytes / 8) // (576 * 61 * 2))
    assert "fit: 8 devices have 1440 GB, 4 would do" in room.sentence(8)
    none = fits(shape, B200, Parallel(2))
    assert none.kv_tokens == 0
    assert none.sentence(2) == "weights 673 GB do not fit: 2 devices have 360 GB, 4 would do"
    assert fits(shape, B200, Parallel(8), "fp8").kv_tokens == pytest.approx(2 * (room.kv_tokens or 0), abs=2)
    assert "not known" in fits(shape, None, Parallel(1)).sentence(1)


def test_caches_split_by_heads() -> None:
    glm = models.load("glm-4.7").layers[0].attention  # eight key/value heads
    assert [cache_parts(glm, tp) for tp in (1, 4, 8, 16)] == [1, 4, 8, 8]
    assert cache_parts(models.load("deepseek-v3").layers[0].attention, 8) == 1
    shape = models.load("glm-4.7").cast("fp8")
    eight, stages = (fits(shape, B200, p).kv_tokens for p in (Parallel(8), Parallel(4, pp=2)))
    assert eight is not None
    assert stages == pytest.approx(eight, rel=1e-6)


def test_drafted_speeds_that_were_published() -> None:
    """Gains of rows whose acceptance is stated (data/throughput_speculative.csv), device and baseline beside them."""
    shape = models.load("deepseek-v3")
    plain = predict.by_device(shape, B200, stack="SGLang", parallel=Parallel(8))
    drafted = predict.by_device(shape, B200, stack="SGLang", parallel=Parallel(8), draft=Draft(3, 0.75))
    # MTP of three and four tokens on Blackwell: 133 -> 304 and 130 -> 307 tokens/s (vLLM recipes), x2.3.
    assert math.log(drafted.tokens_per_s / plain.tokens_per_s) == pytest.approx(math.log(2.3), abs=0.25)
