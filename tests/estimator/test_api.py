"""The package's public names load, and the published formula and ours share nothing but the readers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from moegauge import estimator

ROOM = Path(__file__).parents[2] / "estimator"


@pytest.mark.parametrize("name", sorted(estimator._PUBLIC))
def test_public_names(name: str) -> None:
    assert callable(getattr(estimator, name))
    assert name in dir(estimator)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'estimat'"):
        estimator.estimat  # noqa: B018


def imported(name: str) -> set[str]:
    """Modules of the room that a module imports, itself or through others."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        tree = ast.parse((ROOM / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moegauge.estimator"):
                room = (node.module or "").removeprefix("moegauge.estimator").lstrip(".")
                names = (
                    [f"{room}.{alias.name}".lstrip(".") for alias in node.names] if room in ("", "closed") else [room]
                )
                fresh = {n for n in names if n and n not in found}
                found |= fresh
                waiting += fresh
    return found


def test_the_preset_and_our_method_share_no_constant() -> None:
    ours = {
        "additive",
        "hierarchy",
        "closed.condition",
        "closed.inversion",
        "closed.inverse",
        "closed.assumptions",
        "law",
    }
    theirs = {"closed.published", "one_term"}
    assert not imported("closed.published") & ours
    assert not imported("one_term") & ours
    for module in ours:
        assert not imported(module) & theirs
