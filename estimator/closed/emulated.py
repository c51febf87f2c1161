"""The back-test on this kit's own records: each emulated model from the others on the same device.

Ours is `estimator.law`, fitted without the model and inverted; its depth is not told and taken as the median of the
others'. The published formula is calibrated on the other models in the same format, where there are any. Both estimate
the bytes a step reads, which at a known precision is active parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from moegauge.errors import ObservationError
from moegauge.estimator import law, one_term
from moegauge.estimator.observation import Observation
from moegauge.estimator.predict import read_record

Z80 = 1.28155  # half-width of the 80 % interval in standard deviations


@dataclass(frozen=True, slots=True)
class EmulatedTrial:
    """One decode case estimated as if its model were closed.

    Attributes:
        observation: the case.
        published, measured: estimated bytes of its step.
        deviation: standard deviation of log(measured).
    """

    observation: Observation
    published: float
    measured: float
    deviation: float

    def to_json(self) -> dict[str, Any]:
        """The trial as the command prints it."""
        truth = self.observation.bytes
        spread = math.exp(Z80 * self.deviation)
        return {
            "model": self.observation.model,
            "format": self.observation.format,
            "bytes": truth,
            "published": self.published,
            "published_fold": max(self.published / truth, truth / self.published),
            "measured": self.measured,
            "measured_fold": max(self.measured / truth, truth / self.measured),
            "interval_80": [self.measured / spread, self.measured * spread],
        }


def trials(record: Path) -> list[EmulatedTrial]:
    """Trials of a record's decode cases at batch 1 without context.

    Raises:
        RecordError: the file is no record.
        ObservationError: fewer than two models.
    """
    rows = [o for o in read_record(record) if o.batch == 1 and o.context == 0]
    names = sorted({o.model for o in rows})
    if len(names) < 2:
        raise ObservationError(
            f"{record}: decode cases at batch 1 of {len(names)} model(s), at least two are needed.",
            advice="Measure another model with moegauge bench decode.",
        )
    found: list[EmulatedTrial] = []
    for name in names:
        others = [o for o in rows if o.model != name]
        fitted = law.fit(others)
        found.extend(_trial(o, others, fitted) for o in rows if o.model == name)
    return found


def _trial(target: Observation, others: Sequence[Observation], fitted: law.Law) -> EmulatedTrial:
    alike = [o for o in others if o.format == target.format] or others
    # Relative to the roof beside each, so that a device whose bandwidth drifts is held against neither method.
    constant = one_term.effective_bandwidth([(o.bytes / o.roof_bytes_per_s, 1 / o.seconds) for o in alike])
    published = one_term.invert(constant, 1 / target.seconds) * target.roof_bytes_per_s
    floor = fitted.floor_per_kernel_s * median(o.kernels for o in others)
    floor += fitted.floor_per_layer_s * median(o.layers for o in others)
    rate = fitted.bandwidth_fraction * fitted.format_efficiency.get(target.format, 1.0) * target.roof_bytes_per_s
    # A step shorter than the floors of deeper models still read something.
    streaming = max(target.seconds - floor, 0.05 * target.seconds)
    error = fitted.predict(target).log_standard_error * target.seconds / streaming
    return EmulatedTrial(target, published, streaming * rate, error)
