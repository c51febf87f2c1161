"""Where tokens/s = bandwidth / active bytes holds: floors as a share of the step, for every published reading.

A step's floors (launches, barriers, all-reduces) are paid by layer, its bytes by device; so what decides is bytes per
device and layer. Floors are half of the step where those are floor x delivered bandwidth. The formula is judged as it
is used: calibrated on the other models of a system and device, its constant takes their floors in, and it errs where a
model's differ.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from moegauge.estimator import additive, hierarchy
from moegauge.estimator.additive import FLOORS, TokenStep, TokenSteps
from moegauge.estimator.closed import inversion, published
from moegauge.estimator.closed.assumptions import SERVED_DEVICES
from moegauge.estimator.closed.backtest import quantile
from moegauge.estimator.closed.contradictions import Ratio
from moegauge.estimator.closed.fleets import Fleet, fleets
from moegauge.estimator.hierarchy import Case, Posterior
from moegauge.estimator.one_term import effective_bandwidth, invert
from moegauge.estimator.packaged import packaged
from moegauge.estimator.readings import Reading, read_packaged

FILES = ("throughput.csv", "throughput_datacentre_client.csv", "throughput_concurrency.csv", "unseen.csv")
DRAWS = 20_000  # of constants, for the interval of a floor share
ONE_STREAM = 1.5  # a measured concurrency below it counts as one stream
BANDS = (0.0, 0.1, 0.25, 0.5, 1.0)  # of the floor share
# Ratios that the post states beside its table of speeds: slower, faster, ratio, what it is a ratio of.
STATED = (
    ("Opus 4.0", "Opus 4.5", 3.0, "Opus 4.5 about 3x faster than Opus 4, which is 3x larger"),
    ("Opus 4.6", "Sonnet 4.6", 1.5, "Opus 1.5x as large as Sonnet (4.6)"),
    ("Opus 4.5", "Sonnet 4.5", 1.5, "Opus 1.5x as large as Sonnet (4.5)"),
)
# The post's own assumptions, as `moegauge estimate --assume` takes them.
OF_THE_POST = {"precision": 2.0, "speculation": 1.0, "replica": 1.0, "hardware": 1.0, "stack": 1.0}


@dataclass(frozen=True, slots=True)
class MapPoint:
    """One reading of one stream.

    Attributes:
        reading: what was measured.
        bytes_per_device_layer: weights and cache of a step, over devices that share each layer and over layers.
        floor_share: of its step, by the law's constants of its system and device.
        error: tokens/s by the formula, calibrated on the other models of its system and device (on as many devices
            where there are some), over what was measured, less 1; the estimate of its size errs alike. None without
            another model.
    """

    reading: Reading
    bytes_per_device_layer: float
    floor_share: float
    error: float | None

    @property
    def fold(self) -> float:
        """The formula's error as a factor of at least 1; 1 where it is not known."""
        ratio = 1.0 + (self.error or 0.0)
        return max(ratio, 1 / ratio)

    def to_json(self) -> dict[str, Any]:
        """An entry of `cases`."""
        return {
            "system": self.reading.system,
            "device": self.reading.device,
            "devices": self.reading.devices,
            "model": self.reading.model,
            "tokens_per_s": self.reading.tokens_per_s,
            "bytes_per_device_layer": self.bytes_per_device_layer,
            "floor_share": self.floor_share,
            "error_of_formula": self.error,
        }


def readings() -> list[Reading]:
    """Packaged readings of one stream, each result once."""
    rows = [r for name in FILES for r in read_packaged(name) if r.batch <= ONE_STREAM]
    return list({hierarchy.identity(r): r for r in reversed(rows)}.values())[::-1]


def points(rows: Sequence[Reading] | None = None) -> list[MapPoint]:
    """Every reading of `rows`, the packaged ones without.

    Raises:
        ObservationError: a packaged file is damaged.
    """
    rows = readings() if rows is None else rows
    cases = [hierarchy.case(r) for r in rows]
    posterior = hierarchy.fitted()
    constants = {c.group: posterior.of_group(c)[0] for c in cases}
    groups: dict[str, list[tuple[Reading, Case]]] = defaultdict(list)
    for reading, case in zip(rows, cases, strict=True):
        groups[case.group].append((reading, case))
    found = []
    for reading, case in zip(rows, cases, strict=True):
        others = [r for r, c in groups[case.group] if c.model != case.model]
        alike = [r for r in others if r.devices == reading.devices] or others
        error = None
        if alike:
            mean = effective_bandwidth([(r.bytes_per_token, r.tokens_per_s) for r in alike])
            error = invert(mean, reading.tokens_per_s) / reading.bytes_per_token - 1
        found.append(
            MapPoint(reading, device_layer_bytes(case.step), floor_share(constants[case.group], case.step), error)
        )
    return found


def device_layer_bytes(step: TokenStep) -> float:
    """Bytes of weights and cache that each device reads of each layer."""
    weights = (step.dense * step.dense_bits + step.routed * step.routed_bits) / 8
    return (weights + step.kv_bytes) / step.devices / step.layers


def floor_share(constants: Any, step: TokenStep) -> float:
    """Share of a step that does not depend on bytes, by log constants of the law; shape [parameters]."""
    terms = {name: float(value[0]) for name, value in additive.terms_s(constants, TokenSteps.of([step])).items()}
    return sum(terms[name] for name in FLOORS) / sum(terms.values())


def floor_interval(posterior: Posterior, case: Case) -> tuple[float, float]:
    """80 % of the floor share of a reading's step: its group's constants as far as they are known, and what the model's
    own floor may be of them."""
    import numpy as np

    mean, covariance = posterior.of_group(case)
    draws = np.random.default_rng(0).standard_normal((DRAWS, len(mean) + 1))
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(mean)))
    terms = additive.terms_s(mean + draws[:, :-1] @ root.T, TokenSteps.of([case.step]))
    floors = np.sum([terms[name] for name in FLOORS], axis=0) * np.exp(posterior.spreads.model_floor * draws[:, -1])
    rest = np.sum([terms[name] for name in additive.TERMS if name not in FLOORS], axis=0)
    # Of draws only those count whose step takes the time that was seen.
    off = (np.log(floors + rest) - case.log_seconds) / math.sqrt(posterior.own_variance(case))
    weight = np.exp(-0.5 * np.square(off))
    share = floors / (floors + rest)
    order = np.argsort(share)
    mass = np.cumsum(weight[order]) / weight.sum()
    low, high = (float(share[order][np.searchsorted(mass, q)]) for q in (0.1, 0.9))
    return low, high


def bands(found: Sequence[MapPoint]) -> list[dict[str, Any]]:
    """The formula's error by floor share: `floor_share` [low, high], `n`, `judged`, `median_fold`, `p80_fold`,
    `bytes_per_device_layer` (median); folds are None where nothing is judged."""
    rows = []
    for low, high in pairwise(BANDS):
        part = [p for p in found if low <= p.floor_share < high]
        folds = [p.fold for p in part if p.error is not None]
        rows.append(
            {
                "floor_share": [low, high],
                "n": len(part),
                "judged": len(folds),
                "median_fold": quantile(folds, 0.5) if folds else None,
                "p80_fold": quantile(folds, 0.8) if folds else None,
                "bytes_per_device_layer": median(p.bytes_per_device_layer for p in part) if part else None,
            }
        )
    return rows


def half_bytes(posterior: Posterior, stack: str, device: str, bandwidth: float, devices: int) -> float:
    """Bytes per device and layer at which floors are half of a step of an MoE at 8 bits, one stream, no context."""
    mean, _ = posterior.of_group(posterior.place(stack, device))
    step = TokenStep(
        layers=1.0,
        dense=0.45 * devices * 1e6,
        routed=0.55 * devices * 1e6,
        expansion=32.0,
        dense_bits=8.0,
        routed_bits=8.0,
        kv_bytes=0.0,
        streams=1.0,
        devices=float(devices),
        bandwidth=bandwidth,
        moe=1.0,
        recurrent=0.0,
        quantised=0.0,
    )
    share = floor_share(mean, step)
    return 1e6 * share / (1 - share)


# Systems whose half-way point is printed: stack, device as readings name it, bytes/s, devices.
MARKED = (
    ("SGLang", "B200", 8e12, 8),
    ("SGLang", "MI300X", 5.3e12, 8),
    ("llama.cpp", "NVIDIA RTX 4090", 1.008e12, 1),
    ("llama.cpp", "Apple M2 Ultra", 0.8e12, 1),
)


def halves() -> list[dict[str, Any]]:
    """Where floors are half of the step, for `MARKED`."""
    posterior = hierarchy.fitted()
    return [
        {
            "system": stack,
            "device": device,
            "devices": devices,
            "bytes_per_device_layer": half_bytes(posterior, stack, device, bandwidth, devices),
        }
        for stack, device, bandwidth, devices in MARKED
    ]


def stacks() -> list[dict[str, Any]]:
    """One model at several places: what the formula calls its bandwidth, and what that makes of the others.

    `effective_bandwidth` is bytes per token x tokens/s; `read_as` the active parameters the formula would read off
    this speed with the constant of the first row; `floor_share` by the law, None where no reading tells of the stack.
    """
    from moegauge import models

    shape = models.load("deepseek-v3")
    active, size = shape.active_without_embedding, shape.bytes_per_token
    posterior = hierarchy.fitted()
    known = {(r.model, r.device, r.devices, r.tokens_per_s): hierarchy.case(r) for r in readings()}
    rows: list[dict[str, Any]] = []
    for row in csv.DictReader(io.StringIO(packaged("stacks.csv"))):
        speed = float(row["tokens_per_s"])
        case = known.get((row["model"], row["device"], int(row["n_devices"]), speed))
        first = rows[0]["tokens_per_s"] if rows else speed
        rows.append(
            {
                "model": row["model"],
                "system": row["system"],
                "device": row["device"],
                "devices": int(row["n_devices"]),
                "tokens_per_s": speed,
                "draft_tokens": int(row["draft_tokens"]),
                "evidence": row["evidence"],
                "source": row["source"],
                "effective_bandwidth": size * speed,
                "read_as": active * first / speed,
                "floor_share": None if case is None else floor_share(posterior.of_group(case)[0], case.step),
                "floor_share_80": None if case is None else list(floor_interval(posterior, case)),
            }
        )
    return rows


def contradictions() -> list[dict[str, Any]]:
    """Ratios the post states against those of its own speeds."""
    speeds = {m["model"]: m["tokens_per_s"] for m in published.opus_2026_03()["models"]}
    return [{"stated": said, **Ratio.of(speeds, slow, fast, ratio).to_json()} for slow, fast, ratio, said in STATED]


def post(seed: int = 0) -> dict[str, Any]:
    """The post's calibration and estimates on the map, and its ranges under the law.

    Bytes per device are over SERVED_DEVICES devices, which the post does not know either; floors are those the law
    leaves open for a provider, weighed by how well its open models agree.
    """
    fleet: Fleet = fleets(None)[0][0]
    document = published.opus_2026_03()
    free = inversion.estimate(fleet.open, fleet.closed, seed=seed)
    held = {e.model: e for e in inversion.estimate(fleet.open, fleet.closed, seed=seed, fixed=OF_THE_POST)}
    layers = math.exp(hierarchy.depth(True).log_layers(math.inf))
    shares = inversion.open_floor_shares(fleet.open, seed=seed)
    calibration = []
    for row in document["calibration"]:
        served = next(r for r in fleet.open if r.model == row["model"])
        assert served.shape is not None
        calibration.append(
            {
                "model": row["model"],
                "tokens_per_s": row["tokens_per_s"],
                "bytes_per_device_layer": row["bytes_per_token"] / SERVED_DEVICES / len(served.shape.layers),
                "floor_share": shares[row["model"]],
            }
        )
    estimates = []
    for row in document["models"]:
        ours = next(e for e in free if e.model == row["model"])
        low, high = row["bytes_per_token"]
        estimates.append(
            {
                "model": row["model"],
                "tokens_per_s": row["tokens_per_s"],
                "bytes_per_device_layer": (low + high) / 2 / SERVED_DEVICES / layers,
                "floor_share": ours.floor_share,
                "published_fp8": row["active"]["fp8"],
                "law_at_its_assumptions": held[row["model"]].active,
                "law": ours.active,
            }
        )
    return {"devices": SERVED_DEVICES, "layers": layers, "calibration": calibration, "estimates": estimates}
