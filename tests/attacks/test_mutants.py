"""100,000 mutated headers of a fixed seed: what safetensors refuses we refuse, and what we refuse more is stated.

`make fuzz` runs two million; the mutants and what a finding is are described in mutants.py beside this file.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

MUTANTS = 100_000
RUNS = 4
REASONS = {
    "a key stands twice",
    "an entry is a list",
    "a dtype is a map",
    "more than 64 dimensions",
    "a number of 1e308 or more",
}


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    """The module beside this file; pytest's importlib mode puts no folder on the path."""
    spec = importlib.util.spec_from_file_location("moegauge_tests_mutants", Path(__file__).with_name("mutants.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(RUNS))
def test_readers_agree_on_mutants(mutants: ModuleType, seed: int) -> None:
    tally = mutants.run(seed, MUTANTS // RUNS)
    assert sum(tally.values()) == MUTANTS // RUNS
    # The mutators are no good if everything they make is refused, or nothing shows where we are stricter.
    assert tally["both accept"] > MUTANTS // RUNS // 10
    assert {kind.removeprefix("only we refuse: ") for kind in tally if kind.startswith("only")} == REASONS
