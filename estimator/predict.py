"""Predict tokens/s of a model on a device, with the terms that make up the step and an interval.

Three sources of the law's constants: a record measured by `moegauge bench` (fitted by `estimator.law`), a bandwidth
and floor given by hand, or a datasheet device with what published readings say of systems on it (`hierarchy`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from moegauge import models
from moegauge.errors import MoegaugeError, RecordError, UsageError
from moegauge.estimator import additive, hierarchy, law, speculation
from moegauge.estimator.additive import PARAMETERS, TokenStep, TokenSteps
from moegauge.estimator.cache_costs import CacheCosts
from moegauge.estimator.observation import Observation
from moegauge.estimator.observe import decode_cases, observe
from moegauge.estimator.parallel import Parallel, cached_bytes, imbalance
from moegauge.estimator.traffic import Traffic, format_bytes, format_macs, step_traffic
from moegauge.hardware import Device
from moegauge.record import Case, Record
from moegauge.shape import ModelShape
from moegauge.units import GB, MICROSECOND

Z80 = 1.28155  # half-width of the 80 % interval in standard deviations
MAX_BANDWIDTH_GB = 1e7  # GB/s, far above any rack
MAX_FLOOR_US = 1e6
MAX_DRAFT = 64  # tokens


@dataclass(frozen=True, slots=True)
class Draft:
    """Speculative decoding: tokens drafted one after another, then verified in one step.

    A drafted token costs one further layer and the head, as an MTP layer (DeepSeek-V3, arXiv 2412.19437, section 2.2)
    or EAGLE (arXiv 2401.15077) does, on a named device times the cost that `speculation` has fitted; the step that
    verifies reads the experts of all its tokens. A step yields 1 + tokens x acceptance tokens.

    Attributes:
        tokens: drafted before each step; 0 is plain decoding.
        acceptance: accepted tokens over drafted ones, as vLLM and llama.cpp print it. Where each token is accepted with
            probability a and ends the draft otherwise, it is (a + a^2 + ... + a^tokens) / tokens (arXiv 2211.17192).
    """

    tokens: int = 0
    acceptance: float = 0.0

    @property
    def yields(self) -> float:
        """Tokens of one stream a step."""
        return 1.0 + self.tokens * self.acceptance

    def checked(self) -> Draft:
        """Itself.

        Raises:
            UsageError: out of range.
        """
        if not 0 <= self.tokens <= MAX_DRAFT:
            raise UsageError(f"draft is {self.tokens} tokens, not between 0 and {MAX_DRAFT}.")
        if not 0 <= self.acceptance <= 1:
            raise UsageError(f"acceptance is {self.acceptance:g}, not between 0 and 1.")
        return self


ALONE = Parallel()
PLAIN = Draft()


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted decode speed.

    Attributes:
        tokens_per_s: of one stream (all streams together make `batch` x pipeline stages times as many).
        interval: 80 % interval of tokens_per_s, the acceptance of drafts taken as given.
        traffic: bytes and boundaries of the step, and of the drafts before it (`draft_bytes`).
        seconds: by term: `weights`, `kv`, `floor`, `draft`, `communication`; they add up to one step. `communication`
            is `all_reduce` and what is handed from stage to stage.
        all_reduce: seconds of it.
        source: where the constants came from, in words.
        batch: streams decoded together.
        parallel, draft: as asked for.
    """

    tokens_per_s: float
    interval: tuple[float, float]
    traffic: Traffic
    draft_bytes: float
    seconds: dict[str, float]
    all_reduce: float
    source: str
    batch: int
    parallel: Parallel
    draft: Draft

    @property
    def streams(self) -> int:
        """Streams under way at once: every stage of a pipeline has a batch of its own."""
        return self.batch * self.parallel.pp

    def to_json(self) -> dict[str, Any]:
        """The document of `moegauge predict --json`."""
        return {
            "schema": "moegauge.predict/1",
            "tokens_per_s": self.tokens_per_s,
            "interval": list(self.interval),
            "interval_percent": 80,
            "aggregate_tokens_per_s": self.tokens_per_s * self.streams,
            "bytes_per_step": round(self.traffic.total_bytes + self.draft_bytes),
            "tokens_per_step": self.draft.yields,
            "terms_ms": {name: value * 1e3 for name, value in (*self.seconds.items(), ("all_reduce", self.all_reduce))},
            "kernels_per_step": self.traffic.kernels,
            "source": self.source,
        }


def by_hand(
    shape: ModelShape,
    *,
    bandwidth_gb_per_s: float,
    floor_us: float = 0.0,
    batch: int = 1,
    context: int = 0,
    kv_format: str = "bf16",
    parallel: Parallel = ALONE,
    draft: Draft = PLAIN,
) -> Forecast:
    """Predict from a bandwidth (GB/s per device, as delivered) and a floor per kernel boundary (us).

    The interval is the spread between models on one system that the packaged readings show.

    Raises:
        UsageError: bandwidth, floor, devices or draft out of range.
    """
    _within("bandwidth", bandwidth_gb_per_s, 0, MAX_BANDWIDTH_GB, "GB/s", open_low=True)
    _within("floor", floor_us, 0, MAX_FLOOR_US, "us")
    work = _Work.of(shape, batch, context, kv_format, parallel, draft)
    rate = bandwidth_gb_per_s * GB * parallel.tp
    hop = 0.0
    if parallel.world > 1:  # of a system nothing is known about
        hop = math.exp(float(hierarchy.load_calibration().unseen[0][PARAMETERS.index("hop")])) * MICROSECOND
    sums = work.traffic.layers * math.log2(parallel.tp) * hop
    waiting = work.traffic.routed_bytes * (work.imbalance - 1)
    each_draft = (
        work.sketch.weight_bytes + work.sketch_kv_bytes + work.join_bytes
    ) / rate + work.sketch.kernels * floor_us * MICROSECOND
    each_draft += math.log2(parallel.tp) * hop
    seconds = {
        "weights": (work.traffic.weight_bytes + waiting) / rate,
        "kv": work.kv_bytes / rate,
        "floor": work.traffic.kernels * floor_us * MICROSECOND,
        "draft": draft.tokens * each_draft,
        "communication": sums + (parallel.pp - 1) * hop / ALL_REDUCES,
    }
    spreads = hierarchy.load_calibration().all
    deviation = math.hypot(spreads.model_family, spreads.noise)
    source = f"{bandwidth_gb_per_s:g} GB/s, floor {floor_us:g} us, given"
    return work.forecast(seconds, sums, deviation, source)


def by_device(
    shape: ModelShape,
    device: Device,
    *,
    stack: str = "",
    batch: int = 1,
    context: int = 0,
    kv_format: str = "bf16",
    parallel: Parallel = ALONE,
    draft: Draft = PLAIN,
) -> Forecast:
    """Predict from a datasheet and the law of published readings, with the law's own deviation.

    Args:
        shape: the model, its matrices in the formats they are read in.
        device: one of those of `parallel`.
        stack: the program that serves it, as readings name their systems (`SGLang`, `vLLM`); any, if empty.
        batch, context, kv_format: as `step_traffic`.
        parallel: how the devices share the model; draft: speculative decoding.

    Raises:
        UsageError: devices or draft out of range.
    """
    work = _Work.of(shape, batch, context, kv_format, parallel, draft)
    place = {"devices": parallel.tp, "bandwidth": device.bandwidth}
    plain = step_of(shape, work.kv_bytes, batch=batch, **place)
    step = replace(plain, streams=work.tokens)
    posterior = hierarchy.fitted()
    target = replace(posterior.place(stack, device.name), step=step, context=float(context))
    mean, _ = posterior.of_group(target)
    _, deviation = posterior.predict(target)

    def terms(one: TokenStep) -> dict[str, float]:
        return {name: float(value[0]) for name, value in additive.terms_s(mean, TokenSteps.of([one])).items()}

    found = terms(step)
    routed = float(additive.weight_times(dict(zip(PARAMETERS, mean, strict=True)), TokenSteps.of([step]))[1][0])
    efficiency = math.exp(float(mean[PARAMETERS.index("efficiency")]))
    waiting = routed * (work.imbalance - 1) / (parallel.tp * device.bandwidth * efficiency)
    one = work.sketch_shape
    sketch = step_of(one, work.sketch_kv_bytes, batch=batch, **place)
    each_draft = 0.0
    if draft.tokens:
        found_cost = speculation.fitted()
        each_draft = sum(terms(replace(sketch, dense=sketch.dense + 2 * shape.hidden**2)).values()) * found_cost.cost
        deviation = math.hypot(deviation, found_cost.noise)
    # One all-reduce between two devices is half of what a layer pays for a doubling of them.
    handing = replace(plain, layers=(parallel.pp - 1) / ALL_REDUCES, devices=2, moe=0.0, recurrent=0.0, quantised=0.0)
    seconds = {
        "weights": found["weights"] + found["compute"] + waiting,
        "kv": found["kv"],
        "floor": found["floor"] + found["batch"],
        "draft": each_draft * draft.tokens,
        "communication": found["all_reduce"] + terms(handing)["all_reduce"],
    }
    source = f"{device.name}, {device.bandwidth / GB:g} GB/s ({device.kind}); law of {len(posterior.cases)} readings"
    if stack:
        source += f", those of {target.family} and of the device foremost"
    return work.forecast(seconds, found["all_reduce"], deviation, source)


def step_of(shape: ModelShape, kv_bytes: float, *, batch: float, devices: float, bandwidth: float) -> TokenStep:
    """What a decode step is to the additive law.

    Args:
        shape: the model in the formats it is read in.
        kv_bytes: of all streams, copies included; see `parallel.cached_bytes`.
        batch, devices: streams; devices that share every layer.
        bandwidth: datasheet bytes/s of one device.
    """
    dense = shape.active_without_embedding - shape.routed_active_parameters
    routed = shape.routed_active_parameters
    pools = [pool for layer in shape.layers for pool in layer.experts]
    sizes = format_bytes(shape)
    narrow = sum(size for name, size in sizes.items() if hierarchy.quantised(name))
    return TokenStep(
        layers=len(shape.layers),
        dense=dense,
        routed=routed,
        expansion=sum(p.count / p.top_k for p in pools) / len(pools) if pools else 1.0,
        dense_bits=8 * shape.dense_bytes / dense,
        routed_bits=8 * shape.routed_bytes / routed if routed else 8.0,
        kv_bytes=kv_bytes,
        streams=batch,
        devices=devices,
        bandwidth=bandwidth,
        moe=float(routed > 0),
        recurrent=sum(layer.attention.kind == "linear" for layer in shape.layers) / len(shape.layers),
        quantised=float(narrow > 0.5 * sum(sizes.values())),
    )


def by_record(
    shape: ModelShape,
    record: Path,
    *,
    batch: int = 1,
    context: int = 0,
    kv_format: str = "bf16",
    draft: Draft = PLAIN,
) -> Forecast:
    """Predict from the decode cases of a record, by the law fitted to them.

    Raises:
        RecordError: the file is no record, or has no decode case.
        UsageError: draft out of range.
    """
    costs, observations = _observations(record)
    fitted = law.fit(observations)
    work = _Work.of(shape, batch, context, kv_format, ALONE, draft)
    traffic = work.traffic
    roof = median(o.roof_bytes_per_s for o in observations)

    def told(model: ModelShape, seen: Traffic, tokens: int) -> Observation:
        parts = format_bytes(model, batch=tokens, context=context, kv_format=kv_format)
        parts = {name: seen.kv_bytes if name.startswith("kv:") else size for name, size in parts.items()}
        return Observation(
            model=model.name,
            bytes=seen.total_bytes,
            seconds=1.0,
            roof_bytes_per_s=roof,
            kernels=seen.kernels,
            layers=seen.layers,
            macs=seen.macs,
            format=next(iter(parts)),
            batch=tokens,
            context=context,
            parts=tuple(parts.items()),
            attention_macs=seen.attention_macs,
            format_macs=tuple(format_macs(model, batch=tokens).items()),
            measured=costs.measured(model, batch=tokens, context=context),
        )

    guess = fitted.predict(told(shape, traffic, work.tokens))
    weights = guess.terms_s["bytes"] * traffic.weight_bytes / traffic.total_bytes
    seconds = {
        "weights": weights + guess.terms_s["compute"],
        "kv": guess.terms_s["bytes"] - weights + guess.terms_s["attention"],
        "floor": guess.terms_s["kernels"] + guess.terms_s["layers"],
        "draft": draft.tokens * fitted.predict(told(work.sketch_shape, work.sketch, batch)).seconds,
        "communication": 0.0,
    }
    source = (
        f"{record.name}: {fitted.observations} decode cases of {fitted.models} models, "
        f"{fitted.bandwidth_fraction * roof / GB:.1f} GB/s, {fitted.floor_per_kernel_s / MICROSECOND:.2f} us per kernel"
    )
    return work.forecast(seconds, 0.0, guess.log_standard_error, source)


def read_record(path: Path) -> list[Observation]:
    """Decode cases of a record as observations of the law.

    Kernel boundaries and multiply-accumulates are counted from the model's shape where it ships, so that the record
    and the model predicted from it are counted alike; else they are the record's own.

    Raises:
        RecordError: unreadable, not a record, or without decode cases.
        ObservationError: a point no step could have.
    """
    return _observations(path)[1]


def _observations(path: Path) -> tuple[CacheCosts, list[Observation]]:
    record, cases = decode_cases(path)
    found = [_observation(f"{path}: {case.label}", case, record) for case in cases]
    return CacheCosts(record, cases[0].threads), found


def _observation(where: str, case: Case, record: Record) -> Observation:
    if case.roof_fraction <= 0:
        raise RecordError(f"{where}: roof_fraction is {case.roof_fraction:g}, not above 0.")
    row = observe(case, record)
    try:
        shape = models.load(case.model).cast(case.format)
        known = step_traffic(shape, batch=case.batch, context=case.context)
        row = replace(row, kernels=known.kernels, macs=known.macs, attention_macs=known.attention_macs)
    except MoegaugeError:
        pass  # a model of the user's own: the record's own counts stand
    row.check(where)
    return row


ALL_REDUCES = 2  # of a layer: behind attention, behind the MLP


@dataclass(frozen=True, slots=True)
class _Work:
    """What one step does: the step that verifies, and one of the drafts before it.

    Attributes:
        traffic: of the step, of `tokens` tokens over the caches of `batch` streams.
        sketch: of one drafted token of every stream: the last layer and the head.
        kv_bytes, sketch_kv_bytes: caches that the tensor-parallel devices read for them, copies included.
        join_bytes: of the projection that joins a token and its predecessor's state, 2 hidden x hidden.
        imbalance: see `parallel.imbalance`.
    """

    traffic: Traffic
    tokens: int
    sketch_shape: ModelShape
    sketch: Traffic
    kv_bytes: float
    sketch_kv_bytes: float
    join_bytes: float
    imbalance: float
    batch: int
    parallel: Parallel
    draft: Draft

    @classmethod
    def of(cls, shape: ModelShape, batch: int, context: int, kv_format: str, parallel: Parallel, draft: Draft) -> _Work:
        parallel.checked().check(shape)
        tokens = batch * (draft.checked().tokens + 1)
        alone = step_traffic(shape, batch=batch, context=context, kv_format=kv_format)
        together = step_traffic(shape, batch=tokens, context=context, kv_format=kv_format)
        one = replace(shape, layers=shape.layers[-1:])
        each = shape.dense_bytes / (shape.active_without_embedding - shape.routed_active_parameters)
        return cls(
            traffic=replace(together, kv_bytes=alone.kv_bytes),
            tokens=tokens,
            sketch_shape=one,
            sketch=step_traffic(one, batch=batch, context=context, kv_format=kv_format),
            kv_bytes=cached_bytes(shape, parallel.tp, batch=batch, context=context, kv_format=kv_format),
            sketch_kv_bytes=cached_bytes(one, parallel.tp, batch=batch, context=context, kv_format=kv_format),
            join_bytes=2 * shape.hidden**2 * each,
            imbalance=imbalance(shape, tokens, parallel.ep),
            batch=batch,
            parallel=parallel,
            draft=draft,
        )

    def forecast(self, seconds: dict[str, float], all_reduce: float, deviation: float, source: str) -> Forecast:
        speed = self.draft.yields / sum(seconds.values())
        spread = math.exp(Z80 * deviation)
        return Forecast(
            tokens_per_s=speed,
            interval=(speed / spread, speed * spread),
            traffic=self.traffic,
            draft_bytes=self.draft.tokens * (self.sketch.total_bytes + self.join_bytes),
            seconds=seconds,
            all_reduce=all_reduce,
            source=source,
            batch=self.batch,
            parallel=self.parallel,
            draft=self.draft,
        )


def _within(name: str, value: float, low: float, high: float, unit: str, *, open_low: bool = False) -> None:
    inside = math.isfinite(value) and value <= high and (value > low if open_low else value >= low)
    if not inside:
        bound = "above" if open_low else "at least"
        raise UsageError(f"{name} is {value:g} {unit}, not {bound} {low:g} and at most {high:g}.")
