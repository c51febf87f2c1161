"""Small models and files the estimator's tests share."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import pytest

from moegauge.shape import ModelShape

THROUGHPUT = """system device n_devices device_bandwidth_GBps model total_params active_params format bits_per_weight
file_GiB batch context tokens_per_s evidence source note speed_of mean_tpot_ms median_itl_ms""".split()  # noqa: SIM905


@pytest.fixture
def moe() -> ModelShape:
    """Two layers of hidden 64: one dense, one with 8 experts of which 2 are used; bf16; every count small enough to
    reckon by hand."""
    mixer = made_up.gqa(64, heads=4, kv_heads=2, width=16)
    dense, routed = made_up.dense_layer(mixer, 128, 64), made_up.moe_layer(mixer, 8, 2, 32, 64)
    return made_up.model([dense, routed], 64, name="toy", family="toy", vocabulary=1000)


@pytest.fixture
def readings_csv(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CSV of readings: each argument is a mapping of the cells that differ from a plain row."""

    def write(*rows: dict[str, Any]) -> Path:
        path = tmp_path / "readings.csv"
        plain = {
            "system": "engine",
            "device": "card",
            "n_devices": 1,
            "device_bandwidth_GBps": 1000,
            "model": "m",
            "total_params": 8e9,
            "active_params": 8e9,
            "format": "bf16",
            "bits_per_weight": 16,
            "file_GiB": "",
            "batch": 1,
            "context": "tg128",
            "tokens_per_s": 40,
            "evidence": "primary",
            "source": "here",
            "note": "",
            "speed_of": "",
        }
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, THROUGHPUT)
            writer.writeheader()
            writer.writerows({**plain, **row} for row in rows)
        return path

    return write
