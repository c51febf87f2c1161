"""Every family of transformers that has routed experts, against the module tree of a tiny model of it.

`tests/data/families/*.json` were made by `scripts/make_family_headers.py`: the headers `save_pretrained` wrote
(`saved`, the names releases use), those of the modules in memory (`runtime`, fused), and counts taken from the modules.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moegauge.counting.families import RULES
from moegauge.counting.roles import DENSE_ROLES, ROLES
from moegauge.errors import ShapeError

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = sorted((ROOT / "tests" / "data" / "families").glob("*.json"))
# Two stacks, so there is no single decode step to describe; and rows transformers pads gate and up with, which no
# expert of the released LongCat-Flash has.
NO_SHAPE = {
    "nllb-moe": "no single decode step",
    "switch_transformers": "no single decode step",
    "longcat_flash": "no exact shape",
}


@pytest.fixture(params=FIXTURES, ids=lambda path: path.stem)
def family(request):
    return json.loads(request.param.read_text())


@pytest.mark.parametrize("names", ["saved", "runtime"])
def test_counts_are_the_module_tree_s(family, names, synthetic):
    census = synthetic.census(synthetic.unfold(family[names]), family["config"])
    assert census.unclassified() == []
    assert census.routed == family["oracle"]["routed"]
    # Buffers saved beside parameters are weights too (correction biases) unless they are named buffers.
    buffers = sum(family["oracle"]["buffers"].values())
    held = census.to_json()["stored"]["buffer_elements"]
    assert census.total in (family["oracle"]["parameters"], family["oracle"]["parameters"] + buffers - held)


def test_per_expert_and_fused_files_agree(family, synthetic):
    """The same model saved in both ways: parameters by kind, active counts and experts are the same."""
    saved, runtime = (synthetic.census(synthetic.unfold(family[n]), family["config"]) for n in ("saved", "runtime"))
    for role in ("routed_expert", "shared_expert", "embedding", "vision", "audio", "mtp", "lookup"):
        assert saved.parameters(role) == runtime.parameters(role), role
    assert saved.active_routed == runtime.active_routed
    assert [(p.layer, p.count, p.top_k, p.parameters) for p in saved.pools] == [
        (p.layer, p.count, p.top_k, p.parameters) for p in runtime.pools
    ]


def test_active_by_hand(family, synthetic):
    """A token of the text decoder uses top_k of each pool's experts."""
    census = synthetic.census(synthetic.unfold(family["saved"]), family["config"])
    assert census.pools
    for pool in census.pools:
        assert pool.count
        assert pool.top_k in (1, 2)
    expected = sum(
        pool.parameters * pool.top_k / (pool.count + pool.zero_experts)
        for pool in census.pools
        if pool.modality == "text"
    )
    assert census.active_routed == round(expected)
    assert 0 < census.active_routed < census.routed


def test_shape_reconciles(family, synthetic):
    census = synthetic.census(synthetic.unfold(family["saved"]), family["config"])
    if family["model_type"] in NO_SHAPE:
        with pytest.raises(ShapeError, match=NO_SHAPE[family["model_type"]]):
            census.model_shape()
        return
    shape = census.model_shape()
    assert shape.dense_parameters == sum(census.parameters(role) for role in DENSE_ROLES)
    assert shape.active_parameters == census.active
    assert shape.bytes_per_token == census.dense_bytes + census.routed_bytes


@pytest.mark.parametrize("names", ["saved", "runtime"])
def test_experts_are_as_wide_as_they_are_tall(family, names, synthetic):
    """Up and gate [width, inputs], down [inputs, width], however a file lays them out: fused, transposed, stacked."""
    if family["model_type"] in NO_SHAPE:
        return
    shape = synthetic.census(synthetic.unfold(family[names]), family["config"]).model_shape()
    for layer in shape.layers:
        for pool in layer.experts:
            by_name = {m.name: (m.rows, m.columns) for m in pool.matrices}
            if {"up_proj", "down_proj"} <= set(by_name):
                assert by_name["up_proj"] == by_name["down_proj"][::-1]
                assert by_name.get("gate_proj", by_name["up_proj"]) == by_name["up_proj"]


def test_an_unknown_name_is_placed_by_structure_and_said(family, synthetic):
    """One matrix beside the experts is used by every token; nothing else moves; without a config it is in doubt."""
    rows = synthetic.unfold(family["saved"])
    beside = synthetic.census(rows, family["config"]).pools[0].name.rpartition(".")[0]
    rows.append((f"{beside.replace('#', '1')}.mystery_proj.weight", "F32", (64, 64)))
    census = synthetic.census(rows, family["config"])
    known = synthetic.census(rows[:-1], family["config"])
    assert census.inferred == [f"{beside}.mystery_proj.weight"]
    assert (known.inferred, census.unclassified()) == ([], [])
    assert census.parameters("other") == 64 * 64
    assert (census.dense, census.routed) == (known.dense + 64 * 64, known.routed)
    assert any("1 tensors placed by structure" in warning for warning in census.warnings)
    assert synthetic.census(rows, kind="file").unclassified() == [f"{beside}.mystery_proj.weight"]


def test_every_family_is_here():
    """One file per model_type of transformers 5.23.0 with routed experts; ViTPose is no language model."""
    assert len(FIXTURES) >= 80
    assert {json.loads(path.read_text())["transformers"] for path in FIXTURES} == {"5.23.0"}


def test_rules_are_rows():
    assert all(rule.role in ROLES for rule in RULES)
    assert len({rule.pattern for rule in RULES}) == len(RULES)


@pytest.mark.slow
def test_fixtures_are_what_transformers_saves(tmp_path):
    """With transformers installed (MOEGAUGE_TRANSFORMERS_PYTHON names its interpreter) the fixtures are made again."""
    python = os.environ.get("MOEGAUGE_TRANSFORMERS_PYTHON") or (
        sys.executable if shutil.which("transformers") else None
    )
    if python is None:
        pytest.skip("transformers is not installed; set MOEGAUGE_TRANSFORMERS_PYTHON to an interpreter that has it")
    script = ROOT / "scripts" / "make_family_headers.py"
    subprocess.run([python, str(script), str(tmp_path), "qwen3_moe", "gpt_oss", "dbrx"], check=True, timeout=300)
    for path in sorted(tmp_path.glob("*.json")):
        assert path.read_text() == (ROOT / "tests" / "data" / "families" / path.name).read_text()
