"""Read served speeds: tokens/s of a provider's models, open ones to calibrate on, closed ones to estimate.

A CSV with columns `model, provider, tokens_per_s, date, metric`, and where wanted `usable, tier, shape, source, note`.
`shape` names the ModelShape of an open model (a shipped name or a JSON file); without it a few released names are
known. What cannot be compared is refused: see `Fleet.why_not`.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from moegauge import models
from moegauge.errors import MoegaugeError, ObservationError
from moegauge.estimator.packaged import has_packaged, packaged
from moegauge.estimator.readings import Skipped, table, text_of
from moegauge.shape import ModelShape

COLUMNS = ("model", "provider", "tokens_per_s", "date", "metric")
MIN_SPEED, MAX_SPEED = 0.01, 20_000.0  # tokens/s of one stream
MAX_DAYS_APART = 45  # the same weights at one provider were served at 85 and 50 tokens/s one month apart

# Released names whose shapes ship with the package.
ALIASES = {
    "deepseek v3": "deepseek-v3",
    "deepseek v3.1": "deepseek-v3",
    "glm-4.7": "glm-4.7",
    "kimi k2": "kimi-k2",
    "kimi k2 thinking": "kimi-k2-thinking",
    "gpt-oss-120b": "gpt-oss-120b",
    "gpt-oss-20b": "gpt-oss-20b",
    "mixtral 8x7b": "mixtral-8x7b",
    "llama 3.3 70b": "llama-3.3-70b",
}
_FAST = re.compile(r"\bfast\b|latency[- ]optimi[sz]ed|lightning|turbo mode", re.IGNORECASE)
_WHOLE = re.compile(r"whole request|end[- ]to[- ]end|router average|latency|wall", re.IGNORECASE)
_ROUTER = re.compile(r"openrouter|router", re.IGNORECASE)
_UNUSABLE = frozenset({"no", "range", "uncertain", "vendor", "speculative", "experimental"})


@dataclass(frozen=True, slots=True)
class Served:
    """One served speed.

    Attributes:
        line: line of the file.
        model, provider: as given.
        tokens_per_s: of one stream.
        day: when it was read.
        metric: what was measured: `per token`, `whole request` or `router`.
        tier: `standard` or `fast`.
        shape: the model, when it is open.
        source: where it was read; empty where the file does not say.
    """

    line: int
    model: str
    provider: str
    tokens_per_s: float
    day: date
    metric: str
    tier: str
    shape: ModelShape | None
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """An entry of the `observations` of `moegauge estimate --json`."""
        return {
            "model": self.model,
            "provider": self.provider,
            "tokens_per_s": self.tokens_per_s,
            "date": self.day.isoformat(),
            "metric": self.metric,
            "tier": self.tier,
            "shape": self.shape.name if self.shape else None,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class Fleet:
    """Speeds of one provider.

    Attributes:
        provider: its name.
        open, closed: rows with and without a known model.
    """

    provider: str
    open: tuple[Served, ...]
    closed: tuple[Served, ...]

    @property
    def rows(self) -> tuple[Served, ...]:
        """All rows."""
        return self.open + self.closed

    def why_not(self) -> str:
        """Why its closed models cannot be identified; empty when they can."""
        names = {row.shape.name for row in self.open if row.shape}
        if len(names) < 2:
            return f"{self.provider}: {len(names)} calibration model(s), at least two open models are needed"
        metrics = sorted({row.metric for row in self.rows})
        if len(metrics) > 1:
            return f"{self.provider}: speeds of different kinds are mixed ({', '.join(metrics)})"
        tiers = sorted({row.tier for row in self.rows})
        if len(tiers) > 1:
            return f"{self.provider}: fast and standard tiers are mixed"
        days = sorted(row.day for row in self.rows)
        apart = (days[-1] - days[0]).days
        if apart > MAX_DAYS_APART:
            return f"{self.provider}: observations are {apart} days apart, more than {MAX_DAYS_APART}"
        if not self.closed:
            return f"{self.provider}: no closed model to estimate"
        return ""


def fleets(path: Path | None) -> tuple[list[Fleet], list[Skipped]]:
    """Speeds of a CSV file by provider; the preset's file without a path.

    Raises:
        ObservationError: the file cannot be read, or a cell holds nonsense, by line and column.
    """
    where = "packaged opus-2026-03.csv" if path is None else str(path)
    text = packaged("opus-2026-03.csv") if path is None else text_of(path)
    by_provider: dict[str, list[Served]] = defaultdict(list)
    skipped = []
    for line, row in table(text, COLUMNS, where):
        usable = row.get("usable", "yes").lower() or "yes"
        if usable in _UNUSABLE:
            skipped.append(Skipped(line, row["model"], f"usable is '{usable}'"))
            continue
        day = _day(row["date"])
        if day is None:
            skipped.append(Skipped(line, row["model"], f"date '{row['date']}' names no month"))
            continue
        served = _served(where, line, row, day)
        by_provider[served.provider].append(served)
    if not by_provider:
        first = f" Line {skipped[0].line}: {skipped[0].reason}." if skipped else ""
        raise ObservationError(f"{where}: no usable row.{first}", advice="See docs/estimating.md for the columns.")
    return [_fleet(provider, rows) for provider, rows in by_provider.items()], skipped


def _fleet(provider: str, rows: Sequence[Served]) -> Fleet:
    return Fleet(provider, tuple(r for r in rows if r.shape), tuple(r for r in rows if not r.shape))


def _served(where: str, line: int, row: dict[str, str], day: date) -> Served:
    for column in ("model", "provider"):
        if not row[column]:
            raise ObservationError(f"{where}: line {line}, column {column}: empty.")
    text = row["tokens_per_s"]
    try:
        speed = float(text)
    except ValueError:
        raise ObservationError(f"{where}: line {line}, column tokens_per_s: '{text}' is not a number.") from None
    if not (math.isfinite(speed) and MIN_SPEED <= speed <= MAX_SPEED):
        raise ObservationError(
            f"{where}: line {line}, column tokens_per_s: {text} is not between {MIN_SPEED:g} and {MAX_SPEED:g}."
        )
    metric = row["metric"]
    kind = "whole request" if _WHOLE.search(metric) else "router" if _ROUTER.search(metric) else "per token"
    tier = row.get("tier", "").lower() or ("fast" if _FAST.search(f"{row['model']} {row['provider']}") else "standard")
    name = row.get("shape", "") or ALIASES.get(row["model"].lower(), "")
    try:
        shape = _shape(name) if name else None
    except MoegaugeError as error:
        raise ObservationError(f"{where}: line {line}, column shape: {error}") from None
    return Served(line, row["model"], row["provider"], speed, day, kind, tier, shape, row.get("source", ""))


def _shape(name: str) -> ModelShape:
    """A shipped shape, one packaged beside the readings, or whatever else names one."""
    beside = f"{name}.shape.json"
    if has_packaged(beside):
        return ModelShape.from_json(json.loads(packaged(beside)), name)
    return models.resolve(name)


def _day(text: str) -> date | None:
    """A date to the day or the month (its 15th); None for anything vaguer."""
    found = re.fullmatch(r"(\d{4})-(\d{2})(?:-(\d{2}))?", text.strip())
    if not found:
        return None
    try:
        return date(int(found[1]), int(found[2]), int(found[3] or 15))
    except ValueError:
        return None
