"""Claims: every one has a verdict that follows from limits a reader can check."""

from __future__ import annotations

import pytest

from moegauge.errors import UnknownNameError
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
