"""Predict tokens/s of a model on a device, with the terms that make up the step and an interval.

Three sources of the law's constants: a record measured by `moegauge bench` (fitted by `estimator.law`), a bandwidth
and floor given by hand, or a datasheet device (`estimator.datasheet`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from moegauge import models
from moegauge.errors import MoegaugeError, RecordError, UsageError
from moegauge.estimator import datasheet, law
from moegauge.estimator.efficiency import load_calibration
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
        "communication": _all_reduce_s(traffic, devices, datasheet.packaged_law().all_reduce_s if devices > 1 else 0.0),
    }
    spreads = load_calibration().all
    deviation = math.hypot(spreads.model_family, spreads.noise)
    return _forecast(traffic, seconds, deviation, f"{bandwidth_gb_per_s:g} GB/s, floor {floor_us:g} us, given", batch)


def by_device(
    shape: ModelShape,
    device: Device,
    *,
    batch: int = 1,
    context: int = 0,
    kv_format: str = "bf16",
    devices: int = 1,
) -> Forecast:
    """Predict from a datasheet and the law of published readings; the interval is that law's error on unseen groups.

    Raises:
        UsageError: devices out of range.
    """
    _check_devices(devices)
    constants = datasheet.packaged_law()
    traffic = step_traffic(shape, batch=batch, context=context, kv_format=kv_format)
    active = shape.active_without_embedding
    bits = 8.0 * shape.bytes_per_token / active
    guess = constants.predict(
        size=traffic.total_bytes,
        bandwidth=device.bandwidth,
        layers=traffic.layers,
        bits=bits,
        moe=traffic.moe_layers > 0,
        devices=devices,
    )
    weights = guess.terms_s["bytes"] * traffic.weight_bytes / traffic.total_bytes
    seconds = {
        "weights": weights,
        "kv": guess.terms_s["bytes"] - weights,
        "floor": guess.terms_s["layers"],
        "communication": guess.terms_s["communication"],
    }
    source = f"{device.name}, {device.bandwidth / GB:g} GB/s ({device.kind}); law of {constants.readings} readings"
    return _forecast(traffic, seconds, constants.spread, source, batch)


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


def _all_reduce_s(traffic: Traffic, devices: int, each_s: float) -> float:
    return traffic.all_reduces * math.log2(devices) * each_s if devices > 1 else 0.0


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
