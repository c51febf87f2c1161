"""The page of an estimate: self-contained, escaped, with both methods and the back-test first."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moegauge.bench.report.estimate_page import page
from moegauge.errors import UsageError
from moegauge.estimator.closed.backtest import Backtest, run
from moegauge.estimator.closed.estimate import estimate


@pytest.fixture(scope="module")
def tested() -> Backtest:
    return run()


class Tags(HTMLParser):
    """Names of all elements, and their src and href."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def tags(text: str) -> Tags:
    parser = Tags()
    parser.feed(text)
    return parser


def test_the_preset(tested: Backtest) -> None:
    text = page(estimate(preset="opus-2026-03"), tested)
    found = tags(text)
    assert found.names.count("figure") == 3
    assert "script" not in found.names
    assert found.links == []
    assert text.index(tested.sentence) < text.index("<figure>")
    for name in ("Opus 4.6", "Sonnet 4.5", "published, FP8", "What would narrow it most"):
        assert name in text


def test_nothing_identifiable_says_why_and_hostile_names_are_escaped(tested: Backtest, tmp_path: Path) -> None:
    path = tmp_path / "speeds.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["model", "provider", "tokens_per_s", "date", "metric"],
                ["<script>x</script>", "<b>p</b>", "40", "2026-03-12", "tps"],
            ]
        )
    text = page(estimate(path=path), tested)
    assert "0 calibration model(s)" in text
    assert "<script" not in text
    assert "<b>p" not in text
    assert "&lt;b&gt;p" in text


def test_a_stranger_file_is_not_overwritten(tmp_path: Path) -> None:
    from moegauge.commands.estimate import _write_page

    target = tmp_path / "mine.html"
    target.write_text("mine")
    with pytest.raises(UsageError, match="no page of ours"):
        _write_page({}, target)
    assert target.read_text() == "mine"
