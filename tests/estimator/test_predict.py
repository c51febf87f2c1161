"""Forward predictions: by hand, from a record the law itself made, from a datasheet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from moegauge import hardware, models
from moegauge.errors import ObservationError, RecordError, UnknownNameError, UsageError
from moegauge.estimator import predict
from moegauge.estimator.closed.emulated import trials
from moegauge.estimator.parallel import Parallel
from moegauge.estimator.traffic import step_traffic
from moegauge.shape import ModelShape

ROOF = 50e9  # bytes/s
NAMES = ("gpt-oss-20b", "gpt-oss-120b", "qwen3-30b-a3b", "mixtral-8x7b", "glm-4.7")


def write_record(path: Path, names: tuple[str, ...] = NAMES, *, share: float = 0.9, floor: float = 20e-6) -> Path:
    """A record whose times are the law itself: share of the roof and seconds per kernel boundary."""
    cases: list[dict[str, Any]] = []
    for name in names:
        for form in ("native", "int8"):
            traffic = step_traffic(models.load(name).cast(form))
            size, kernels = traffic.total_bytes, traffic.kernels
            seconds = floor * kernels + size / (share * ROOF)
            cases.append(
                {
                    "kind": "decode",
                    "backend": "cpu",
                    "model": name,
                    "format": form,
                    "batch": 1,
                    "context": 0,
                    "layers": traffic.layers,
                    "bytes": {"weights": round(size), "scales": 0, "kv": 0, "total": round(size)},
                    "distinct_experts": 0.0,
                    "kernels_per_step": kernels,
                    "samples_ms": [seconds * 1e3],
                    "median_ms": seconds * 1e3,
                    "mad_ms": 0.0,
                    "tokens_per_s": 1 / seconds,
                    "gb_per_s": size / seconds / 1e9,
                    "roof_fraction": size / seconds / ROOF,
                    "roof_fraction_samples": [size / seconds / ROOF],
                    "max_relative_error": 0.0,
                }
            )
    path.write_text(json.dumps({"schema": "moegauge.record/1", "created": "", "machine": {}, "cases": cases}))
    return path


def test_by_hand(moe: ModelShape) -> None:
    forecast = predict.by_hand(moe, bandwidth_gb_per_s=100.0, floor_us=2.0)
    size = step_traffic(moe).total_bytes
    seconds = size / 100e9 + 14 * 2e-6
    assert forecast.tokens_per_s == pytest.approx(1 / seconds)
    assert sum(forecast.seconds.values()) == pytest.approx(seconds)
    low, high = forecast.interval
    assert low < forecast.tokens_per_s < high


def test_devices_share_bytes_and_pay_to_talk(moe: ModelShape) -> None:
    one = predict.by_hand(moe, bandwidth_gb_per_s=100.0, floor_us=2.0)
    four = predict.by_hand(moe, bandwidth_gb_per_s=100.0, floor_us=2.0, parallel=Parallel(4))
    assert four.seconds["weights"] == pytest.approx(one.seconds["weights"] / 4)
    assert four.seconds["floor"] == one.seconds["floor"]
    assert four.seconds["communication"] > 0


def test_a_batch_is_slower_a_stream_and_faster_in_all(moe: ModelShape) -> None:
    one = predict.by_hand(moe, bandwidth_gb_per_s=1.0)
    eight = predict.by_hand(moe, bandwidth_gb_per_s=1.0, batch=8, context=100)
    assert eight.tokens_per_s < one.tokens_per_s < 8 * eight.tokens_per_s
    assert eight.seconds["kv"] > 0


def test_a_record_of_the_law_predicts_another_model(tmp_path: Path) -> None:
    record = write_record(tmp_path / "r.json")
    shape = models.load("deepseek-v3")
    forecast = predict.by_record(shape, record)
    traffic = step_traffic(shape)
    seconds = 20e-6 * traffic.kernels + traffic.total_bytes / (0.9 * ROOF)
    assert forecast.tokens_per_s == pytest.approx(1 / seconds, rel=0.01)
    assert forecast.seconds["floor"] == pytest.approx(20e-6 * traffic.kernels, rel=0.2)


def test_a_record_takes_a_draft(tmp_path: Path) -> None:
    record = write_record(tmp_path / "r.json")
    shape = models.load("deepseek-v3")
    plain = predict.by_record(shape, record)
    useless = predict.by_record(shape, record, draft=predict.Draft(2, 0.0))
    assert useless.tokens_per_s < plain.tokens_per_s / 1.5  # three tokens' experts
    assert predict.by_record(shape, record, draft=predict.Draft(2, 1.0)).tokens_per_s == pytest.approx(
        3 * useless.tokens_per_s
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[]", "moegauge.record/1"),
        ('{"schema": "moegauge.record/1", "created": "", "machine": {}, "cases": []}', "no decode case"),
        ('{"schema": "moegauge.record/1", "created": "", "machine": {}, "cases": [{"kind": "decode"}]}', "cases"),
    ],
)
def test_damaged_records(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=words):
        predict.read_record(path)
    with pytest.raises(RecordError, match="cannot be read"):
        predict.read_record(tmp_path / "absent.json")


@pytest.mark.parametrize(("field", "value"), [("median_ms", 0), ("roof_fraction", 0), ("roof_fraction", -1)])
def test_a_record_with_nonsense_is_refused(tmp_path: Path, field: str, value: float) -> None:
    path = write_record(tmp_path / "r.json")
    document = json.loads(path.read_text())
    document["cases"][3][field] = value
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match=r"r\.json"):
        predict.read_record(path)


def test_only_the_main_setup_of_a_record_speaks(tmp_path: Path) -> None:
    """A few points on one thread beside all of them on two: the law is that of two."""
    path = write_record(tmp_path / "r.json")
    document = json.loads(path.read_text())
    slow = {**document["cases"][0], "threads": 1, "median_ms": 1e4, "samples_ms": [1e4]}
    document["cases"] = [{**case, "threads": 2} for case in document["cases"]] + [slow]
    path.write_text(json.dumps(document))
    assert len(predict.read_record(path)) == 2 * len(NAMES)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e12])
def test_nonsense_bandwidths_are_refused_by_name(moe: ModelShape, value: float) -> None:
    with pytest.raises(UsageError, match="bandwidth"):
        predict.by_hand(moe, bandwidth_gb_per_s=value)


def test_other_nonsense_is_refused_by_name(moe: ModelShape) -> None:
    with pytest.raises(UsageError, match="floor"):
        predict.by_hand(moe, bandwidth_gb_per_s=1.0, floor_us=-1.0)
    with pytest.raises(UsageError, match="devices"):
        predict.by_hand(moe, bandwidth_gb_per_s=1.0, parallel=Parallel(0))


def test_datasheet_devices() -> None:
    assert hardware.device("nvidia h200 sxm").bandwidth == 4800e9
    assert hardware.device("h200").name == "NVIDIA H200 SXM"
    with pytest.raises(UsageError, match="Apple M1"):
        hardware.device("apple")
    with pytest.raises(UnknownNameError, match="unknown device"):
        hardware.device("H2000 XXL")


def test_datasheet_prediction_is_between_bandwidth_and_reason() -> None:
    shape = models.load("gpt-oss-120b")
    forecast = predict.by_device(shape, hardware.device("DGX Spark"))
    # llama.cpp measured 59.0 tokens/s there with a file of 3.5 GB a token; the release reads 5.0 GB.
    assert 25 < forecast.tokens_per_s < 273e9 / shape.bytes_per_token
    assert forecast.interval[0] < forecast.tokens_per_s < forecast.interval[1]


def test_a_stack_and_a_batch_are_told_apart() -> None:
    shape = models.load("deepseek-v3")
    device = hardware.device("NVIDIA B200 SXM")
    one = predict.by_device(shape, device, stack="SGLang", parallel=Parallel(8))
    many = predict.by_device(shape, device, stack="SGLang", parallel=Parallel(8), batch=57, context=2800)
    # SGLang measured 109 tokens/s for one stream and 39 for each of 57, of which 85 % and 30 % were floors.
    assert one.tokens_per_s == pytest.approx(109, rel=0.3)
    assert many.tokens_per_s == pytest.approx(39, rel=0.4)
    assert one.seconds["floor"] + one.seconds["communication"] > 0.6 / one.tokens_per_s
    assert predict.by_device(shape, device, stack="nobody", parallel=Parallel(8)).interval[0] < one.interval[0]


def test_emulated_models_are_estimated_from_the_others(tmp_path: Path) -> None:
    found = trials(write_record(tmp_path / "r.json", floor=100e-6))
    assert len(found) == 2 * len(NAMES)
    rows = [t.to_json() for t in found]
    assert max(r["measured_fold"] for r in rows) < 1.5
    assert sum(r["measured_fold"] for r in rows) < sum(r["published_fold"] for r in rows)
    with pytest.raises(ObservationError, match="at least two"):
        trials(write_record(tmp_path / "one.json", ("glm-4.7",)))
