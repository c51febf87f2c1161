"""The page: complete, self-contained, escaped; and opened in a real browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from moegauge.bench.judge.compare import compare
from moegauge.bench.report import tables
from moegauge.bench.report.page import page
from moegauge.record import pool

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
EVIL = "<script>document.title='owned'</script>"


class Tree(HTMLParser):
    """Tags that open must close, in order; collects attributes."""

    VOID = frozenset({"meta", "path", "circle", "polyline", "rect", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def points(fakes: Any, name: str = "a") -> list[Any]:
    cases = []
    for i, model in enumerate((name, "b", "c")):
        for weight_format, size in (("native", 4.0), ("fp8", 2.0), ("mxfp4", 1.1)):
            total = int(size * (i + 1) * 1e9)
            cases.append(
                fakes.make_case(
                    model,
                    0.5 + total / 18e6,
                    total,
                    format=weight_format,
                    kernels_per_step=100 + 40 * i,
                    roof_fraction_interval=(0.88, 0.91),
                )
            )
    cases += [
        fakes.make_case(name, (1 + b / 4) * 100, int((1 + b / 4) * 1.9e9), batch=b, format="native") for b in (2, 4, 8)
    ]
    cases += [
        fakes.make_case(name, 110 + n / 400, int(2e9 + n * 4e4), context=n, format="native")
        for n in (1024, 4096, 32768)
    ]
    return cases


def parse(text: str) -> Tree:
    tree = Tree()
    tree.feed(text)
    assert tree.open == []
    return tree


def test_the_page_is_whole_and_needs_nothing_from_outside(fakes: Any) -> None:
    text = page([fakes.make_record(points(fakes))], ["r.json"])
    tree = parse(text)
    assert "script" not in tree.tags
    assert not {"link", "img", "iframe", "object"} & set(tree.tags)
    assert not [v for _, name, v in tree.attributes if name in ("src", "href", "xlink:href", "action")]
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert len(tree.ids) == len(set(tree.ids))
    assert ("html", "lang", "en") in tree.attributes
    assert text.count("<svg viewBox") == 6  # speed, share, errors, batches, contexts, roof


def test_every_point_and_its_prediction_is_in_the_table(fakes: Any) -> None:
    record = fakes.make_record(points(fakes))
    text = page([record], ["r.json"])
    for p in compare(pool([record], ["r"])).points:
        assert f"<td>{p.case.tokens_per_s:.4g}</td><td>{p.predicted_tokens_per_s:.4g}</td>" in text


def test_the_drawn_law_runs_through_points_that_obey_it(fakes: Any) -> None:
    from moegauge.bench.report import figures

    cases = [
        fakes.make_case(
            m, 70 * 0.01 + size / 18e6, size, kernels_per_step=70, layers=10, macs=size // 2, formats={"fp8": size}
        )
        for m, size in (("a", 10**8), ("b", 10**9), ("c", 5 * 10**9))
    ]
    found = compare(pool([fakes.make_record(cases)], ["r"]))
    middle = figures._middle(found.points)
    for p in found.points:
        drawn = figures._law_seconds(found, middle, p.case.bytes.total)
        assert drawn == pytest.approx(p.observation.seconds, rel=0.02)


@pytest.mark.parametrize("where", ["model", "argv", "machine", "warning", "name", "commit", "format", "pattern"])
def test_every_string_is_escaped(fakes: Any, where: str) -> None:
    cases = points(fakes, EVIL if where == "model" else "a")
    changes: dict[str, Any] = {}
    if where == "argv":
        changes["argv"] = [EVIL]
    if where == "machine":
        changes["machine"] = {
            "id": EVIL,
            "device": "cpu",
            "os": EVIL,
            "cpu": {"model": EVIL, "cores": EVIL, "features": [EVIL]},
        }
    if where == "warning":
        cases[0] = fakes.make_case(warnings=[EVIL])
    if where == "format":
        cases[0] = fakes.make_case(format=EVIL)
    record = fakes.make_record(cases, **changes)
    if where == "commit":
        record.project = fakes.Project(version=EVIL, commit=EVIL)
    if where == "pattern":
        record.roof = fakes.Roof(gb_per_s=1.0, samples=[1.0, 2.0], pattern=EVIL, patterns={EVIL: 1.0})
    text = page([record], [EVIL if where == "name" else "r"])
    assert "<script" not in text
    parse(text)


def test_a_roof_alone_and_one_model_alone_make_a_page(fakes: Any) -> None:
    assert "The roof" in page([fakes.make_record([])], ["r"])
    text = page([fakes.make_record([fakes.make_case()])], ["r"])
    assert "One model only" in text
    parse(text)


def test_the_ladder_is_shown_where_there_is_one(fakes: Any) -> None:
    cases = points(fakes)
    text = page(
        [fakes.make_record([*cases, fakes.make_case("a", 900.0, 4 * 10**9, format="native", threads=1)])], ["r"]
    )
    assert "Launch modes" in text
    assert "cpu, 1 thread<" in text
    assert "Launch modes" not in page([fakes.make_record(cases)], ["r"])


def test_clocks_seen_while_sampling_are_shown(fakes: Any) -> None:
    cases = points(fakes)
    for i, clock in ((0, [1700, 1980]), (1, [1800, 1950])):
        telemetry = {"sm_clock_mhz": clock, "reasons": ["sw_power_cap"]}
        cases[i] = fakes.make_case(cases[i].model, 9.0 + i, cases[i].bytes.total, telemetry=telemetry)
    text = page([fakes.make_record(cases)], ["r"])
    assert "<dt>sm clock mhz while sampling</dt><dd>1700 to 1980</dd>" in text
    assert "sw_power_cap" in text


def test_kernels_have_their_own_table(fakes: Any) -> None:
    text = page([fakes.make_record([fakes.make_case(kind="kernel", kernel="experts up")])], ["r"])
    assert "Kernels alone" in text
    assert "experts up" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
@pytest.mark.parametrize("width", [1000, 400])
def test_a_browser_shows_it(fakes: Any, tmp_path: Path, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(page([fakes.make_record(points(fakes))], ["r.json"]), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        f"--disable-component-update --disable-sync --window-size={width},900"
    ).split()
    command = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert "<title>Decode speed on Made Up, 2 cores</title>" in shown
    assert shown.count("<figcaption>") == 6
    assert shown.count('class="ring"') > 15
    picture = tmp_path / "page.png"
    subprocess.run([*command, f"--screenshot={picture}", file.as_uri()], capture_output=True, timeout=120, check=True)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 20_000  # a blank page is a few kilobytes


class TestExport:
    def test_csv_has_one_row_per_point_and_every_figure(self, fakes: Any) -> None:
        import csv
        import io

        record = fakes.make_record([fakes.make_case("a,b"), fakes.make_case("c", interval_ms=(9.0, 11.0))])
        rows = list(csv.DictReader(io.StringIO(tables.record_csv(record))))
        assert [row["model"] for row in rows] == ["a,b", "c"]
        assert float(rows[0]["median_ms"]) == 10.0
        assert int(rows[0]["bytes"]) == 10**8
        assert rows[1]["low_ms"] == "9.0"
        assert rows[0]["machine"] == "made-up-2c"

    def test_markdown_cells_cannot_break_the_table(self, fakes: Any) -> None:
        text = tables.markdown(fakes.make_record([fakes.make_case("a|b\n<i>`")]))
        row = text.splitlines()[-1]
        assert row.count("|") - row.count("\\|") == 10
        assert "<i>" not in text

    def test_the_comparison_table_holds_single_streams_and_says_how_good_it_is(self, fakes: Any) -> None:
        record = fakes.make_record(points(fakes))
        found = compare(pool([record], ["r"]))
        text = tables.comparison_markdown(found, record)
        assert sum(line.startswith("| ") for line in text.splitlines()) == 1 + 9
        assert f"The law: median error {100 * found.by_model.median:.1f} %" in text  # type: ignore[operator]
        native = tables.comparison_markdown(found, record, formats=["native"])
        assert sum(line.startswith("| ") for line in native.splitlines()) == 1 + 3
