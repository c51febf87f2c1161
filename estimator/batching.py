"""What batching does to the speed of each stream, to the price, and to the published inversion.

A step of B streams reads each dense matrix once, E (1 - (1 - k/E)^B) of E experts per layer, and B caches, and each
stream gets one token of it. So a stream's speed depends on total as well as active parameters, and an inversion
calibrated on a model of another sparsity errs by the ratio of the two slowdowns.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moegauge.errors import UsageError
from moegauge.estimator.packaged import packaged
from moegauge.estimator.traffic import step_traffic
from moegauge.shape import ModelShape

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MAX_DOLLARS = 1e6  # per device-hour


@dataclass(frozen=True, slots=True)
class BatchPoint:
    """One batch size.

    Attributes:
        batch: streams decoded together.
        bytes: bytes of one step.
        slowdown: bytes of the step over those of batch 1: how much slower each stream is, floors aside.
        misled: what the one-term inversion, calibrated on the other model at this batch, makes of the model's active
            bytes: estimate over truth.
        tokens_per_s: of one stream; None without a bandwidth.
        dollars_per_million: per million tokens of all streams; None without bandwidth and price.
    """

    batch: int
    bytes: float
    slowdown: float
    misled: float
    tokens_per_s: float | None
    dollars_per_million: float | None

    def to_json(self) -> dict[str, Any]:
        """The row as the command prints it."""
        return {
            "batch": self.batch,
            "bytes_per_step": round(self.bytes),
            "slowdown": self.slowdown,
            "misled": self.misled,
            "tokens_per_s": self.tokens_per_s,
            "dollars_per_million_tokens": self.dollars_per_million,
        }


def curve(
    shape: ModelShape,
    calibrator: ModelShape,
    *,
    context: int = 0,
    kv_format: str = "bf16",
    bandwidth: float | None = None,
    devices: int = 1,
    dollars_per_device_hour: float | None = None,
    batches: Iterable[int] = BATCHES,
) -> list[BatchPoint]:
    """Points of the batch curve.

    Args:
        shape: the model; `calibrator` the open model an inversion would be calibrated on; both in the formats served.
        context: tokens in each cache.
        kv_format: as in `step_traffic`.
        bandwidth: delivered bytes/s of one device.
        devices: that work on one step.
        dollars_per_device_hour: price of one device.
        batches: sizes.

    Raises:
        UsageError: a value out of range.
    """
    if bandwidth is not None and not (math.isfinite(bandwidth) and 0 < bandwidth <= 1e16):
        raise UsageError(f"bandwidth is {bandwidth:g} bytes/s, not above 0 and at most 1e16.")
    if devices < 1:
        raise UsageError(f"devices is {devices}, not at least 1.")

    def bytes_of(model: ModelShape, batch: int, seen: int) -> float:
        return step_traffic(model, batch=batch, context=seen, kv_format=kv_format).total_bytes

    own, others = bytes_of(shape, 1, 0), bytes_of(calibrator, 1, 0)
    points = []
    for batch in batches:
        size = bytes_of(shape, batch, context)
        speed = bandwidth * devices / size if bandwidth is not None else None
        points.append(
            BatchPoint(
                batch,
                size,
                size / own,
                (size / own) / (bytes_of(calibrator, batch, context) / others),
                speed,
                None
                if speed is None or dollars_per_device_hour is None
                else dollars_per_million(dollars_per_device_hour, devices, speed * batch),
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


def prices() -> dict[str, tuple[float, float]]:
    """API prices by model: dollars per million tokens in and out."""
    rows = csv.DictReader(io.StringIO(packaged("prices.csv")))
    return {
        row["model"]: (float(row["input_dollars_per_million"]), float(row["output_dollars_per_million"]))
        for row in rows
    }
