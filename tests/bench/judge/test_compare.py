"""Comparison on made-up points whose law is known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moegauge.bench.judge.compare import compare
from moegauge.errors import RecordError
from moegauge.estimator.observe import observe
from moegauge.record import pool

# A made-up device: 20 GB/s roof, of which 90 % is reached, 5 us per kernel.
FLOOR_MS, RATE = 5e-3, 18e6  # per kernel; bytes per ms


def lawful(fakes: Any, model: str, total: int, kernels: int, **changes: Any) -> Any:
    return fakes.make_case(
        model, kernels * FLOOR_MS + total / RATE, total, kernels_per_step=kernels, layers=kernels // 7, **changes
    )


def models(fakes: Any, **changes: Any) -> list[Any]:
    sizes = [("a", 10**8, 140), ("b", 4 * 10**8, 280), ("c", 2 * 10**9, 70), ("d", 10**9, 490)]
    return [lawful(fakes, *size, **changes) for size in sizes]


def test_a_lawful_device_is_predicted_and_its_figures_come_out(fakes: Any) -> None:
    found = compare(pool([fakes.make_record(models(fakes))], ["r"]))
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["schema"] == "moegauge.compare/1"
    assert document["leave_one_model_out"]["n"] == 4
    assert document["leave_one_model_out"]["max_abs_error"] < 0.02
    # bandwidth and floors trade a little against each other; together they give the times above
    assert document["device"]["bandwidth_gb_per_s"] == pytest.approx(18.0, rel=0.02)
    floor = document["device"]["floor_us"] + document["device"]["floor_per_layer_us"] / 7
    assert floor == pytest.approx(5.0, rel=0.1)
    first = document["cases"][0]
    assert first["measured_tokens_per_s"] == pytest.approx(1e3 / (0.7 + 10**8 / RATE))
    assert first["error"] == pytest.approx(first["predicted_tokens_per_s"] / first["measured_tokens_per_s"] - 1)
    low, high = first["interval_tokens_per_s"]
    assert low < first["predicted_tokens_per_s"] < high


def test_a_model_is_never_predicted_from_itself(fakes: Any) -> None:
    honest = compare(pool([fakes.make_record(models(fakes))], ["r"]))
    cases = models(fakes)
    cases[2] = fakes.make_case("c", 3 * cases[2].median_ms, cases[2].bytes.total, kernels_per_step=70, layers=10)
    odd = compare(pool([fakes.make_record(cases)], ["r"]))
    # c's own prediction must not move when c's measurement does; the others' may.
    assert odd.points[2].predicted_tokens_per_s == pytest.approx(honest.points[2].predicted_tokens_per_s)
    assert odd.points[2].error == pytest.approx(2.0, abs=0.1)


def test_the_one_term_formula_is_calibrated_without_the_model_on_the_plainest_points(fakes: Any) -> None:
    cases = models(fakes)
    batched = lawful(fakes, "a", 3 * 10**8, 140, batch=4, formula_bytes=10**8)
    found = compare(pool([fakes.make_record([*cases, batched])], ["r"]))
    shares = {c.model: c.formula_bytes / (c.median_ms * 1e-3) / 20e9 for c in cases}
    mean = sum(shares[m] for m in "bcd") / 3
    expected = 4 / (10**8 / (mean * 20e9))
    assert found.points[4].simple is not None
    assert found.points[4].simple_error == pytest.approx(expected / batched.tokens_per_s - 1)


def test_errors_are_told_apart_by_what_a_point_varies(fakes: Any) -> None:
    batched = lawful(fakes, "a", 3 * 10**8, 140, batch=4, formula_bytes=10**8)
    long = lawful(fakes, "a", 2 * 10**8, 140, context=4096, formula_bytes=10**8)
    found = compare(pool([fakes.make_record([*models(fakes), batched, long])], ["r"]))
    parts = found.to_json()["by_question"]
    assert {name: part["law"]["n"] for name, part in parts.items()} == {
        "one stream, no context": 4,
        "batches": 1,
        "contexts": 1,
    }
    assert parts["batches"]["simple_formula"]["max_abs_error"] > 1 > parts["batches"]["law"]["max_abs_error"]


def test_a_drifting_machine_is_divided_out(fakes: Any) -> None:
    steady = compare(pool([fakes.make_record(models(fakes))], ["r"]))
    slow = [
        fakes.make_case("b", c.median_ms * 2, c.bytes.total, kernels_per_step=280, layers=40, roof=10.0)
        if c.model == "b"
        else c
        for c in models(fakes)
    ]
    drifted = compare(pool([fakes.make_record(slow)], ["r"]))
    # Everything, floors included, ran at half speed beside half the roof: floors alone do not follow the roof.
    assert drifted.points[1].error == pytest.approx(steady.points[1].error, abs=0.1)


def test_one_model_says_what_cannot_be_done(fakes: Any) -> None:
    found = compare(pool([fakes.make_record(models(fakes)[:1])], ["r"]))
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["cases"][0]["predicted_tokens_per_s"] is None
    assert document["leave_one_model_out"] == {"n": 0, "median_abs_error": None, "max_abs_error": None}
    assert "one model only (a)" in document["notes"][0]


def test_no_decode_point_is_refused(fakes: Any) -> None:
    with pytest.raises(RecordError, match="no decode point"):
        compare(pool([fakes.make_record([fakes.make_case(kind="kernel", kernel="experts up")])], ["r"]))


def test_a_record_of_the_bare_contract_can_be_compared(fakes: Any) -> None:
    cases = [
        fakes.make_case(m, t, b, roof_samples_gb_per_s=[], formula_bytes=None, macs=None)
        for m, t, b in (("a", 10.0, 10**8), ("b", 20.0, 2 * 10**8), ("c", 40.0, 4 * 10**8))
    ]
    found = compare(pool([fakes.make_record(cases)], ["r"]))
    assert found.by_model.worst is not None
    assert found.by_model.worst < 0.02
    assert found.simple.n == 0


def test_other_setups_are_kept_out_of_the_law_and_make_a_ladder(fakes: Any) -> None:
    both = models(fakes, threads=2)
    slow = [lawful(fakes, "a", 10**8, 140, threads=1, samples_ms=[50.0] * 10)]
    alone = compare(pool([fakes.make_record(both)], ["r"]))
    found = compare(pool([fakes.make_record([*slow, *both])], ["r"]))
    assert [p.to_json() for p in found.points] == [p.to_json() for p in alone.points]
    assert "cpu, 2 threads; 1 points" in found.notes[0]
    ladder = found.to_json()["ladder"]
    assert [(r["threads"], r["gain"]) for r in ladder[0]["rungs"]] == [
        (1, 1.0),
        (2, pytest.approx(50.0 / both[0].median_ms)),
    ]


def test_native_is_sorted_under_the_format_most_of_its_bytes_are_in(fakes: Any) -> None:
    assert observe(fakes.make_case(format="native", formats={"mxfp4": 9, "bf16": 5})).format == "mxfp4"
    assert observe(fakes.make_case(format="native")).format == "native"
    assert observe(fakes.make_case(format="int4", formats={"bf16": 5})).format == "int4"
