"""Check public claims about closed models: what would have to be true for each to hold.

A claim fixes active or total parameters (or sparsity, precision, server). Everything it leaves open is drawn from wide,
flat ranges (`RANGES`): dense share, experts per chosen one, precision, batch, speculation, context, depth, replica.
A point is consistent when all of these hold:

    speed      bytes of its step within 1.96 standard deviations of what `condition` says the observed tokens/s allow
    floors     those of the open models fit into their steps
    bandwidth  those bytes are no more than all devices of the server can read in the step
    memory     weights in at most half of a server (or the claimed fraction, or with the claimed bytes left over)
    price      device-hours per token at most the API price of output tokens

The region is the range of each unknown over the consistent points. With none, the nearest miss is the point that
breaks the limits by the smallest factor, and which limits those are.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moegauge.errors import UnknownNameError
from moegauge.estimator.additive import coverage
from moegauge.estimator.batching import DOLLARS_PER_DEVICE_HOUR, dollars_per_million, prices
from moegauge.estimator.closed.assertions import KINDS
from moegauge.estimator.closed.assumptions import PRECISIONS
from moegauge.estimator.closed.condition import COLUMNS_PER_MODEL, REPLICA_EXPONENT, Condition, kv_bytes, served_factors
from moegauge.estimator.closed.fleets import fleets
from moegauge.estimator.closed.points import quasi_random
from moegauge.estimator.packaged import packaged
from moegauge.units import GB

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

POINTS = 1 << 14
# Flat (log-flat where wide) ranges of what a claim leaves open.
RANGES: dict[str, tuple[float, float]] = {
    "dense_share": (0.1, 0.9),
    "expansion": (1.0, 300.0),  # experts per chosen one
    "batch": (1.0, 256.0),  # streams
    "speculation": (1.0, 3.0),  # tokens per step
    "context": (500.0, 32_000.0),  # tokens
    "layers": (40.0, 130.0),
    "replica": (0.5, 8.0),  # devices over those of the calibration models
    "hardware": (0.5, 2.0),  # bandwidth of one of them over that of theirs
    "floor": (10.0, 300.0),  # microseconds a layer
    "kv": (300.0, 2500.0),  # elements per layer and token
}
ACTIVE_RANGE = (1e9, 3e12)  # where a claim leaves active parameters open
MEMORY_FRACTION = 0.5  # of a server that an efficient deployment fills with weights
SPEED_DEVIATIONS = 1.96


@dataclass(frozen=True, slots=True)
class Server:
    """A machine that holds one copy of the weights.

    Attributes:
        name, devices: what it is; memory, bandwidth: bytes and bytes/s of all devices together.
        drawn: false of machines of the past, which count only where a claim names them.
    """

    name: str
    devices: int
    memory: float
    bandwidth: float
    drawn: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a claim needs.

    Attributes:
        id, text, subject: of the claim.
        limits: limits that could be applied: `speed`, `bandwidth`, `memory`, `price`, `sparsity`.
        consistent: share of the points that meet all of them.
        region: range of each unknown over those points (5 to 95 %), precisions and servers as shares; empty if none.
        nearest_miss: without consistent points: the closest point and by what factor it breaks each limit.
        note: what to know beside.
        decided: false where what is known says neither.
    """

    id: str
    text: str
    subject: str
    limits: tuple[str, ...]
    consistent: float
    region: dict[str, Any]
    nearest_miss: dict[str, Any] | None
    note: str = ""
    decided: bool = True

    @property
    def possible(self) -> bool:
        """True when some point meets every limit."""
        return self.consistent > 0

    def to_json(self) -> dict[str, Any]:
        """The verdict as the command prints it."""
        return {
            "id": self.id,
            "claim": self.text,
            "subject": self.subject,
            "possible": self.possible,
            "decided": self.decided,
            "consistent_share": self.consistent,
            "limits": list(self.limits),
            "region": self.region,
            "nearest_miss": self.nearest_miss,
            "note": self.note,
        }


def servers() -> list[Server]:
    """The packaged servers."""
    rows = csv.DictReader(io.StringIO(packaged("servers.csv")))
    return [
        Server(
            name=row["name"],
            devices=int(row["devices"]),
            memory=float(row["memory_GB"]) * GB,
            bandwidth=float(row["bandwidth_GBps"]) * GB,
            drawn=row["drawn"] == "yes",
        )
        for row in rows
    ]


def ledger() -> list[dict[str, Any]]:
    """The claims, as data."""
    return list(json.loads(packaged("claims.json"))["claims"])


def adjudicate(name: str | None = None, *, seed: int = 0, own: Mapping[str, Any] | None = None) -> list[Verdict]:
    """Verdicts on the claim called `name`, or on all.

    Args:
        name: a claim's id.
        seed: of the quasi-random points.
        own: fields that stand in for the claim's: `server`, `precision`, `dollars_per_device_hour`.

    Raises:
        UnknownNameError: no claim, server or precision of that name.
        UsageError: a price out of range.
    """
    claims = ledger()
    if name is not None:
        chosen = [c for c in claims if c["id"] == name]
        if not chosen:
            raise UnknownNameError("claim", name, [c["id"] for c in claims])
        claims = chosen
    own = own or {}
    for field, kind, known in (
        ("server", "server", [s.name for s in servers()]),
        ("precision", "precision", list(PRECISIONS)),
    ):
        if field in own and own[field] not in known:
            raise UnknownNameError(kind, own[field], known)
    return [_answer(claim) if "kind" in claim else _judge({**claim, **own}, seed) for claim in claims]


def _answer(claim: Mapping[str, Any]) -> Verdict:
    """A claim that fixes no size (`assertions`)."""
    found = KINDS[claim["kind"]](claim)
    holds = found.broken <= 1.0
    return Verdict(
        claim["id"],
        claim["text"],
        claim["subject"],
        (found.limit,),
        1.0 if holds else 0.0,
        (found.figures or {"found": "nothing"}) if holds else {},
        None if holds else {**found.figures, "broken": {found.limit: found.broken}},
        "; ".join(filter(None, (found.note, claim.get("note", "")))),
        found.decided,
    )


def _draw(claim: Mapping[str, Any], seed: int) -> dict[str, Array]:
    import numpy as np

    names = list(RANGES)
    u = quasi_random(POINTS, len(names) + 4, seed)
    drawn = {}
    for i, name in enumerate(names):
        low, high = RANGES[name]
        wide = high / low > 10
        drawn[name] = low * (high / low) ** u[:, i] if wide else low + (high - low) * u[:, i]
    n = len(names)

    def within(values: tuple[float, float] | list[float], column: int) -> Array:
        low, high = values
        return np.asarray(low * (high / low) ** u[:, column])

    if "expansion" in claim:
        drawn["expansion"] = within(claim["expansion"], n)
    share = drawn["dense_share"]
    if "active" in claim:
        drawn["active"] = within(claim["active"], n)
        if "total" in claim:
            drawn["total"] = within(claim["total"], n + 1)
            drawn["expansion"] = (drawn["total"] / drawn["active"] - share) / (1 - share)
    elif "total" in claim:
        drawn["total"] = within(claim["total"], n + 1)
        drawn["active"] = drawn["total"] / (share + (1 - share) * drawn["expansion"])
    else:
        drawn["active"] = within(ACTIVE_RANGE, n)
    drawn["total"] = drawn["active"] * (share + (1 - share) * drawn["expansion"])
    options = list(PRECISIONS)
    fixed = claim.get("precision")
    drawn["precision"] = (
        np.full(POINTS, float(options.index(fixed)))
        if fixed
        else np.minimum(np.floor(u[:, n + 2] * len(options)), len(options) - 1)
    )
    machines = servers()
    named = [i for i, s in enumerate(machines) if s.name == claim.get("server")]
    eligible = np.array(named or [i for i, s in enumerate(machines) if s.drawn], dtype=float)
    drawn["server"] = eligible[np.minimum((u[:, n + 3] * len(eligible)).astype(int), len(eligible) - 1)]
    return drawn


def _judge(claim: Mapping[str, Any], seed: int) -> Verdict:
    import numpy as np

    drawn = _draw(claim, seed)
    machines = servers()
    document = json.loads(packaged("claims.json"))
    fleet = fleets(None)[0][0]
    on_fleet = {row.model: row.tokens_per_s for row in fleet.closed}
    subject = claim["subject"]
    speed = on_fleet.get(subject) or document["speeds"].get(subject, {}).get("tokens_per_s")
    per = np.array(list(PRECISIONS.values()))[drawn["precision"].astype(int)]
    # By what factor each limit is broken; at most 1 is kept.
    broken: dict[str, Array] = {"sparsity": np.maximum(1.0 / np.maximum(drawn["expansion"], 1e-3), 1.0)}
    if speed:
        known = fleet.open if subject in on_fleet else ()
        u = quasi_random(POINTS, COLUMNS_PER_MODEL * len(fleet.open), seed + 1)
        condition = Condition.on(known, drawn["batch"], drawn["context"], drawn["floor"], u)
        allowed, deviation = condition.allowed_bytes(drawn["speculation"] / speed, drawn["layers"])
        allowed = allowed * drawn["replica"] ** REPLICA_EXPONENT * drawn["hardware"]
        if known:
            broken["floors"] = np.maximum(condition.excess, 1.0)
        each = (
            drawn["dense_share"] * per[:, 0]
            + (1 - drawn["dense_share"])
            * per[:, 1]
            * coverage(drawn["expansion"], drawn["batch"])
            * served_factors()[2]
        )
        cache = kv_bytes(drawn["kv"] * drawn["layers"], drawn["batch"], drawn["context"])
        step = drawn["active"] * each + cache
        off = np.abs(np.log(step / allowed)) - SPEED_DEVIATIONS * deviation
        broken["speed"] = np.exp(np.maximum(off, 0.0))
        rate = np.array([s.bandwidth for s in machines])[drawn["server"].astype(int)]
        broken["bandwidth"] = np.maximum(step * speed / drawn["speculation"] / rate, 1.0)
    dense = drawn["active"] * drawn["dense_share"]
    weights = dense * per[:, 0] + (drawn["total"] - dense) * per[:, 1]
    memory = np.array([s.memory for s in machines])[drawn["server"].astype(int)]
    room = np.minimum(memory * claim.get("fraction", MEMORY_FRACTION), memory - claim.get("free_bytes", 0.0))
    broken["memory"] = np.maximum(weights / room, 1.0)
    price = prices().get(subject)
    if price and speed:
        count = np.array([s.devices for s in machines])[drawn["server"].astype(int)]
        cost = (
            dollars_per_million(claim.get("dollars_per_device_hour", DOLLARS_PER_DEVICE_HOUR), 1, speed)
            * count
            / drawn["batch"]
        )
        broken["price"] = np.maximum(cost / price[1], 1.0)
    total = np.prod(np.stack(list(broken.values())), axis=0)
    good = total <= 1.0 + 1e-12
    note = claim.get("note", "")
    if speed and subject not in on_fleet:
        note = (note + "; " if note else "") + "no open model of the same provider and date: its speed says little"
    elif not speed:
        note = (note + "; " if note else "") + "no usable speed is published: only memory can speak"
    return Verdict(
        claim["id"],
        claim["text"],
        subject,
        tuple(name for name in broken if name != "sparsity" or "total" in claim),
        float(np.mean(good)),
        _region(drawn, good, machines) if good.any() else {},
        None if good.any() else _nearest(drawn, total, broken, machines),
        note,
    )


def _region(drawn: Mapping[str, Array], good: Array, machines: list[Server]) -> dict[str, Any]:
    import numpy as np

    region: dict[str, Any] = {
        name: [float(np.quantile(drawn[name][good], q)) for q in (0.05, 0.95)] for name in ("active", "total", *RANGES)
    }
    for name, labels in (("precision", list(PRECISIONS)), ("server", [s.name for s in machines])):
        counts = np.bincount(drawn[name][good].astype(int), minlength=len(labels))
        region[name] = {label: float(c / counts.sum()) for label, c in zip(labels, counts, strict=True) if c}
    return region


def _nearest(
    drawn: Mapping[str, Array], total: Array, broken: Mapping[str, Array], machines: list[Server]
) -> dict[str, Any]:
    import numpy as np

    best = int(np.argmin(total))
    point: dict[str, Any] = {name: float(drawn[name][best]) for name in ("active", "total", *RANGES)}
    point["precision"] = list(PRECISIONS)[int(drawn["precision"][best])]
    point["server"] = machines[int(drawn["server"][best])].name
    point["broken"] = {name: float(v[best]) for name, v in broken.items() if not math.isclose(v[best], 1.0)}
    return point
