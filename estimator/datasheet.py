"""Predict a device that was never measured: the law's constants learned from published readings.

    seconds = layers * floor_per_layer + all_reduces * log2(devices) * all_reduce
            + bytes / (devices * bandwidth * share * narrow^[under 8 bits] * moe^[MoE])

Five constants, fitted by robust least squares on log(seconds) over one half of the packaged readings and judged on the
other. The halves are whole groups (system and device) told apart by the parity of a SHA-256 of their names: a split
that was fixed before any fit and cannot be chosen. Readings of models whose depth is not in `data/layers.csv`, of
unverified evidence, and of layers split over devices are in neither half.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from moegauge.estimator.law import Prediction
from moegauge.estimator.packaged import packaged
from moegauge.estimator.readings import Reading, read
from moegauge.units import GB

ALL_REDUCES_PER_LAYER = 2  # one behind attention, one behind the MLP


@dataclass(frozen=True, slots=True)
class DatasheetLaw:
    """Constants of the law above.

    Attributes:
        share: of the datasheet bandwidth that bytes of 8 bits and more stream at.
        narrow, moe: factors on it below 8 bits per weight, and for an MoE.
        floor_per_layer_s, all_reduce_s: seconds per layer, and per all-reduce and doubling of the devices.
        spread: standard deviation of log(measured / predicted) over the groups that were not fitted.
        readings, groups: how many it was fitted to.
    """

    share: float
    narrow: float
    moe: float
    floor_per_layer_s: float
    all_reduce_s: float
    spread: float = math.nan
    readings: int = 0
    groups: int = 0

    def predict(
        self, *, size: float, bandwidth: float, layers: int, bits: float, moe: bool, devices: int = 1
    ) -> Prediction:
        """Time of one step.

        Args:
            size: bytes the step reads.
            bandwidth: datasheet bandwidth of one device, bytes/s.
            layers: decoder layers.
            bits: mean bits per weight, scales included.
            moe: whether experts are gathered.
            devices: tensor-parallel devices.
        """
        rate = bandwidth * devices * self.share * (self.narrow if bits < 7.5 else 1.0) * (self.moe if moe else 1.0)
        terms = {
            "layers": layers * self.floor_per_layer_s,
            "communication": ALL_REDUCES_PER_LAYER * layers * math.log2(devices) * self.all_reduce_s,
            "bytes": size / rate,
        }
        return Prediction(sum(terms.values()), self.spread, terms)


def depths() -> dict[str, int]:
    """Decoder layers of the models in `data/layers.csv`, by `Reading.key`."""
    table = csv.DictReader(io.StringIO(packaged("layers.csv")))
    return {_key(row["model"]): int(row["layers"]) for row in table}


def _key(model: str) -> str:
    blank = Reading(0, "", "", 1, 1.0, model, 1.0, 1.0, "", 8.0, 0.0, 1.0)
    return blank.key


def in_training_half(reading: Reading) -> bool:
    """Which half a reading's group fell into."""
    digest = hashlib.sha256("|".join(reading.group).encode()).digest()
    return digest[0] % 2 == 0


def usable(readings: Sequence[Reading]) -> list[tuple[Reading, int]]:
    """Readings the law can be fitted to or judged on, with their models' layers."""
    known = depths()
    return [(r, known[r.key]) for r in readings if r.key in known and not r.unverified and not r.pipelined]


def predict_reading(law: DatasheetLaw, reading: Reading, layers: int) -> Prediction:
    """What the law says of a reading's step."""
    return law.predict(
        size=reading.bytes_per_token,
        bandwidth=reading.bandwidth,
        layers=layers,
        bits=reading.bits,
        moe=reading.moe,
        devices=reading.devices,
    )


def fit(rows: Sequence[tuple[Reading, int]]) -> DatasheetLaw:
    """Robust least squares on log(seconds); constants are drawn weakly (log deviation 1) to round guesses."""
    import numpy as np
    from scipy.optimize import least_squares

    # share, narrow, moe, us per layer, us per all-reduce and doubling
    guess = np.log([0.75, 0.85, 0.8, 30.0, 5.0])

    def law(x: np.ndarray) -> DatasheetLaw:
        share, narrow, moe, floor, reduce = (float(v) for v in np.exp(x))
        return DatasheetLaw(share, narrow, moe, floor * 1e-6, reduce * 1e-6)

    def residuals(x: np.ndarray) -> np.ndarray:
        fitted = law(x)
        data = [math.log(predict_reading(fitted, r, n).seconds / r.seconds) / 0.15 for r, n in rows]
        return np.concatenate([np.array(data), x - guess])

    solved = least_squares(residuals, guess, loss="soft_l1")
    return replace(law(solved.x), readings=len(rows), groups=len({r.group for r, _ in rows}))


@lru_cache(maxsize=1)
def packaged_law() -> DatasheetLaw:
    """The law of the training half, its spread that of the other half."""
    rows = usable(read()[0])
    law = fit([row for row in rows if in_training_half(row[0])])
    errors = [math.log(r.seconds / predict_reading(law, r, n).seconds) for r, n in judgement_rows()]
    return replace(law, spread=math.sqrt(sum(e * e for e in errors) / len(errors)))


def judgement_rows() -> list[tuple[Reading, int]]:
    """Readings of the half the law has not seen, with their models' layers."""
    return [row for row in usable(read()[0]) if not in_training_half(row[0])]


def judgement() -> list[tuple[Reading, float]]:
    """Readings of the half the law has not seen, with predicted over measured tokens/s, minus 1."""
    law = packaged_law()
    return [(r, r.seconds / predict_reading(law, r, n).seconds - 1.0) for r, n in judgement_rows()]
