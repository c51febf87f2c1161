"""Read predictions of a suite (`moegauge.gpu_prediction/1`) and put them beside the cases of a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from moegauge.bench.queueing.latencies import DEVICES
from moegauge.errors import RecordError
from moegauge.record import Case, Project

SCHEMA = "moegauge.gpu_prediction/1"


class Predicted(msgspec.Struct, kw_only=True, frozen=True):
    """One point on one device.

    Attributes:
        stage: of the suite.
        kind: `decode` (a whole step) or `kernel` (all launches of one kind, one after another).
        kernel: that kind; None for a whole step.
        launch_mode: `pdl` or `graph`.
        launches: of one step.
        bytes: of one step, expected where it depends on the routing.
        nominal_us, pessimistic_us: time of one step.
        nominal_share, pessimistic_share: of the read roof: bytes / roof / time.
        tokens_per_s: nominal, all streams together; None for a kernel.
    """

    stage: str
    device: str
    kind: str
    model: str
    format: str
    batch: int
    context: int
    launch_mode: str
    launches: int
    bytes: float
    nominal_us: float
    pessimistic_us: float
    nominal_share: float
    pessimistic_share: float
    kernel: str | None = None
    tokens_per_s: float | None = None

    @property
    def label(self) -> str:
        """`deepseek-v3 fp8 batch 8, experts up`."""
        parts = [self.model, self.format]
        parts += [f"batch {self.batch}"] if self.batch != 1 else []
        parts += [f"context {self.context}"] if self.context else []
        return " ".join(parts) + (f", {self.kernel}" if self.kernel else "")


class LeftUnpredicted(msgspec.Struct, kw_only=True, frozen=True):
    """A point the model could not be asked for, and why."""

    stage: str
    device: str
    point: str
    reason: str


class SuitePrediction(msgspec.Struct, kw_only=True):
    """The document.

    Attributes:
        suite: whose points.
        compiler: Triton's version, whose machine code was read.
        latencies: device -> column -> name -> value, as used.
        points: every point, device by device.
        left_out: what could not be predicted.
    """

    schema: str = SCHEMA
    created: str
    project: Project
    suite: str
    compiler: str
    latencies: dict[str, dict[str, dict[str, float]]]
    points: list[Predicted]
    left_out: list[LeftUnpredicted] = []


# What makes a point of a prediction and a case of a record the same.
Key = tuple[str, str, str | None, str, int, int, str]


def read(path: Path) -> SuitePrediction:
    """A document written by `moegauge bench --predict --out`.

    Raises:
        RecordError: it cannot be read or is none.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=SuitePrediction)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}).", advice="Check the path.") from None
    except msgspec.DecodeError as error:
        raise RecordError(f"{path}: no prediction of a suite ({error}).", advice=_ADVICE) from None
    if found.schema != SCHEMA:
        raise RecordError(f"{path}: a '{found.schema}' document, not '{SCHEMA}'.", advice=_ADVICE)
    return found


_ADVICE = "Give a file written by `moegauge bench --suite gpu --predict --out`."


def device_named(gpu: str) -> str | None:
    """The device of the table of latencies that a GPU's name names; None where it is none of them."""
    return next((one for one in DEVICES if one in gpu.upper()), None)


def of_device(path: Path, gpu: str) -> dict[Key, Predicted]:
    """The points of a file that hold for a GPU.

    Raises:
        RecordError: as `read`; or the file predicts nothing for this GPU.
    """
    device, document = device_named(gpu), read(path)
    found = {_key(one): one for one in document.points if one.device == device}
    if not found:
        raise RecordError(f"{path}: predicts nothing for '{gpu}'.", advice=_ADVICE)
    return found


def with_prediction(case: Case, points: dict[Key, Predicted]) -> Case:
    """A case, with its time as it was predicted; unchanged where it was not, or where it is another program's."""
    key = case.kind, case.model, case.kernel, case.format, case.batch, case.context, case.launch_mode
    if case.peer is not None or (one := points.get(key)) is None:
        return case
    changes: dict[str, Any] = {
        "predicted_ms": one.nominal_us / 1e3,
        "predicted_pessimistic_ms": one.pessimistic_us / 1e3,
    }
    return msgspec.structs.replace(case, **changes)


def _key(one: Predicted) -> Key:
    return one.kind, one.model, one.kernel, one.format, one.batch, one.context, one.launch_mode
