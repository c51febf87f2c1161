"""The law of published systems: terms, tangents, conditioning and spreads, by hand and in made-up worlds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from moegauge.estimator import additive, hierarchy
from moegauge.estimator.additive import PARAMETERS, PRIOR, TokenStep, TokenSteps
from moegauge.estimator.architectures import architectures, find, kept_apart
from moegauge.estimator.hierarchy import GUESS, Case, Spreads, case, condition, fit_spreads, training
from moegauge.estimator.readings import Reading, read_packaged

DENSE = TokenStep(
    layers=32,
    dense=8e9,
    routed=0.0,
    expansion=1.0,
    dense_bits=8.0,
    routed_bits=8.0,
    kv_bytes=0.0,
    streams=1.0,
    devices=1.0,
    bandwidth=1e12,
    moe=0.0,
    recurrent=0.0,
    quantised=0.0,
)
MOE = replace(DENSE, routed=4e9, expansion=16.0, moe=1.0, streams=8.0, devices=4.0, kv_bytes=1e9, quantised=1.0)
AT = np.array([mean for mean, _ in PRIOR.values()])


def seconds(step: TokenStep, constants: np.ndarray = AT) -> float:
    return float(additive.seconds(constants, TokenSteps.of([step]))[0])


def test_the_law_by_hand() -> None:
    c = {name: mean for name, (mean, _) in PRIOR.items()}
    rate = 1e12 * math.exp(c["efficiency"])
    assert seconds(DENSE) == pytest.approx(32 * math.exp(c["floor"]) * 1e-6 + 8e9 / rate)
    floors = math.exp(c["floor"]) + 2 * math.exp(c["hop"]) + 3 * math.exp(c["batch"])
    distinct = 16 * (1 - (1 - 1 / 16) ** 8)
    expected = 32e-6 * floors * math.exp(c["moe_floor"] + c["quantised"])
    expected += (8e9 + 4e9 * distinct * math.exp(c["moe_bytes"] + c["grouped"]) + 1e9 * math.exp(c["cache"])) / (
        4 * rate
    )
    expected += 7 ** math.exp(c["growth"]) * 12e9 * math.exp(c["token"]) / 4e12
    assert seconds(MOE) == pytest.approx(expected)
    terms = additive.terms_ms(AT, TokenSteps.of([MOE]))
    assert sum(float(t[0]) for t in terms.values()) == pytest.approx(1e3 * expected)


def test_derivatives_against_differences() -> None:
    steps = TokenSteps.of([DENSE, MOE, replace(MOE, dense_bits=4.5, routed_bits=4.5, recurrent=0.75)])
    at = np.tile(AT, (3, 1)) + 0.1
    _, jacobian, by_layers = additive.log_seconds(at, steps)
    for i in range(len(PARAMETERS)):
        up, down = at.copy(), at.copy()
        up[:, i] += 1e-5
        down[:, i] -= 1e-5
        slope = (additive.log_seconds(up, steps)[0] - additive.log_seconds(down, steps)[0]) / 2e-5
        assert jacobian[:, i] == pytest.approx(slope, abs=1e-8), PARAMETERS[i]
    deeper = TokenSteps.of([replace(s, layers=s.layers * 1.00001) for s in (DENSE, MOE)])
    slope = np.log(additive.seconds(AT + 0.1, deeper) / additive.seconds(at[:2], TokenSteps.of([DENSE, MOE]))) / 1e-5
    assert by_layers[:2] == pytest.approx(slope, abs=1e-4)


def made_up(group: str, model: str, step: TokenStep, constants: np.ndarray) -> Case:
    return Case(
        step=step,
        group=group,
        family=group.split("|", maxsplit=1)[0],
        device=group.split("|")[1],
        model=model,
        context=0.0,
        log_seconds=math.log(seconds(step, constants)),
    )


def steps_of(sizes: tuple[float, ...]) -> list[TokenStep]:
    return [replace(DENSE, dense=s, layers=20 + 10 * i) for i, s in enumerate(sizes)]


def test_a_group_of_known_constants_is_found_again() -> None:
    """Exact times of dense models: the group's efficiency and floor, and the speed of a model it has not seen."""
    truth = AT.copy()
    truth[PARAMETERS.index("efficiency")] -= 0.3
    truth[PARAMETERS.index("floor")] += 1.2
    cases = [made_up("a|b", f"m{i}", s, truth) for i, s in enumerate(steps_of((1e9, 3e9, 8e9, 30e9, 70e9)))]
    posterior = condition(GUESS, cases)
    mean, covariance = posterior.of_group(cases[0])
    for name in ("efficiency", "floor"):
        i = PARAMETERS.index(name)
        assert mean[i] == pytest.approx(truth[i], abs=0.12)
        assert covariance[i, i] < 0.25 * PRIOR[name][1] ** 2
    new = made_up("a|b", "new", replace(DENSE, dense=14e9, layers=48), truth)
    log_seconds, deviation = posterior.predict(new)
    assert log_seconds == pytest.approx(new.log_seconds, abs=0.03)
    elsewhere = posterior.predict(replace(new, group="c|d", family="c", device="d"))
    assert elsewhere[1] > 1.5 * deviation


def test_without_readings_the_prior_speaks() -> None:
    value, deviation = condition(GUESS, []).predict(made_up("a|b", "m", DENSE, AT))
    assert value == pytest.approx(math.log(seconds(DENSE)))
    assert deviation > 0.3


def test_one_reading_far_off_does_not_move_the_others() -> None:
    cases = [made_up("a|b", f"m{i}", s, AT) for i, s in enumerate(steps_of((1e9, 3e9, 8e9, 14e9, 30e9, 70e9)))]
    wrong = [*cases[:-1], replace(cases[-1], log_seconds=cases[-1].log_seconds + math.log(4))]
    new = made_up("a|b", "new", replace(DENSE, dense=20e9), AT)
    right, off = (condition(GUESS, rows).predict(new)[0] for rows in (cases, wrong))
    assert off == pytest.approx(right, abs=0.15)


def test_a_start_does_not_change_where_it_ends() -> None:
    rows = [case(r) for r in training() if r.system.startswith("SGLang")]
    full = condition(GUESS, [case(r) for r in training() if r.devices > 1])
    cold, warm = condition(GUESS, rows), condition(GUESS, rows, full)
    target = next(c for c in rows if c.step.devices == 8)
    assert warm.predict(replace(target, model="another"))[0] == pytest.approx(
        cold.predict(replace(target, model="another"))[0], abs=0.1
    )


def test_spreads_round_trip_and_refuse_nonsense() -> None:
    assert Spreads.from_list(GUESS.to_list()) == GUESS
    with pytest.raises(ValueError, match="positive"):
        Spreads.from_list([0.0] * len(GUESS.to_list()))


def test_fitted_spreads_follow_the_world_that_made_the_readings() -> None:
    """Groups whose efficiencies differ little, then much."""
    rng = np.random.default_rng(0)

    def fitted(spread: float) -> Spreads:
        cases = []
        for g in range(12):
            at = AT.copy()
            at[0] += spread * rng.standard_normal()
            cases += [made_up(f"s|d{g}", f"m{g}-{i}", s, at) for i, s in enumerate(steps_of((3e9, 8e9, 30e9)))]
        return fit_spreads(cases, rounds=1)

    def of_efficiency(s: Spreads) -> float:
        return math.hypot(s.group[0], s.device[0])

    assert of_efficiency(fitted(0.02)) < 0.5 * of_efficiency(fitted(0.4))


def test_packaged_spreads_are_in_step_with_the_packaged_readings() -> None:
    """The fit goes no further from a packaged fold than its tangent allows; from a fold of other readings it does."""
    kept = hierarchy.load_calibration().without["mistral-7b"]
    cases = [c for c in map(case, training()) if c.model != "mistral-7b"]
    again = fit_spreads(cases, kept, rounds=1, iterations=2).to_list()
    assert np.median(np.abs(np.log(np.array(again) / kept.to_list()))) < 0.05
    twisted = [replace(c, log_seconds=c.log_seconds + 0.5 * (i % 2)) for i, c in enumerate(cases)]
    other = fit_spreads(twisted, kept, rounds=1, iterations=2).to_list()
    assert np.abs(np.log(np.array(other) / kept.to_list())).max() > 0.3


def test_what_is_kept_apart_is_not_fitted_to() -> None:
    own = {hierarchy.identity(r) for r in read_packaged("throughput.csv")}
    for reading in training():
        assert hierarchy.identity(reading) in own or not kept_apart(reading.key, reading.total)
    sides = {name: kept_apart(name) for name in ("qwen3-235b-a22b", "deepseek-v3", "minimax-m2", "gpt-oss-120b")}
    assert sides == {"qwen3-235b-a22b": True, "deepseek-v3": False, "minimax-m2": False, "gpt-oss-120b": True}


def test_names_find_their_architecture_and_no_other() -> None:
    assert find("qwen3-235b-a22b-2507-ud-q3-k-xl", 235e9).name == "qwen3-235b-a22b"  # type: ignore[union-attr]
    assert find("llama-2-7b.q4-0").layers == 32  # type: ignore[union-attr]
    assert find("glm-4.7-flash").layers == 47  # type: ignore[union-attr]
    assert find("minimax-m2.1-reap-139b-a10b", 139e9) is None
    assert find("deepseek-v3-mini", 20e9) is None
    assert find("nobody-7b") is None
    for known in architectures():
        whole = known.dense + known.routed * known.expansion
        assert known.dense + known.routed <= 1.001 * known.total
        assert whole <= 1.02 * known.total, known.name


def test_bytes_by_role() -> None:
    """A GGUF of gpt-oss-120b has 8-bit dense tensors and reads 3.5 GB a token; the release reads 5.0."""
    row = Reading(
        line=1, system="s", device="d", devices=1, bandwidth=1e12, model="gpt-oss-120b", total=116829156672,
        active=5.13e9, format="MXFP4 GGUF", bits=4.34, context=0.0, tokens_per_s=1.0,
    )  # fmt: skip

    def read(reading: Reading) -> float:
        step = case(reading).step
        return (step.dense * step.dense_bits + step.routed * step.routed_bits) / 8

    assert read(row) == pytest.approx(3.5e9, rel=0.04)
    assert read(replace(row, format="MXFP4", bits=4.47)) == pytest.approx(5.0e9, rel=0.04)
