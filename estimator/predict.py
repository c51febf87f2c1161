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
from moegauge.estimator import additive, hierarchy, law
from moegauge.estimator.additive import PARAMETERS, TokenStep, TokenSteps
from moegauge.estimator.observe import decode_cases, observe
from moegauge.estimator.traffic import Traffic, format_bytes, format_macs, step_traffic
from moegauge.hardware import Device
from moegauge.record import Case
from moegauge.shape import ModelShape
from moegauge.units import GB, MICROSECOND

Z80 = 1.28155  # half-width of the 80 % interval in standard deviations
MAX_BANDWIDTH_GB = 1e7  # GB/s, far above any rack
MAX_FLOOR_US = 1e6
MAX_DEVICES = 4096


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted decode speed.

    Attributes:
        tokens_per_s: of one stream (all `batch` streams together make `batch` times as many).
        interval: 80 % interval of tokens_per_s.
        traffic: the step's bytes and boundaries.
        seconds: by term: `weights`, `kv`, `floor`, `communication`; they add up to one step.
        source: where the constants came from, in words.
        batch: streams decoded together.
    """

    tokens_per_s: float
    interval: tuple[float, float]
    traffic: Traffic
    seconds: dict[str, float]
    source: str
    batch: int

    def to_json(self) -> dict[str, Any]:
        """The document of `moegauge predict --json`."""
        return {
            "schema": "moegauge.predict/1",
            "tokens_per_s": self.tokens_per_s,
            "interval": list(self.interval),
            "interval_percent": 80,
            "aggregate_tokens_per_s": self.tokens_per_s * self.batch,
            "bytes_per_step": round(self.traffic.total_bytes),
            "terms_ms": {name: value * 1e3 for name, value in self.seconds.items()},
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
    devices: int = 1,
) -> Forecast:
    """Predict from a bandwidth (GB/s per device, as delivered) and a floor per kernel boundary (us).

    The interval is the spread between models on one system that the packaged readings show.

    Raises:
        UsageError: bandwidth, floor or devices out of range.
    """
    _within("bandwidth", bandwidth_gb_per_s, 0, MAX_BANDWIDTH_GB, "GB/s", open_low=True)
    _within("floor", floor_us, 0, MAX_FLOOR_US, "us")
    _check_devices(devices)
    traffic = step_traffic(shape, batch=batch, context=context, kv_format=kv_format)
    rate = bandwidth_gb_per_s * GB * devices
    seconds = {
        "weights": traffic.weight_bytes / rate,
        "kv": traffic.kv_bytes / rate,
        "floor": traffic.kernels * floor_us * MICROSECOND,
        "communication": _all_reduce_s(traffic, devices),
    }
    spreads = hierarchy.load_calibration().all
    deviation = math.hypot(spreads.model_family, spreads.noise)
    return _forecast(traffic, seconds, deviation, f"{bandwidth_gb_per_s:g} GB/s, floor {floor_us:g} us, given", batch)


def by_device(
    shape: ModelShape,
    device: Device,
    *,
    stack: str = "",
    batch: int = 1,
    context: int = 0,
    kv_format: str = "bf16",
    devices: int = 1,
) -> Forecast:
    """Predict from a datasheet and the law of published readings, with the law's own deviation.

    Args:
        shape: the model, its matrices in the formats they are read in.
        device: one of `devices` that share every layer (tensor parallel).
        stack: the program that serves it, as readings name their systems (`SGLang`, `vLLM`); any, if empty.
        batch, context, kv_format: as `step_traffic`.

    Raises:
        UsageError: devices out of range.
    """
    _check_devices(devices)
    traffic = step_traffic(shape, batch=batch, context=context, kv_format=kv_format)
    step = step_of(shape, traffic, batch=batch, devices=devices, bandwidth=device.bandwidth)
    posterior = hierarchy.fitted()
    target = replace(posterior.place(stack, device.name), step=step, context=float(context))
    mean, _ = posterior.of_group(target)
    _, deviation = posterior.predict(target)
    terms = {name: float(value[0]) for name, value in additive.terms_s(mean, TokenSteps.of([step])).items()}
    seconds = {
        "weights": terms["weights"] + terms["compute"],
        "kv": terms["kv"],
        "floor": terms["floor"] + terms["batch"],
        "communication": terms["all_reduce"],
    }
    source = f"{device.name}, {device.bandwidth / GB:g} GB/s ({device.kind}); law of {len(posterior.cases)} readings"
    if stack:
        source += f", those of {target.family} and of the device foremost"
    return _forecast(traffic, seconds, deviation, source, batch)


def step_of(shape: ModelShape, traffic: Traffic, *, batch: float, devices: float, bandwidth: float) -> TokenStep:
    """What a step of `traffic` is to the additive law.

    Args:
        shape: the model in the formats it is read in.
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
        kv_bytes=traffic.kv_bytes,
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
) -> Forecast:
    """Predict from the decode cases of a record, by the law fitted to them.

    Raises:
        RecordError: the file is no record, or has no decode case.
    """
    observations = read_record(record)
    fitted = law.fit(observations)
    traffic = step_traffic(shape, batch=batch, context=context, kv_format=kv_format)
    roof = median(o.roof_bytes_per_s for o in observations)
    parts = format_bytes(shape, batch=batch, context=context, kv_format=kv_format)
    told = law.Observation(
        shape.name,
        traffic.total_bytes,
        1.0,
        roof,
        traffic.kernels,
        traffic.layers,
        traffic.macs,
        next(iter(parts)),
        batch,
        context,
        tuple(parts.items()),
        traffic.attention_macs,
        tuple(format_macs(shape, batch=batch).items()),
    )
    guess = fitted.predict(told)
    weights = guess.terms_s["bytes"] * traffic.weight_bytes / traffic.total_bytes
    attention = fitted.seconds_per_attention_mac * traffic.attention_macs
    seconds = {
        "weights": weights + guess.terms_s["compute"] - attention,
        "kv": guess.terms_s["bytes"] - weights + attention,
        "floor": guess.terms_s["kernels"] + guess.terms_s["layers"],
        "communication": 0.0,
    }
    source = (
        f"{record.name}: {fitted.observations} decode cases of {fitted.models} models, "
        f"{fitted.bandwidth_fraction * roof / GB:.1f} GB/s, {fitted.floor_per_kernel_s / MICROSECOND:.2f} us per kernel"
    )
    return _forecast(traffic, seconds, guess.log_standard_error, source, batch)


def read_record(path: Path) -> list[law.Observation]:
    """Decode cases of a record as observations of the law.

    Kernel boundaries and multiply-accumulates are counted from the model's shape where it ships, so that the record
    and the model predicted from it are counted alike; else they are the record's own.

    Raises:
        RecordError: unreadable, not a record, or without decode cases.
        ObservationError: a point no step could have.
    """
    return [_observation(f"{path}: {case.label}", case) for case in decode_cases(path)]


def _observation(where: str, case: Case) -> law.Observation:
    if case.roof_fraction <= 0:
        raise RecordError(f"{where}: roof_fraction is {case.roof_fraction:g}, not above 0.")
    row = observe(case)
    try:
        shape = models.load(case.model).cast(case.format)
        known = step_traffic(shape, batch=case.batch, context=case.context)
        row = replace(row, kernels=known.kernels, macs=known.macs, attention_macs=known.attention_macs)
    except MoegaugeError:
        pass  # a model of the user's own: the record's own counts stand
    row.check(where)
    return row


def _all_reduce_s(traffic: Traffic, devices: int) -> float:
    """Of a system nothing is known about."""
    if devices == 1:
        return 0.0
    hop = float(hierarchy.load_calibration().unseen[0][PARAMETERS.index("hop")])
    return traffic.layers * math.log2(devices) * math.exp(hop) * MICROSECOND


def _forecast(traffic: Traffic, seconds: dict[str, float], deviation: float, source: str, batch: int) -> Forecast:
    speed = 1.0 / sum(seconds.values())
    spread = math.exp(Z80 * deviation)
    return Forecast(speed, (speed / spread, speed * spread), traffic, seconds, source, batch)


def _check_devices(devices: int) -> None:
    if not 1 <= devices <= MAX_DEVICES:
        raise UsageError(f"devices is {devices}, not between 1 and {MAX_DEVICES}.")


def _within(name: str, value: float, low: float, high: float, unit: str, *, open_low: bool = False) -> None:
    inside = math.isfinite(value) and value <= high and (value > low if open_low else value >= low)
    if not inside:
        bound = "above" if open_low else "at least"
        raise UsageError(f"{name} is {value:g} {unit}, not {bound} {low:g} and at most {high:g}.")
