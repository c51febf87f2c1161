"""docs/map.md is fresh, and every source file says in one short sentence what it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def make_map(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("make_map")


def test_the_map_is_fresh(make_map: ModuleType) -> None:
    there = make_map.PAGE.read_text(encoding="utf-8") if make_map.PAGE.exists() else ""
    assert there == make_map.page(), "docs/map.md is stale; run: make map"


def test_every_file_says_what_it_is_in_one_line(make_map: ModuleType) -> None:
    silent = [path for path in make_map.files() if not make_map.said(path)]
    assert not silent, f"no docstring or head comment: {silent}"
    long = {path: said for path in make_map.files() if len(said := make_map.said(path)) > make_map.WIDEST}
    assert not long, f"first sentences of more than {make_map.WIDEST} characters: {long}"


def test_every_folder_says_what_it_holds(make_map: ModuleType) -> None:
    silent = [folder for folder in make_map.sections() if not make_map.heading(folder)]
    assert not silent, f"no sentence: {silent} (a docstring of __init__.py, or a row of DATA in scripts/make_map.py)"


def test_a_first_sentence_ends_at_its_full_stop(make_map: ModuleType) -> None:
    assert make_map.sentence("Reads x.json\nof a repo. Then more.\n\nAnd more.") == "Reads x.json of a repo."
    assert make_map.sentence("Grid, e.g. of programs: none") == "Grid, e.g. of programs: none"


def test_links_and_paths_of_the_pages_lead_somewhere(make_map: ModuleType) -> None:
    root = make_map.ROOT
    pages = [*root.glob("*.md"), *(root / "docs").glob("*.md"), root / "results" / "README.md"]
    astray = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        links = [page.parent / link for link in re.findall(r"\]\((?!https?:)([^)#]+)", text)]
        paths = [root / path for path in re.findall(r"`((?:\w+/)+[\w.-]+\.(?:py|cpp|h|md|csv|css|html))`", text)]
        astray += [f"{page.name}: {path}" for path in (*links, *paths) if not path.exists()]
    assert len(pages) > 8
    assert not astray
