"""The open MoE models that ship as shapes, by name: `load("deepseek-v3")`, and `resolve` for whatever names a model."""

from __future__ import annotations

from pathlib import Path

from moegauge.errors import ShapeError, UnknownNameError
from moegauge.models.catalogue import entries, find
from moegauge.shape import ModelShape


def names() -> list[str]:
    """The shipped model names, sorted."""
    return sorted(entries())


def load(name: str) -> ModelShape:
    """The shipped shape called `name` (case is ignored).

    Raises:
        UnknownNameError: no such model ships; the message suggests the nearest name.
    """
    entry = find(name)
    if entry is None:
        raise UnknownNameError("model", name, names())
    return entry.shape()


def resolve(target: str) -> ModelShape:
    """A shape from whatever names one: a shipped name, a ModelShape JSON, a checkpoint's folder or file, a Hub repo.

    Raises:
        MoegaugeError: nothing of that name can be found or read; the message says what was tried.
    """
    entry = find(target)
    if entry is not None:
        return entry.shape()
    path = Path(target)
    if path.suffix == ".json":
        if not path.is_file():
            raise ShapeError(
                f"{target}: no such file.", advice="Give a ModelShape JSON, or a name of `moegauge models`."
            )
        return ModelShape.load(path)
    if path.exists() or target.count("/") == 1 or "://" in target:
        from moegauge.counting import count

        return count(target).model_shape()
    raise UnknownNameError("model", target, names())
