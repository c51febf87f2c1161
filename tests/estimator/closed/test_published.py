"""The published estimate, digit by digit as it was printed."""

from __future__ import annotations

from typing import Any

import pytest

from moegauge.estimator.closed.published import counted, opus_2026_03

# GB per token, FP8 + FP4 experts (B active) as printed in sections 2 to 4 of the post.
PRINTED = {
    "Opus 4.6": ((93.0, 104.7), (127.4, 154.0)),
    "Opus 4.5": ((100.0, 112.5), (137.0, 165.4)),
    "Opus 4.1": ((166.7, 187.5), (228.3, 275.7)),
    "Opus 4.0": ((173.9, 195.7), (238.2, 287.7)),
    "Sonnet 4.6": ((78.4, 88.2), (107.4, 129.8)),
    "Sonnet 4.5": ((97.6, 109.8), (133.7, 161.5)),
}


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return opus_2026_03()


def test_calibration(published: dict[str, Any]) -> None:
    rows = [(r["model"], r["active"], r["tokens_per_s"], r["bandwidth"]) for r in published["calibration"]]
    assert rows == [
        ("DeepSeek V3.1", 37_554_471_512, 117, 4_393_873_166_904),
        ("GLM-4.7", 33_632_266_144, 132, 4_439_459_131_008),
        ("Kimi K2 Thinking", 32_863_358_256, 187, 4_168_803_539_472),
    ]
    kimi = published["calibration"][2]
    assert (kimi["always_active"], kimi["routed_active"]) == (11_722_775_856, 21_140_582_400)
    assert kimi["bytes_per_token"] == 22_293_067_056


def test_inversion(published: dict[str, Any]) -> None:
    assert [m["model"] for m in published["models"]] == list(PRINTED)
    for row in published["models"]:
        sizes, mixed = PRINTED[row["model"]]
        assert tuple(round(v / 1e9, 1) for v in row["bytes_per_token"]) == sizes
        assert tuple(round(v / 1e9, 1) for v in row["active"]["fp8"]) == sizes
        assert tuple(round(v / 1e9, 1) for v in row["active"]["fp8_fp4"]) == mixed
    opus = published["models"][0]
    assert [round(v / 1e9, 1) for v in opus["active_fp8_fp4_at"]["0.73"]] == [127.4, 143.4]
    assert [round(v / 1e9, 1) for v in opus["active_fp8_fp4_at"]["0.68"]] == [136.8, 154.0]
    # 104.7 / 2 is 52.35, which the post prints as 52.4: it halves the rounded gigabytes.
    assert [f"{v / 1e9:.1f}" for v in opus["active"]["bf16"]] == ["46.5", "52.4"]


def test_totals(published: dict[str, Any]) -> None:
    total = {k: [round(v / 1e12, 2) for v in span] for k, span in published["models"][0]["total"].items()}
    assert total == {"glm-4.7": [1.05, 1.38], "deepseek-v3": [1.66, 2.19], "kimi-k2": [2.47, 3.27]}


def test_variants_and_slips(published: dict[str, Any]) -> None:
    bf16, larger, slip = published["variants"]
    assert round(bf16["bandwidth"] / 1e12, 2) == 6.36
    assert round(larger["ratio"], 3) == 1.471
    assert larger["printed_ratio"] == 1.46
    assert (slip["active"], slip["printed"]) == (33_632_266_144, 37_554_471_512)


def test_what_cannot_be_derived_is_named(published: dict[str, Any]) -> None:
    named = " ".join(published["inputs_not_derived"])
    for word in ("3,416", "precision", "0.73", "0.68", "0.7279", "0.6784", "rounding"):
        assert word in named


def test_counts_are_those_of_the_release_without_the_extra() -> None:
    kimi = counted({})["kimi-k2"]
    assert (kimi.always, kimi.routed) == (11_722_772_440, 21_140_582_400)
    assert counted({"kimi-k2": 3416})["kimi-k2"].always - kimi.always == 61 * 56
    shares = {name: round(model.dense_share, 3) for name, model in counted({"kimi-k2": 3416}).items()}
    assert (shares["kimi-k2"], shares["deepseek-v3"]) == (0.357, 0.456)
