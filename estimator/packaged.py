"""Texts of `estimator/data`, which ships with the package."""

from __future__ import annotations

from importlib import resources


def packaged(name: str) -> str:
    """Text of a file in `estimator/data`."""
    return (resources.files("moegauge.estimator") / "data" / name).read_text(encoding="utf-8")


def has_packaged(name: str) -> bool:
    """True when `estimator/data` has a file of that name."""
    return "/" not in name and (resources.files("moegauge.estimator") / "data" / name).is_file()
