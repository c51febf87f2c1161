"""Turn records of `moegauge bench` into the observations the law is fitted to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from moegauge.errors import MoegaugeError, RecordError
from moegauge.estimator.cache_costs import CacheCosts
from moegauge.estimator.observation import Observation
from moegauge.estimator.traffic import format_macs
from moegauge.models.catalogue import find
from moegauge.record import Case, Record, load
from moegauge.shape import ModelShape

Setup = tuple[str, str, int]


def setup(case: Case) -> Setup:
    """(backend, launch_mode, threads) of a point; 0 threads where the notion does not apply."""
    return case.backend, case.launch_mode, case.threads or 0


def main_setup(cases: Sequence[Case]) -> Setup:
    """The setup with the most points; of equals the one with the fastest point."""
    counts = Counter(setup(case) for case in cases)
    fastest = dict.fromkeys(counts, 0.0)
    for case in cases:
        fastest[setup(case)] = max(fastest[setup(case)], case.tokens_per_s)
    return max(counts, key=lambda key: (counts[key], fastest[key]))


def weight_format(case: Case) -> str:
    """The format most of a point's bytes are in: `native` is not one format but the model's own mixture."""
    return next(iter(case.formats), case.format) if case.format == "native" else case.format


def observe(case: Case, record: Record | None = None) -> Observation:
    """A point as the law sees it: median time, the roof that makes its share of it the median paired ratio, and what
    its `record` measured in cache."""
    seconds = case.median_ms / 1e3
    shape = _shape(case.model, case.format)
    return Observation(
        model=case.model,
        bytes=case.bytes.total,
        seconds=seconds,
        roof_bytes_per_s=case.bytes.total / (seconds * case.roof_fraction),
        kernels=case.kernels_per_step,
        layers=case.layers,
        macs=case.macs or 0,
        format=weight_format(case),
        batch=case.batch,
        context=case.context,
        parts=tuple(case.formats.items()),
        attention_macs=case.attention_macs or 0,
        format_macs=tuple((case.format_macs or (format_macs(shape, batch=case.batch) if shape else {})).items()),
        measured=CacheCosts(record, case.threads).measured(
            shape,
            batch=case.batch,
            context=case.context,
            distinct=case.distinct_experts or None,
        )
        if shape and record
        else (),
    )


@lru_cache(maxsize=256)
def _shape(model: str, name: str) -> ModelShape | None:
    """A model in a format, where it ships."""
    entry = find(model)
    try:
        return entry.shape().cast(name) if entry else None
    except MoegaugeError:
        return None


def decode_cases(path: Path) -> tuple[Record, list[Case]]:
    """A record and its decode points, of the setup (backend, launch_mode, threads) with the most of them.

    Raises:
        RecordError: the file is no record, or has no decode point.
    """
    record = load(path)
    cases = [case for case in record.own_cases if case.kind == "decode"]
    if not cases:
        raise RecordError(f"{path}: has no decode case.", advice="Run moegauge bench decode.")
    chosen = main_setup(cases)
    return record, [case for case in cases if setup(case) == chosen]
