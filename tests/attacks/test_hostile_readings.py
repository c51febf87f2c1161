"""Damaged tables and records raise our errors and nothing else: cells, fields and types swapped at random, seeded."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from moegauge.errors import MoegaugeError, ObservationError
from moegauge.estimator import predict
from moegauge.estimator.closed import fleets
from moegauge.estimator.packaged import packaged
from moegauge.estimator.readings import read
from moegauge.limits import TABLE_LIMIT_BYTES

CELLS = [
    *("", "nan", "-1", "0", "1e400", '"', "\x00", "é", "inf", "1,2,3", "None", "[]", "tg", "@", "tg1e9", "9" * 400),
    *("0x10", "1_000", "2026-13-40", "../../etc/passwd", "a/b", "x.json", "\x1b[31m", "=1+1"),
]
VALUES: list[Any] = [None, [], {}, "x", -1, 0, float("inf"), float("nan"), True, 10**400, [1], {"a": 1}, "1"]


def damaged(name: str, rng: random.Random, path: Path) -> Path:
    rows = [line.split(",") for line in packaged(name).splitlines()[:30]]
    for _ in range(rng.randint(1, 20)):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(CELLS)
    path.write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("seed", range(5))
def test_tables(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(40):
        with contextlib.suppress(MoegaugeError):
            rows, _ = read(damaged("throughput.csv", rng, tmp_path / "t.csv"))
            assert all(0 < row.tokens_per_s < 1e6 for row in rows)
        with contextlib.suppress(MoegaugeError):
            found, _ = fleets.fleets(damaged("providers.csv", rng, tmp_path / "p.csv"))
            assert all(row.tokens_per_s > 0 for fleet in found for row in fleet.rows)


HEADER, FIRST, *_ = packaged("throughput.csv").splitlines()


def replaced(column: str, value: str) -> str:
    cells = dict(zip(HEADER.split(","), FIRST.split(","), strict=True))
    return f"{HEADER}\n{','.join({**cells, column: value}.values())}\n"


# Sizes a stranger chooses, each with what the one line says.
SIZES = (
    (replaced("tokens_per_s", "1" * 100_000), "line 2 holds more than 100 cells, 2,000 characters in one"),
    (replaced("tokens_per_s", "1" * 1_999), "tokens_per_s has 1,999 characters, more than a number has"),
    (replaced("note", "speculat " * 1_600), "line 2 holds more than"),
    (replaced("note", "speculat " * 16_000), "line 2: field larger than"),
    (replaced("context", "tg" + "9" * 400), "context is 'tg999"),
    (f"{'x' * 200_000},{HEADER}\n{FIRST}\n", "line 1"),
    (HEADER + "," * 200 + "\n", "line 1 holds more than 100 cells"),
    (HEADER + f"\n{FIRST}" * 5_002, "more than 5,000 rows"),
    ("", "line 1 has no column 'system'"),
    (HEADER + "\n" + FIRST + "," * 30 + "\n", "line 2 has more cells than the header"),
)


@pytest.mark.parametrize(("text", "said"), SIZES, ids=[said[:40] for _, said in SIZES])
def test_sizes_of_a_table_are_limited(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ObservationError) as caught:
        read(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_pipe_and_a_file_larger_than_any_table_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ObservationError, match=r"pipe\.csv: cannot be read \(is a FIFO, not a file\)"):
        read(tmp_path / "pipe.csv")
    with (tmp_path / "large.csv").open("wb") as file:
        file.truncate(TABLE_LIMIT_BYTES + 1)
    with pytest.raises(ObservationError, match=r"large\.csv: cannot be read \(has 16,000,001 bytes"):
        read(tmp_path / "large.csv")


@pytest.mark.parametrize("seed", range(5))
def test_records(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    good = {
        "kind": "decode",
        "backend": "cpu",
        "model": "m",
        "format": "native",
        "batch": 1,
        "context": 0,
        "layers": 92,
        "bytes": {"weights": 10**9, "total": 10**9},
        "kernels_per_step": 640,
        "median_ms": 1000.0,
        "samples_ms": [1000.0],
        "mad_ms": 0.0,
        "tokens_per_s": 1.0,
        "gb_per_s": 1.0,
        "roof_fraction": 0.9,
        "roof_fraction_samples": [0.9],
        "max_relative_error": 0.0,
        "distinct_experts": 8.0,
        "macs": None,
        "formats": {"bf16": 10**8},
    }
    path = tmp_path / "r.json"
    for _ in range(100):
        case = copy.deepcopy(good)
        for _ in range(rng.randint(1, 3)):
            case[rng.choice(list(case))] = rng.choice(VALUES)
        document = {"schema": "moegauge.record/1", "created": "", "machine": {}, "cases": [case, good]}
        path.write_text(json.dumps(document))
        with contextlib.suppress(MoegaugeError):
            assert all(o.seconds > 0 for o in predict.read_record(path))
