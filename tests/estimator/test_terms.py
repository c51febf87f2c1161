"""The table of the law's terms: what each row counts, and that another row is all another term needs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moegauge.estimator import law
from moegauge.estimator.law import fit, leave_one_model_out
from moegauge.estimator.observation import Observation
from moegauge.estimator.terms import COSTS, TERMS, Summand, Term, cost_of
from moegauge.formats import FORMATS

ROOF = 5e10
STEP = Observation(
    model="a",
    bytes=3e9,
    seconds=0.1,
    roof_bytes_per_s=ROOF,
    kernels=200,
    layers=20,
    macs=5e9,
    attention_macs=1e9,
    format="fp8",
    format_macs=(("fp8", 3e9), ("bf16", 1e9)),
    parts=(("fp8", 2e9), ("bf16", 9e8), ("kv:bf16", 1e8)),
)
MEASURED = replace(STEP, measured=(("products", 0.05), ("attention", 0.01)))


def counts(o: Observation) -> dict[str, dict[str, float]]:
    return {term.name: dict(term.columns(o)) for term in TERMS}


def test_every_row_counts_what_its_unit_says() -> None:
    assert counts(STEP) == {
        "floor_per_kernel_s": {"floor_per_kernel_s": 200},
        "floor_per_layer_s": {"floor_per_layer_s": 20},
        "products": {"mac:fp8": 3e9, "mac:bf16": 1e9},
        "fetch": {},  # of a step whose products were not measured, what a byte costs is part of what a product does
        "seconds_per_mac": {},
        "attention": {"seconds_per_attention_mac": 1e9},
    }
    assert counts(MEASURED)["fetch"] == {"fetch:fp8": 2e9, "fetch:bf16": 9e8}
    assert counts(replace(STEP, format_macs=()))["seconds_per_mac"] == {"seconds_per_mac": 5e9}


def test_a_measured_term_is_taken_as_it_is_and_none_of_its_columns_is_fitted() -> None:
    rows = [replace(MEASURED, model=name, bytes=size * 3e9, parts=()) for name, size in (("a", 1), ("b", 2))]
    fitted = fit(rows)
    assert not any(name.startswith(("mac:", "seconds_per")) for name in fitted.values)
    dearer = replace(MEASURED, measured=(("products", 0.5), ("attention", 0.01)))
    assert fitted.predict_seconds(dearer) > fitted.predict_seconds(MEASURED) + 0.3


def test_costs_thought_of_before_know_every_format() -> None:
    assert set(COSTS) == set(FORMATS)
    assert cost_of("mac:fp8") == COSTS["fp8"]
    assert min(COSTS.values()) < cost_of("mac:new") < max(COSTS.values())


def test_another_term_is_another_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up cost per batch is fitted, shown and predicted once the table has its row, nothing else touched."""
    made_up = [
        Observation(name, size, 1e-4 * batch + size / (0.9 * ROOF), ROOF, batch=batch)
        for name, size in (("a", 1e8), ("b", 3e8), ("c", 9e8))
        for batch in (1, 4, 16)
    ]
    without = max(abs(held.error) for held in leave_one_model_out(made_up))
    row = Term(
        name="per_sequence",
        shown="batch",
        part=Summand.FIXED,
        unit="s per sequence",
        columns=lambda o: {"per_sequence": o.batch},
    )
    monkeypatch.setattr(law, "TERMS", (*TERMS, row))
    fitted = fit(made_up)
    assert fitted.values["per_sequence"] == pytest.approx(1e-4, rel=0.02)
    assert fitted.predict(made_up[2]).terms_s["batch"] == pytest.approx(16e-4, rel=0.02)
    assert fitted.standard_error("per_sequence") < 1e-5
    assert max(abs(held.error) for held in leave_one_model_out(made_up)) < 0.01 < without
