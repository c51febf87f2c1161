"""Answer claims that fix no size: ratios of speeds and sizes, prices, provider speeds, parallelism, drafts, sparsity.

Each kind has one function from a claim of `data/claims.json` to a `Finding`. Where the law is asked, it is for
DeepSeek-V3 as released on B200 devices under SGLang (`PLACE`), as `moegauge predict` prints it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moegauge import hardware, models
from moegauge.estimator import additive, hierarchy
from moegauge.estimator.additive import TokenSteps
from moegauge.estimator.batching import price_list
from moegauge.estimator.closed import inversion
from moegauge.estimator.closed.contradictions import Ratio
from moegauge.estimator.closed.fleets import fleets
from moegauge.estimator.closed.published import counted
from moegauge.estimator.packaged import packaged
from moegauge.estimator.parallel import Parallel
from moegauge.estimator.predict import Draft, by_device, step_of

PLACE = ("NVIDIA B200 SXM", "SGLang", 8)  # device, stack, devices
MODEL = "deepseek-v3"
BOOSTED = ("gpt-oss-20b", "gpt-oss-120b", "qwen3-235b-a22b", "glm-4.7", "deepseek-v3")
ALIKE = 1.1  # ratios within this factor count as the same
EDGE = "95"  # per cent of the interval of floors within which a needed floor is possible


@dataclass(frozen=True, slots=True)
class Finding:
    """What a claim is held against.

    Attributes:
        limit: what kind of thing decides.
        broken: by what factor it misses; at most 1 where it holds or nothing decides.
        figures: what was found.
        note: what to know beside.
        decided: false where what is known is too little.
    """

    limit: str
    broken: float
    figures: dict[str, Any]
    note: str = ""
    decided: bool = True


def _beyond(off: float) -> float:
    """By what factor two figures differ; 1 where they are alike."""
    return off if off > ALIKE else 1.0


def speed_ratio(claim: Mapping[str, Any]) -> Finding:
    """A ratio of speeds against the observed ones."""
    found = _ratio(claim)
    off = max(found.claimed / found.by_formula, found.by_formula / found.claimed)
    return Finding("speed", _beyond(off), {"claimed": found.claimed, "observed": found.by_formula})


def size_ratio(claim: Mapping[str, Any]) -> Finding:
    """A ratio of sizes: the floor both steps would have to pay, against what the law leaves open for the faster."""
    found = _ratio(claim)
    fleet = fleets(None)[0][0]
    row = next(r for r in fleet.closed if r.model == found.faster)
    most = inversion.estimate(fleet.open, [row])[0].floor_share[EDGE][1]
    figures = {**found.to_json(), "floor_share_at_most": most}
    return Finding("floors", found.floor_share / most, figures, "at most: the upper end of the law's 95 % interval")


def _ratio(claim: Mapping[str, Any]) -> Ratio:
    speeds = {row.model: row.tokens_per_s for row in fleets(None)[0][0].closed}
    return Ratio.of(speeds, claim["slower"], claim["faster"], claim["ratio"])


def price_rule(claim: Mapping[str, Any]) -> Finding:
    """A cost as a multiple of the highest of several makers' output prices, and the margin it leaves."""
    known = {p.maker: p.output for p in price_list() if p.maker in claim["makers"] and p.output is not None}
    missing = [maker for maker in claim["makers"] if maker not in known]
    own = next(p.output for p in price_list() if p.model == claim["subject"])
    assert own is not None
    cost = [times * max(known.values()) for times in claim["times"]]
    figures = {
        "output_prices": known,
        "no_sourced_price": missing,
        "cost_dollars_per_million": cost,
        "price_dollars_per_million": own,
        "margin": [1 - cost[1] / own, 1 - cost[0] / own],
    }
    return Finding(
        "price",
        cost[0] / own,
        figures,
        f"no sourced price of {', '.join(missing)}: the cost is a lower bound",
        decided=not missing,
    )


def served(claim: Mapping[str, Any]) -> Finding:
    """A provider's speed, or how many times another's it is, against usable per-token readings."""
    rows = [r for r in csv.DictReader(io.StringIO(packaged("providers.csv"))) if r["usable"] == "yes"]
    speeds = {r["provider"]: float(r["tokens_per_s"]) for r in rows if r["model"] == claim["subject"]}
    here, other = speeds.get(claim["provider"]), speeds.get(claim.get("times_of", ""))
    if here is None or ("times_of" in claim and other is None):
        return Finding(
            "speed", 1.0, {}, f"no usable speed of {claim['subject']} at {claim['provider']}: undecided", decided=False
        )
    value = here / other if other else here
    off = max(claim["said"] / value, value / claim["said"])
    return Finding("speed", _beyond(off), {"claimed": claim["said"], "observed": value, "tokens_per_s": here})


def scaled(claim: Mapping[str, Any]) -> Finding:
    """How much slower a step of so many times the bytes is, as deep as before."""
    name, stack, devices = PLACE
    shape, device, posterior = models.load(MODEL), hardware.device(name), hierarchy.fitted()
    mean, _ = posterior.of_group(posterior.place(stack, name))
    step = step_of(shape, 0.0, batch=1, devices=devices, bandwidth=device.bandwidth)
    larger = replace(step, dense=step.dense * claim["times"], routed=step.routed * claim["times"])
    one, many = (float(t) for t in additive.seconds(mean, TokenSteps.of([step, larger])))
    return Finding("speed", _beyond(claim["times"] / (many / one)), {"claimed": claim["times"], "slower": many / one})


def boost(claim: Mapping[str, Any]) -> Finding:
    """What tensor parallelism gives one stream of each of several models."""
    gains = {name: _speed(name, Parallel(claim["tp"])) / _speed(name, Parallel()) for name in BOOSTED}
    return Finding("speed", _beyond(max(gains.values()) / min(gains.values())), {"gain": gains})


def stages(claim: Mapping[str, Any]) -> Finding:
    """What layers spread over devices give one stream, beside what tensor parallelism gives it."""
    alone = _speed(MODEL, Parallel())
    figures = {"gain": _speed(MODEL, Parallel(pp=claim["pp"])) / alone}
    figures["gain_of_tensor_parallelism"] = _speed(MODEL, Parallel(claim["pp"])) / alone
    faster = figures["gain"] > ALIKE
    return Finding("speed", 1.0 if faster else ALIKE / figures["gain"], figures)


def drafted(claim: Mapping[str, Any]) -> Finding:
    """What drafted tokens give one stream, over a range of acceptances."""
    plain = _speed(MODEL, Parallel(PLACE[2]))
    low, high = (_speed(MODEL, Parallel(PLACE[2]), Draft(claim["tokens"], a)) / plain for a in claim["acceptance"])
    note = f"{claim['tokens']} tokens drafted, {claim['acceptance'][0]:.0%} to {claim['acceptance'][1]:.0%} accepted"
    return Finding("speed", claim["said"] / high, {"claimed": claim["said"], "gain": [low, high]}, note)


def _speed(model: str, parallel: Parallel, draft: Draft | None = None) -> float:
    device, stack, _ = PLACE
    options = {"stack": stack, "parallel": parallel, "draft": draft or Draft()}
    return by_device(models.load(model), hardware.device(device), **options).tokens_per_s  # type: ignore[arg-type]


def sparsity(claim: Mapping[str, Any]) -> Finding:
    """A share of experts below which nobody is, against counted open models or those the claim names."""
    shares = {name: model.top_k / model.experts for name, model in counted({}).items()}
    if "open" in claim:
        shares = {name: top_k / experts for name, (top_k, experts) in claim["open"].items()}
    name = min(shares, key=lambda n: shares[n])
    note = f"{name}, whose weights are open, uses {shares[name]:.1%} of its routed experts per token"
    return Finding("sparsity", claim["least_share"] / shares[name], {"model": name, "share": shares[name]}, note)


KINDS: dict[str, Callable[[Mapping[str, Any]], Finding]] = {
    "boost": boost,
    "drafted": drafted,
    "price_rule": price_rule,
    "scaled": scaled,
    "served": served,
    "size_ratio": size_ratio,
    "sparsity": sparsity,
    "speed_ratio": speed_ratio,
    "stages": stages,
}
