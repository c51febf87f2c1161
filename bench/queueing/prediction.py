"""Predicted times of a suite's points on GPUs that are not there: the document `moegauge.gpu_prediction/1`.

Every point of a suite that times something of this kit's own (whole steps, kinds of kernel alone, launch modes) gets
its time by the queueing model, nominal and pessimistic. A record of a device run carries the nominal one beside what
was measured (`Case.queueing`), and `moegauge compare` says how far off it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import msgspec

from moegauge import models
from moegauge.bench.plan.gpu_suite import Stage
from moegauge.bench.plan.points import Point
from moegauge.bench.queueing.latencies import COLUMNS, DEVICES, Latencies, latencies
from moegauge.bench.queueing.multiprocessor import MODES, chain
from moegauge.bench.queueing.prediction_file import LeftUnpredicted, Predicted, SuitePrediction
from moegauge.bench.queueing.step import CodeBook, Laid, lay_out
from moegauge.errors import DeviceError, UsageError
from moegauge.record import Project, now

KINDS = ("decode", "kernel", "launch modes")
EXPERTS = "experts up and down"  # both launches of every layer, one after the other
USUAL_MODE = "pdl"  # of a stage that names none


def predict_launches(laid: list[Laid], at: Latencies, mode: str) -> float:
    """Ns of some launches one after another, the first as if the last had just ended (steps follow one another)."""
    works = [one.work for one in laid]
    _, room = chain(works[-1:], at, mode)
    added, _ = chain(works, at, mode, room)
    return sum(added)


def predict_point(
    laid: list[Laid], stage: Stage, device: str, point: Point, mode: str, tables: dict[str, Latencies]
) -> Iterator[Predicted]:
    """A point's whole step, or each kind of kernel of it alone."""
    kinds: list[tuple[str | None, list[Laid]]] = [(None, laid)]
    if stage.kind == "kernel":
        names = dict.fromkeys(one.kind for one in laid)
        kinds = [(name, [one for one in laid if one.kind == name]) for name in names]
        kinds += [(EXPERTS, experts)] if (experts := [one for one in laid if one.kind.startswith("experts")]) else []
    for name, some in kinds:
        size = sum(one.bytes for one in some)
        ns = {column: predict_launches(some, at, mode) for column, at in tables.items()}
        share = {column: size / at.roof / ns[column] for column, at in tables.items()}
        yield Predicted(
            stage=stage.name, device=device, kind="decode" if name is None else "kernel", kernel=name,
            model=point.model, format=point.format, batch=point.batch, context=point.context, launch_mode=mode,
            launches=len(some), bytes=round(size), nominal_us=round(ns["nominal"] / 1e3, 3),
            pessimistic_us=round(ns["pessimistic"] / 1e3, 3), nominal_share=round(share["nominal"], 4),
            pessimistic_share=round(share["pessimistic"], 4),
            tokens_per_s=round(1e9 * point.batch / ns["nominal"], 2) if name is None else None,
        )  # fmt: skip


def predict_suite(
    suite: str,
    stages: Iterable[Stage],
    project: Project,
    *,
    devices: Iterable[str] = DEVICES,
    keep: Callable[[Point], bool] = lambda _: True,
    book: CodeBook | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> SuitePrediction:
    """Every point of a suite's stages on each device.

    Args:
        suite: its name.
        stages: its stages; those that time nothing of this kit's own are passed over.
        project: which moegauge.
        devices: names of the table of latencies.
        keep: which points.
        book: machine code read so far.
        progress: told what is in work.

    Raises:
        UsageError: no point is left.
    """
    import triton

    book = book or CodeBook()
    wanted = [stage for stage in stages if stage.kind in KINDS]
    if not any(keep(point) for stage in wanted for point in stage.points):
        raise UsageError(f"suite '{suite}' has no point that could be predicted.", advice="Use --suite gpu.")
    found: list[Predicted] = []
    left: list[LeftUnpredicted] = []
    for device in devices:
        tables = {column: latencies(device, column) for column in COLUMNS}
        processors = int(tables["nominal"].multiprocessors)

        @lru_cache(maxsize=4)
        def laid(point: Point, dependent: bool, device: str = device, processors: int = processors) -> list[Laid]:
            shape = models.resolve(point.model).cast(point.format)
            return lay_out(
                shape, book, device, processors, batch=point.batch, context=point.context, dependent=dependent
            )

        for stage in wanted:
            modes = MODES if stage.kind == "launch modes" else (stage.launch_mode or USUAL_MODE,)
            for point in filter(keep, stage.points):
                progress(f"{device}, {stage.name}: {point.label}")
                try:
                    for mode in modes:
                        of = laid(point, mode == "pdl")
                        found += predict_point(of, stage, device, point, mode, tables)
                except DeviceError as error:  # a shape no kernel serves
                    left.append(LeftUnpredicted(stage=stage.name, device=device, point=point.label, reason=str(error)))
    used = {device: {column: _as_table(latencies(device, column)) for column in COLUMNS} for device in devices}
    return SuitePrediction(
        created=now(), project=project, suite=suite, compiler=f"triton {triton.__version__}", latencies=used,
        points=found, left_out=left,
    )  # fmt: skip


def _as_table(at: Latencies) -> dict[str, float]:
    return asdict(at)


def table_rows(document: SuitePrediction) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) for people: whole steps and experts alone, a column for each device; `nominal (pessimistic)`."""
    devices = list(document.latencies)
    heads = ["stage", "point", "launched", *(f"{device}, % of roof" for device in devices), "tokens/s on each"]
    by: dict[tuple[str, str, str], dict[str, Predicted]] = {}
    for one in document.points:
        by.setdefault((one.stage, one.label, one.launch_mode), {})[one.device] = one
    rows = []
    for (stage, label, mode), each in by.items():
        shares = [
            f"{100 * each[d].nominal_share:.1f} ({100 * each[d].pessimistic_share:.1f})" if d in each else "-"
            for d in devices
        ]
        speeds = [each[d].tokens_per_s for d in devices if d in each]
        told = " / ".join(f"{speed:.4g}" for speed in speeds if speed is not None)
        rows.append([stage, label, mode, *shares, told])
    return heads, rows


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "moegauge prediction of a GPU suite, version 1",
        **msgspec.json.schema(SuitePrediction),
    }
