"""More than one stream: what a batch does to the speed of each, to the published inversion, to memory and to the price.

A step of B streams is a step of the additive law (`additive`): dense matrices once, E (1 - (1 - k/E)^B) of E experts a
layer, B caches, floors that grow with doublings of B. Each stream gets one token of it, so a stream's speed depends on
total as well as active parameters, and an inversion calibrated on a model of another sparsity errs by the ratio of the
two slowdowns. The largest batch is the one whose caches fit into the memory that the weights leave, held as
`KV_CACHE` says.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moegauge.errors import UsageError
from moegauge.estimator import additive, hierarchy
from moegauge.estimator.additive import PARAMETERS, TokenSteps
from moegauge.estimator.packaged import packaged
from moegauge.estimator.parallel import cached_bytes
from moegauge.estimator.predict import step_of
from moegauge.estimator.traffic import step_traffic, weight_bytes
from moegauge.hardware import Device
from moegauge.shape import ModelShape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MAX_DOLLARS = 1e6  # per device-hour
# How devices that share every layer hold caches: `copied` is tensor parallelism (`parallel.cached_bytes`), `split`
# data-parallel attention or decode context parallelism, where each device holds whole streams or some of their tokens.
KV_CACHE = ("copied", "split")
DOLLARS_PER_DEVICE_HOUR = 2.5  # our assumption, where none is given


@dataclass(frozen=True, slots=True)
class Replica:
    """Where a model is served.

    Attributes:
        name: in words.
        bandwidth: bytes/s of one device; devices: that share every layer.
        memory: bytes of all devices together; None when it is not known.
        constants: log constants of the law there; shape [parameters].
        kv_cache: one of `KV_CACHE`.
    """

    name: str
    bandwidth: float
    devices: int
    memory: float | None
    constants: npt.NDArray[np.float64]
    kv_cache: str = KV_CACHE[0]

    def held(self, shape: ModelShape, *, batch: int, context: int, kv_format: str) -> float:
        """Bytes of the caches of `batch` streams, over all devices."""
        parts = self.devices if self.kv_cache == KV_CACHE[0] else 1
        return cached_bytes(shape, parts, batch=batch, context=context, kv_format=kv_format)


def on_device(device: Device, devices: int, stack: str = "") -> Replica:
    """A row of the hardware table, with what published readings say of a stack on it; of any stack, if empty.

    Raises:
        UsageError: devices below 1.
    """
    posterior = hierarchy.fitted()
    mean, _ = posterior.of_group(posterior.place(stack, device.name))
    memory = None if device.memory is None else device.memory * _count(devices)
    return Replica(f"{devices} x {device.name}", device.bandwidth, _count(devices), memory, mean)


def at_bandwidth(bandwidth: float, devices: int) -> Replica:
    """Devices that deliver `bandwidth` bytes/s each, all else as of a system nothing is known about.

    Raises:
        UsageError: a value out of range.
    """
    if not (math.isfinite(bandwidth) and 0 < bandwidth <= 1e16):
        raise UsageError(f"bandwidth is {bandwidth:g} bytes/s, not above 0 and at most 1e16.")
    constants = hierarchy.load_calibration().unseen[0].copy()
    constants[PARAMETERS.index("efficiency")] = 0.0
    return Replica(f"{devices} x {bandwidth / 1e9:g} GB/s", bandwidth, _count(devices), None, constants)


def _count(devices: int) -> int:
    if devices < 1:
        raise UsageError(f"devices is {devices}, not at least 1.")
    return devices


@dataclass(frozen=True, slots=True)
class BatchPoint:
    """One batch size.

    Attributes:
        batch: streams decoded together.
        bytes: bytes of one step, copies of caches included.
        slowdown: time of the step over that of batch 1: how much slower each stream is for its company.
        misled: what the one-term inversion, calibrated on the other model at this batch, makes of the model's active
            bytes, over what it makes of them for one stream.
        tokens_per_s: of one stream.
        dollars_per_million: per million tokens of all streams; None without a price.
        kv_share: share of the memory beside the weights that the caches take; None where memory is not known.
    """

    batch: int
    bytes: float
    slowdown: float
    misled: float
    tokens_per_s: float
    dollars_per_million: float | None
    kv_share: float | None

    def to_json(self) -> dict[str, Any]:
        """The row as the command prints it."""
        return {
            "batch": self.batch,
            "bytes_per_step": round(self.bytes),
            "slowdown": self.slowdown,
            "misled": self.misled,
            "tokens_per_s": self.tokens_per_s,
            "dollars_per_million_tokens": self.dollars_per_million,
            "kv_share": self.kv_share,
        }


def room(shape: ModelShape, place: Replica) -> float:
    """Bytes that the weights leave of a place's memory; infinite where that is not known.

    Raises:
        UsageError: the weights do not fit.
    """
    if place.memory is None:
        return math.inf
    weights = weight_bytes(shape)
    if weights >= place.memory:
        raise UsageError(
            f"{shape.name} takes {weights / 1e9:.0f} GB, {place.name} has {place.memory / 1e9:.0f} GB.",
            advice="Give more --devices or a narrower --format.",
        )
    return place.memory - weights


def largest_batch(shape: ModelShape, place: Replica, *, context: int, kv_format: str = "bf16") -> int | None:
    """Streams of `context` tokens whose caches fit beside the weights; None where nothing bounds them."""
    each = place.held(shape, batch=1, context=context, kv_format=kv_format)
    left = room(shape, place)
    return int(left // each) if each and math.isfinite(left) else None


def curve(
    shape: ModelShape,
    calibrator: ModelShape,
    place: Replica,
    *,
    context: int = 0,
    kv_format: str = "bf16",
    dollars_per_device_hour: float | None = None,
    batches: Iterable[int] = BATCHES,
) -> list[BatchPoint]:
    """Points of the batch curve, up to the largest batch that fits, which is always one of them.

    Args:
        shape: the model; `calibrator` the open model an inversion would be calibrated on; both in the formats served.
        place: where.
        context: tokens in each cache; kv_format: as in `step_traffic`.
        dollars_per_device_hour: price of one device.
        batches: sizes.

    Raises:
        UsageError: a value out of range; weights or one stream's cache that do not fit.
    """
    most = largest_batch(shape, place, context=context, kv_format=kv_format)
    if most == 0:
        raise UsageError(f"{place.name} has no room for one cache of {context} tokens beside {shape.name}.")
    wanted = sorted(
        {b for b in batches if most is None or b <= most} | ({most} if most and most < max(batches) else set())
    )

    def seconds(model: ModelShape, batch: int, seen: int) -> float:
        held = place.held(model, batch=batch, context=seen, kv_format=kv_format)
        step = step_of(model, held, batch=batch, devices=place.devices, bandwidth=place.bandwidth)
        return float(additive.seconds(place.constants, TokenSteps.of([step]))[0])

    own, others = seconds(shape, 1, 0), seconds(calibrator, 1, 0)
    points = []
    for batch in wanted:
        held = place.held(shape, batch=batch, context=context, kv_format=kv_format)
        weights = step_traffic(shape, batch=batch, kv_format=kv_format).weight_bytes
        step = seconds(shape, batch, context)
        speed = 1 / step
        dollars = None
        if dollars_per_device_hour is not None:
            dollars = dollars_per_million(dollars_per_device_hour, place.devices, speed * batch)
        points.append(
            BatchPoint(
                batch=batch,
                bytes=weights + held,
                slowdown=step / own,
                misled=(step / own) / (seconds(calibrator, batch, context) / others),
                tokens_per_s=speed,
                dollars_per_million=dollars,
                kv_share=None if place.memory is None else held / room(shape, place),
            )
        )
    return points


def dollars_per_million(dollars_per_device_hour: float, devices: float, tokens_per_s: float) -> float:
    """Dollars per million tokens of `devices` that make `tokens_per_s` together.

    Raises:
        UsageError: a price or speed of zero, negative, NaN or absurd size.
    """
    if not 0 < dollars_per_device_hour <= MAX_DOLLARS:
        raise UsageError(f"price is {dollars_per_device_hour:g} $ per device-hour, not above 0 and at most 1e6.")
    if not (math.isfinite(tokens_per_s) and tokens_per_s > 0):
        raise UsageError(f"speed is {tokens_per_s:g} tokens/s, not above 0.")
    return dollars_per_device_hour * devices / 3600 / tokens_per_s * 1e6


@dataclass(frozen=True, slots=True)
class Price:
    """A row of `data/prices.csv`: dollars per million tokens; None where no price with a source is known."""

    model: str
    maker: str
    input: float | None
    output: float | None
    date: str
    source: str


def price_list() -> list[Price]:
    """API prices, and the models of whose price no source is known."""
    return [
        Price(
            model=row["model"],
            maker=row["maker"],
            input=float(row["input_dollars_per_million"]) if row["input_dollars_per_million"] else None,
            output=float(row["output_dollars_per_million"]) if row["output_dollars_per_million"] else None,
            date=row["date"],
            source=row["source"],
        )
        for row in csv.DictReader(io.StringIO(packaged("prices.csv")))
    ]


def prices() -> dict[str, tuple[float, float]]:
    """Known API prices by model: dollars per million tokens in and out."""
    return {p.model: (p.input, p.output) for p in price_list() if p.input is not None and p.output is not None}
