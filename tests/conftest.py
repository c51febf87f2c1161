"""Settings of every test: one BLAS thread, and property tests that draw the same examples every time.

Loaded before any test module, so before numpy: the estimator solves many systems of 200 rows, and BLAS threads that
wait for each other on a busy machine make that ten times slower.

Property tests draw the same examples every time: a red test is red for everyone. `make fuzz` explores.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("same-for-everyone", derandomize=True, deadline=None)
settings.load_profile("same-for-everyone")


def load(path: Path) -> ModuleType:
    """A Python file as a module that is imported by its stem from here on: pytest's importlib mode puts no folder of
    tests on the path, and a script lies in no package."""
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[path.stem]


HERE = Path(__file__).resolve().parent
load(HERE / "made_up.py")


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Loads scripts/NAME.py."""
    return lambda name: load(HERE.parent / "scripts" / f"{name}.py")
