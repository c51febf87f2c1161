"""Model shapes that ship with the package, one JSON file each."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from moegauge.errors import ShapeError, UnknownNameError
from moegauge.shape import ModelShape


def names() -> list[str]:
    """The shipped model names, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json"))


def load(name: str) -> ModelShape:
    """The shipped shape called `name` (case is ignored).

    Raises:
        UnknownNameError: no such model ships; the message suggests the nearest name.
    """
    file = resources.files(__name__) / f"{name.lower()}.json"
    if name.lower() not in names():
        raise UnknownNameError("model", name, names())
    return ModelShape.from_json(json.loads(file.read_text(encoding="utf-8")), name)


def resolve(target: str) -> ModelShape:
    """A shape from whatever names one: a shipped name, a ModelShape JSON, a checkpoint folder, a Hub repo.

    Raises:
        MoegaugeError: nothing of that name can be found or read; the message says what was tried.
    """
    if target.lower() in names():
        return load(target)
    path = Path(target)
    if path.suffix == ".json":
        if not path.is_file():
            raise ShapeError(
                f"{target}: no such file.", advice="Give a ModelShape JSON, or a name of `moegauge models`."
            )
        return ModelShape.load(path)
    if path.exists() or target.count("/") == 1:
        from moegauge.counting import count

        return count(target).model_shape()
    raise UnknownNameError("model", target, names())
