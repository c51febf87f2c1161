"""Claims: every one has a verdict that follows from limits a reader can check."""

from __future__ import annotations

import pytest

from moegauge.errors import UnknownNameError
from moegauge.estimator.batching import price_list
from moegauge.estimator.closed.claims import RANGES, Verdict, adjudicate, ledger, servers


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {v.id: v for v in adjudicate()}


def test_every_claim_has_a_region_or_a_nearest_miss(verdicts: dict[str, Verdict]) -> None:
    assert len(verdicts) == len(ledger()) == len({c["id"] for c in ledger()})
    for verdict in verdicts.values():
        assert verdict.possible == bool(verdict.region)
        assert verdict.possible == (verdict.nearest_miss is None)
        if verdict.nearest_miss is not None:
            assert all(factor > 1 for factor in verdict.nearest_miss["broken"].values())


def test_regions_stay_in_their_ranges_and_in_the_claim(verdicts: dict[str, Verdict]) -> None:
    for claim in ledger():
        region = verdicts[claim["id"]].region
        for name in ("active", "total"):
            if name in claim and region:
                low, high = region[name]
                assert claim[name][0] * 0.999 <= low <= high <= claim[name][1] * 1.001
        for name in ("batch", "speculation", "layers", "replica"):
            if name in region:
                assert RANGES[name][0] <= region[name][0] <= region[name][1] <= RANGES[name][1]


def test_four_bits_of_2_2_trillion_leave_no_400_gb_on_eight_b200(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["gpt-5.4-2.2t-110b"]
    # 2.2e12 x 0.56 bytes (NVFP4 with its scales) = 1,232 GB; 1,440 GB less 400 GB is 1,040 GB.
    assert not verdict.possible
    assert verdict.nearest_miss is not None
    assert verdict.nearest_miss["broken"]["memory"] == pytest.approx(1232 / 1040)


def test_an_open_model_below_three_per_cent(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["sparsity-not-below-3-percent"]
    assert verdict.nearest_miss is not None
    assert (verdict.nearest_miss["model"], verdict.nearest_miss["share"]) == ("kimi-k2", 8 / 384)


def test_a_small_active_set_needs_a_large_batch(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["opus-active-17b"].consistent < 0.2 * verdicts["opus-active-100b"].consistent
    assert verdicts["opus-active-17b"].region["batch"][0] > 20


def test_claims_without_an_observed_speed_say_so(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["mythos-10t"].limits == ("sparsity", "memory")
    assert "no usable speed" in verdicts["mythos-10t"].note
    assert "says little" in verdicts["gpt-4-1.6-1.8t"].note


def test_same_seed_same_verdict() -> None:
    assert adjudicate("opus-1t-32b")[0].to_json() == adjudicate("opus-1t-32b")[0].to_json()
    with pytest.raises(UnknownNameError, match="opus-1t-32b"):
        adjudicate("opus-1t-23b")


def test_servers() -> None:
    table = {s.name: s for s in servers()}
    assert table["8 x B200"].memory == 1440e9
    assert table["Maia 100 server"].memory == 256e9


def test_no_server_reads_faster_than_its_memory(verdicts: dict[str, Verdict]) -> None:
    """A 4 x 1.8 TB/s server at 124 tokens/s reads 58 GB a step without speculation, 174 GB at three tokens a step."""
    region = verdicts["gpt-4o-200-300b"].region
    assert "bandwidth" in verdicts["gpt-4o-200-300b"].limits
    assert region["active"][0] < 60e9
    # Batches that read most of 200 B parameters and their caches every 8 ms are out.
    assert region["batch"][1] < 150


def test_stated_ratios(verdicts: dict[str, Verdict]) -> None:
    faster = verdicts["opus-4.5-3x-faster"].nearest_miss
    assert faster is not None
    assert faster["broken"]["speed"] == pytest.approx(3 * 23 / 40)
    assert verdicts["opus-1.5x-sonnet-4.6"].region["floor_share_needed"] == pytest.approx(
        (1.5 / 51 - 1 / 43) / 0.5 * 51
    )
    assert not verdicts["opus-1.5x-sonnet-4.5"].possible


def test_the_price_rule_lacks_two_makers(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["price-rule"]
    assert not verdict.decided
    assert verdict.region["no_sourced_price"] == ["Qwen", "GLM"]
    assert verdict.region["cost_dollars_per_million"] == [4.5, 6.75]  # 2 and 3 times Kimi's 2.25
    assert verdict.region["margin"] == [pytest.approx(1 - 6.75 / 25), pytest.approx(1 - 4.5 / 25)]


def test_a_provider_against_its_measured_speed(verdicts: dict[str, Verdict]) -> None:
    miss = verdicts["bedrock-120"].nearest_miss
    assert miss is not None
    assert miss["broken"]["speed"] == pytest.approx(120 / 46.2)
    assert miss["tokens_per_s"] == 46.2
    third = verdicts["bedrock-3x-vertex"].nearest_miss
    assert third is not None
    assert third["observed"] == pytest.approx(46.2 / 40)
    assert not verdicts["bedrock-opus-as-gpt-oss-120b"].decided


def test_what_the_law_says_of_scale_devices_and_drafts(verdicts: dict[str, Verdict]) -> None:
    scaled, boost, stages = (
        verdicts[name].nearest_miss
        for name in ("10x-larger-10x-slower", "same-boost", "layers-over-devices-speed-a-stream")
    )
    assert scaled is not None
    assert 1 < scaled["slower"] < 4
    assert boost is not None
    assert max(boost["gain"].values()) > 1.1 * min(boost["gain"].values())
    assert stages is not None
    assert stages["gain"] < 1 < stages["gain_of_tensor_parallelism"]
    low, high = verdicts["speculation-doubles"].region["gain"]
    assert low < 2 < high


def test_four_bits_of_a_trillion_are_560_gb(verdicts: dict[str, Verdict]) -> None:
    miss = verdicts["1t-at-4-bits-in-256-gb"].nearest_miss
    assert miss is not None
    assert miss["broken"]["memory"] == pytest.approx(560 / 256)


def test_open_models_that_a_claim_overlooks(verdicts: dict[str, Verdict]) -> None:
    miss = verdicts["no-respectable-model-below-3-percent"].nearest_miss
    assert miss is not None
    assert (miss["model"], miss["share"]) == ("Kimi K3", 16 / 896)


def test_a_claim_is_held_to_a_server_precision_and_price_of_ones_own() -> None:
    ours = adjudicate("gpt-4-1.6-1.8t")[0]
    theirs = adjudicate("gpt-4-1.6-1.8t", own={"server": "8 x H200", "precision": "fp8"})[0]
    assert ours.possible
    assert theirs.nearest_miss is not None
    assert theirs.nearest_miss["server"] == "8 x H200"
    assert theirs.nearest_miss["broken"]["memory"] == pytest.approx(1.6e12 / (1128e9 / 2), rel=0.01)
    dear = adjudicate("opus-5t", own={"dollars_per_device_hour": 250.0})[0]
    assert dear.consistent < adjudicate("opus-5t")[0].consistent
    with pytest.raises(UnknownNameError, match="8 x H100"):
        adjudicate("opus-5t", own={"server": "8 x H1000"})


def test_prices_have_a_date_and_a_source_or_none() -> None:
    for price in price_list():
        assert price.source
        assert (price.output is None) == (price.source == "no sourced price")
        assert bool(price.date) == (price.output is not None)
    assert {"DeepSeek", "Qwen", "Kimi", "GLM"} <= {p.maker for p in price_list()}
