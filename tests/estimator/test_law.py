"""The law recovers what made the observations, says how unsure it is, and refuses nonsense."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from moegauge.errors import ObservationError
from moegauge.estimator.law import fit, leave_one_model_out, one_term_leave_one_model_out
from moegauge.estimator.observation import Observation

ROOF = 3.0e12
MODELS = (("a", 24, 2e9), ("b", 36, 3.5e9), ("c", 92, 33e9), ("d", 61, 37e9), ("e", 48, 1.8e9), ("f", 94, 22e9))


def observations(
    fraction: float = 0.9, kernel: float = 5e-6, efficiency: float = 1.0, noise: float = 0.0
) -> list[Observation]:
    """Steps made by the law itself, in two formats, with relative noise."""
    rng = random.Random(7)
    rows = []
    for name, layers, size in MODELS:
        for form, share, speed in (("bf16", 1.0, 1.0), ("int4", 0.28, efficiency)):
            kernels = 8 * layers + 2
            seconds = kernels * kernel + size * share / (fraction * speed * ROOF)
            rows.append(
                Observation(
                    name, size * share, seconds * math.exp(rng.gauss(0, noise)), ROOF, kernels, layers, format=form
                )
            )
    return rows


def test_recovers_bandwidth_and_floor() -> None:
    law = fit(observations())
    assert law.bandwidth_fraction == pytest.approx(0.9, rel=0.01)
    per_layer = law.floor_per_kernel_s * 8 + law.floor_per_layer_s
    assert per_layer == pytest.approx(8 * 5e-6, rel=0.02)


def test_recovers_format_efficiency() -> None:
    law = fit(observations(efficiency=0.8, noise=0.003))
    assert law.format_efficiency["int4"] / law.format_efficiency["bf16"] == pytest.approx(0.8, rel=0.03)


def test_a_step_of_several_formats_is_told_apart() -> None:
    # Experts in int4 at 0.8 of the rate of the bf16 rest; how much of a step is int4 differs from model to model.
    rows = []
    for i, (name, layers, size) in enumerate(MODELS):
        for narrow in (0.0, 0.2 + 0.1 * i, 0.95):
            seconds = 8 * layers * 5e-6 + size * ((1 - narrow) + narrow / 0.8) / (0.9 * ROOF)
            parts = (("bf16", size * (1 - narrow)), ("int4", size * narrow))
            rows.append(Observation(name, size, seconds, ROOF, 8 * layers, layers, format="native", parts=parts))
    law = fit(rows)
    assert law.format_efficiency["int4"] / law.format_efficiency["bf16"] == pytest.approx(0.8, rel=0.02)
    assert max(abs(held.error) for held in leave_one_model_out(rows)) < 0.02
    assert law.predict(rows[0]).terms_s["bytes"] == pytest.approx(rows[0].bytes / (0.9 * ROOF), rel=0.02)


def test_dear_attention_is_told_apart_from_its_bytes() -> None:
    # GQA does 4 multiply-accumulates per cached byte, an absorbed MLA 121; each costs 2 ps more than one with a weight.
    rows = []
    for i, (name, layers, size) in enumerate(MODELS):
        for tokens in (0, 4096, 32768):
            cache = tokens * layers * (1152 if i % 2 else 4096)
            attention = cache * (121 if i % 2 else 4)
            seconds = 8 * layers * 5e-6 + (size + cache) / (0.9 * ROOF) + attention * 2e-12
            parts = (("bf16", size), ("kv:bf16", float(cache)))
            whole = Observation(name, size + cache, seconds, ROOF, 8 * layers, layers, attention, "bf16", 1, tokens)
            rows.append(replace(whole, parts=parts, attention_macs=float(attention)))
    law = fit(rows)
    assert law.seconds_per_mac + law.seconds_per_attention_mac == pytest.approx(2e-12, rel=0.05)
    assert "kv:bf16" not in law.format_efficiency
    assert max(abs(held.error) for held in leave_one_model_out(rows)) < 0.02


def multiplied(overlap: float, costs: dict[str, float], noise: float = 0.0) -> list[Observation]:
    """Steps whose multiplying hides behind their streaming, in several formats and batches."""
    rng = random.Random(3)
    rows = []
    for name, layers, size in MODELS:
        for form, share in (("bf16", 1.0), ("int4", 0.28)):
            for batch in (1, 8, 64):
                read, macs = size * share * min(1 + 0.1 * batch, 4), batch * size / 2
                stream, compute = read / (0.95 * ROOF), macs * costs[form]
                seconds = 8 * layers * 5e-6 + (stream**overlap + compute**overlap) ** (1 / overlap)
                seconds *= math.exp(rng.gauss(0, noise))
                whole = Observation(name, read, seconds, ROOF, 8 * layers, layers, macs, form, batch)
                rows.append(replace(whole, format_macs=((form, macs),)))
    return rows


@pytest.mark.parametrize("overlap", [1.0, 1.4, 2.0])
def test_multiplying_that_hides_behind_streaming(overlap: float) -> None:
    costs = {"bf16": 1.0e-14, "int4": 1.6e-14}
    rows = multiplied(overlap, costs)
    law = fit(rows)
    assert law.overlap == pytest.approx(overlap, rel=0.1)
    for name, cost in costs.items():
        assert law.format_seconds_per_mac[name] == pytest.approx(cost, rel=0.05)
    assert law.seconds_per_mac == pytest.approx(1.3e-14, rel=0.05)
    assert law.bandwidth_fraction == pytest.approx(0.95, rel=0.02)
    assert not law.format_efficiency
    assert max(abs(held.error) for held in leave_one_model_out(rows)) < 0.02
    prediction = law.predict(rows[3])
    assert sum(prediction.terms_s.values()) == pytest.approx(prediction.seconds)
    assert prediction.seconds == pytest.approx(rows[3].seconds, rel=0.01)


def test_one_more_parameter_in_the_wrong_place_would_show() -> None:
    """The standard error of a prediction is that of refits: noise of 1 % moves the prediction of a new step so far."""
    costs = {"bf16": 1.0e-14, "int4": 1.6e-14}
    target = multiplied(1.4, costs)[5]
    fits = []
    for seed in range(12):
        rng = random.Random(seed)
        rows = [replace(o, seconds=o.seconds * math.exp(rng.gauss(0, 0.01))) for o in multiplied(1.4, costs)]
        fits.append(fit(rows))
    moved = [math.log(law.predict_seconds(target)) for law in fits]
    mean = sum(moved) / len(moved)
    seen = math.sqrt(sum((v - mean) ** 2 for v in moved) / (len(moved) - 1))
    told = [math.sqrt(max(law.predict(target).log_standard_error ** 2 - law.spread**2, 0.0)) for law in fits]
    assert 0.4 * seen < sorted(told)[6] < 3 * seen


def test_an_unseen_format_multiplies_at_an_unknown_cost() -> None:
    law = fit(multiplied(1.4, {"bf16": 1.0e-14, "int4": 1.6e-14}, noise=0.003))
    seen = multiplied(1.4, {"bf16": 1.0e-14, "int4": 1.6e-14})[5]
    unseen = replace(seen, format="fp8", format_macs=(("fp8", seen.macs),))
    assert law.predict(unseen).log_standard_error > 3 * law.predict(seen).log_standard_error


def test_more_bytes_by_format_than_bytes_is_refused() -> None:
    with pytest.raises(ObservationError, match="by format"):
        fit([Observation("a", 1e9, 1.0, ROOF, parts=(("bf16", 9e8), ("int4", 3e8)))])


def test_standard_errors_hold() -> None:
    law = fit(observations(noise=0.01))
    off = abs(math.log(law.bandwidth_fraction / 0.9))
    assert off < 3 * law.standard_error("log_bandwidth_fraction") < 0.3
    assert math.isnan(law.standard_error("no such parameter"))


def test_one_outlier_does_not_move_the_fit() -> None:
    rows = observations()
    bad = rows[4]
    rows[4] = Observation(bad.model, bad.bytes, bad.seconds * 3, ROOF, bad.kernels, bad.layers, format=bad.format)
    assert fit(rows).bandwidth_fraction == pytest.approx(0.9, rel=0.03)


def test_left_out_models_are_predicted_where_one_term_is_not() -> None:
    rows = observations(noise=0.003)
    ours = max(abs(h.error) for h in leave_one_model_out(rows))
    theirs = max(abs(h.error) for h in one_term_leave_one_model_out(rows))
    assert ours < 0.03
    assert theirs > 0.5


def test_held_out_prediction_ignores_the_models_own_times() -> None:
    rows = observations()
    twisted = [
        Observation(o.model, o.bytes, o.seconds * (5 if o.model == "c" else 1), ROOF, o.kernels, o.layers) for o in rows
    ]
    plain = [Observation(o.model, o.bytes, o.seconds, ROOF, o.kernels, o.layers) for o in rows]
    before = [h.prediction.seconds for h in leave_one_model_out(plain) if h.observation.model == "c"]
    after = [h.prediction.seconds for h in leave_one_model_out(twisted) if h.observation.model == "c"]
    assert before == after


def test_terms_add_up_and_interval_brackets() -> None:
    rows = observations(noise=0.01)
    prediction = fit(rows).predict(rows[0])
    assert sum(prediction.terms_s.values()) == pytest.approx(prediction.seconds)
    low, high = prediction.interval()
    assert low < prediction.seconds < high


def test_an_unseen_format_is_less_certain() -> None:
    rows = observations(efficiency=0.8, noise=0.003)
    law = fit(rows)
    seen = rows[4]
    unseen = Observation(seen.model, seen.bytes, seen.seconds, ROOF, seen.kernels, seen.layers, format="nvfp4")
    assert law.predict(unseen).log_standard_error > 3 * law.predict(seen).log_standard_error


def test_one_model_alone_leaves_the_floor_open() -> None:
    law = fit([observations()[4]])
    assert law.standard_error("floor_per_kernel_s") * (8 * 92 + 2) > 0.1 * observations()[4].seconds


@pytest.mark.parametrize("field", ["bytes", "seconds", "roof_bytes_per_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e30])
def test_refuses_nonsense(field: str, value: float) -> None:
    good = {"bytes": 1e9, "seconds": 1e-3, "roof_bytes_per_s": 1e12}
    with pytest.raises(ObservationError, match=field):
        fit([Observation("m", **{**good, field: value})])


def test_refuses_to_leave_out_the_only_model() -> None:
    with pytest.raises(ObservationError, match="at least two"):
        leave_one_model_out([observations()[0]])
    with pytest.raises(ObservationError, match="no observation"):
        fit([])


def test_no_step_streams_faster_than_the_roof() -> None:
    # Time that follows the arithmetic alone, whatever the bytes: the fit may not answer with endless bandwidth.
    rows = [
        Observation(name, size * share, 8 * layers * 5e-6 + size * 1e-12, ROOF, 8 * layers, layers, macs=size)
        for name, layers, size in MODELS
        for share in (0.1, 0.3, 1.0, 2.0)
    ]
    assert fit(rows).bandwidth_fraction <= 1.0


def timed_apart(costs: dict[str, float], fetch: dict[str, float], noise: float = 0.0) -> list[Observation]:
    """Steps whose products were measured in cache, at a roof that changes from point to point, some of it unhidden."""
    rng = random.Random(5)
    rows = []
    for i, (name, layers, size) in enumerate(MODELS):
        for j, form in enumerate(costs):
            share = {"bf16": 1.0, "fp8": 0.5, "int4": 0.28}[form]
            roof = ROOF * (1.0 if (i + j) % 2 else 0.55)
            read, products = size * share, size / 2 * costs[form]
            computed = products + read * fetch[form]
            seconds = 8 * layers * 5e-6 + ((read / roof / 0.97) ** 4 + computed**4) ** 0.25
            whole = Observation(name, read, seconds * math.exp(rng.gauss(0, noise)), roof, 8 * layers, layers, size / 2)
            rows.append(
                replace(whole, format=form, format_macs=((form, size / 2),), measured=(("products", products),))
            )
    return rows


COSTS = {"bf16": 2.0e-13, "fp8": 5.0e-13, "int4": 2.5e-13}
FETCH = {"bf16": 1.6e-13, "fp8": 1.8e-13, "int4": 1.5e-13}


def test_with_products_measured_only_overlap_floors_and_fetching_are_fitted() -> None:
    law = fit(timed_apart(COSTS, FETCH, noise=0.002))
    assert law.measured == 18
    assert not law.format_seconds_per_mac
    assert law.overlap == pytest.approx(4.0, rel=0.15)
    assert 0.95 < law.bandwidth_fraction < 0.99  # at most the roof, and not held there
    for name, cost in FETCH.items():
        assert law.format_seconds_per_byte[name] == pytest.approx(cost, rel=0.2)


def test_a_format_never_seen_is_predicted_from_its_products_in_cache() -> None:
    rows = timed_apart(COSTS, FETCH, noise=0.002)
    assert max(abs(held.error) for held in leave_one_model_out(rows, "format")) < 0.05
    unknown = [replace(o, measured=()) for o in rows]
    assert max(abs(held.error) for held in leave_one_model_out(unknown, "format")) > 0.1


def test_attention_never_seen_is_likened_to_products() -> None:
    """Contexts measured in one format only: left out, what attention costs is guessed, not forgotten."""
    costs = {"bf16": 1.0e-14, "int4": 1.6e-14}
    law = fit(multiplied(1.4, costs))
    seen = multiplied(1.4, costs)[5]
    longer = replace(seen, attention_macs=seen.macs)
    assert law.predict(longer).terms_s["attention"] > 0.3 * law.predict(seen).terms_s["compute"] > 0
    assert law.predict(longer).log_standard_error > 3 * law.predict(seen).log_standard_error
