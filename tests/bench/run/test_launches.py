"""Waves, tails, issue slots, and the tables that show sweeps, floors and profiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from moegauge.bench.report import page, tables
from moegauge.bench.run.launches import idle_share, make_profile, tail_share
from moegauge.record import Floor, LeftOut, Pattern, Reason, Roof


@dataclass
class Launched:
    kernel: str = "product"
    launches: int = 10
    grid: tuple[int, ...] = (100, 2)
    warps: int = 1
    registers: int = 62
    shared: int = 512
    resident: int = 160
    processors: int = 4
    instructions_per_weight: float | None = 2.0
    weights: int = 1_000_000
    programs: int = 200
    chunks: int = 0


def test_the_tail_is_the_empty_part_of_the_last_wave() -> None:
    assert tail_share(160, 160) == 0.0
    assert tail_share(200, 160) == pytest.approx(120 / 320)
    assert tail_share(0, 160) == 0.0


def test_shares_of_resident_programs_are_idle_beside_the_longest_only() -> None:
    assert idle_share(Launched(programs=150, chunks=600)) == 0.0  # ten places stay empty, no program waits
    assert idle_share(Launched(programs=150, chunks=601)) == pytest.approx(1 - 601 / 750)
    assert idle_share(Launched(programs=200, chunks=600)) == pytest.approx(120 / 320)  # forty begin after all others
    assert idle_share(Launched()) == pytest.approx(120 / 320)


def test_a_profile_says_waves_bytes_and_issue_slots() -> None:
    found = make_profile([Launched()], 4_000_000, 1e-3, {"sm_clock_mhz": [900.0, 1100.0]})
    assert found.programs == 2000
    assert found.bytes_per_program == 2000
    assert found.kernels[0].waves == pytest.approx(1.25)
    # 2 instructions for each of 10 x 1e6 weights; 128 lanes, 4 processors, 1e6 clocks
    assert found.issue_share == pytest.approx(20e6 / (128 * 4 * 1e6))
    assert make_profile([Launched()], 4, 1e-3, None).issue_share is None


def test_tables_and_page_show_sweep_floors_profile_and_what_is_missing(fakes: Any) -> None:
    profile = make_profile([Launched()], 4_000_000, 1e-3, {"sm_clock_mhz": [1000.0, 1000.0]})
    cases = [fakes.make_case(), fakes.make_case(kind="kernel", kernel="experts up", profile=profile)]
    sweep = [
        Pattern(name=f"{w}-{p}", width=w, unroll=4, programs=p, warps=8, gb_per_s=float(w * 10 + p))
        for w in (4, 16)
        for p in (1, 2)
    ]
    roof = Roof(gb_per_s=20.0, samples=[20.0, 20.0], sweep=sweep)
    floor = Floor(name="graph", us_per_kernel=1.25, interval_us=(1.2, 1.3), samples_us=[1.25], lengths=(64, 576))
    left = LeftOut(stage="peers", what="all", reason=Reason.UNAVAILABLE, detail="none here")
    record = fakes.make_record(cases, roof=roof, floors=[floor], left_out=[left])
    text = tables.markdown(record)
    assert "| graph | 1.250 | 1.200 to 1.300 |" in text
    assert "| 16 | 4 | 2 | 8 | 162.0 |" in text  # the best of each width and unrolling
    assert "| 16 | 4 | 1 | 8 |" not in text
    assert "| a experts up fp8 | 2000 | 2.0 | 1.25 | 38 % | 62 | 2.00 | 4 % |" in text
    assert "- not measured: peers: all: none here" in text
    html = page.page([record], ["r.json"])
    for part in ("An empty kernel", "1.200 to 1.300", "access patterns of the roof", "162.0", "What is left", "2.00"):
        assert part in html, part
    assert "peers: all: none here" in html
