"""The committed records and the pages made from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from moegauge.record import load, to_json

ROOT = Path(__file__).resolve().parents[3]
RECORDS = sorted((ROOT / "results").glob("*/*.json"))


@pytest.fixture(scope="module")
def tables(script: Callable[[str], ModuleType]) -> Any:
    return script("readme_table")


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.name)
def test_a_committed_record_is_whole_clean_and_of_its_machine(path: Path) -> None:
    record = load(path)
    schema = json.loads((ROOT / "results" / "schema.json").read_text())
    jsonschema.validate(json.loads(path.read_text()), schema)
    assert record.complete
    assert record.machine_id == path.parent.name
    assert record.project.dirty is False, "measured with local changes"
    assert path.name.startswith(record.created[:10])
    assert record.project.commit is not None
    assert record.project.commit[:7] in path.name
    assert all(case.max_relative_error < 0.05 for case in record.cases)
    for word in ("/home/", "/root", "/Users/"):
        assert word not in path.read_text()


def test_pages_are_in_step_with_the_records_and_the_counter(tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["readme_table.py", "--check"])
    assert tables.main(ROOT) == 0, "run: python scripts/readme_table.py"


def test_two_runs_of_one_suite_are_held_against_each_other(tables: Any, fakes: Any, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "made-up-2c"
    folder.mkdir(parents=True)
    for name, time, created in (("b", 9.0, "2026-01-02"), ("a", 8.0, "2026-01-03"), ("c", 9.9, "2026-01-04")):
        record = fakes.make_record([fakes.make_case("m", time)], created=created, suite="quick")
        (folder / f"{name}.json").write_text(to_json(record))
    text = tables.agreement(tmp_path)
    assert "| m fp8 | slower | 0.808 |" in text  # the latest two, in the order they were measured: 8.0 / 9.9
    assert text.endswith("`moegauge compare results/made-up-2c/a.json --against results/made-up-2c/c.json`.\n")


def test_the_script_writes_between_the_markers_alone(
    tables: Any, fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [
        fakes.make_case(m, t, int(t * 18e6), format=f) for m, t in (("a", 9.0), ("b", 20.0)) for f in ("native", "fp8")
    ]
    folder = tmp_path / "results" / "made-up-2c"
    folder.mkdir(parents=True)
    (folder / "r.json").write_text(to_json(fakes.make_record(cases)))
    (tmp_path / "README.md").write_text("top\n<!-- results:begin -->\nold\n<!-- results:end -->\nbottom\n")
    (tmp_path / "results" / "README.md").write_text("<!-- results:begin --><!-- results:end -->")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "measuring.md").write_text("<!-- results:begin --><!-- results:end -->")
    monkeypatch.setattr("sys.argv", ["x", "--check"])
    assert tables.main(tmp_path) == 1
    assert "old" in (tmp_path / "README.md").read_text()
    monkeypatch.setattr("sys.argv", ["x"])
    assert tables.main(tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("top\n")
    assert text.endswith("\nbottom\n")
    assert "old" not in text
    assert text.count("| native |") == 2
    assert "| fp8 |" not in text
    assert (tmp_path / "results" / "README.md").read_text().count("| fp8 |") == 2
    monkeypatch.setattr("sys.argv", ["x", "--check"])
    assert tables.main(tmp_path) == 0
