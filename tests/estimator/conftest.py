"""Small models and files the estimator's tests share."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moegauge.shape import Attention, Experts, Layer, Matrix, ModelShape, Vectors

THROUGHPUT = """system device n_devices device_bandwidth_GBps model total_params active_params format bits_per_weight
file_GiB batch context tokens_per_s evidence source note""".split()  # noqa: SIM905


@pytest.fixture
def moe() -> ModelShape:
    """Two layers of hidden 64: one dense, one with 8 experts of which 2 are used; bf16; every count small enough to
    reckon by hand."""
    attention = Attention(
        "gqa",
        heads=4,
        kv_heads=2,
        head_dim=16,
        value_dim=16,
        cache_elements=64,
        matrices=(
            Matrix("q_proj", "attention", 64, 64, "bf16"),
            Matrix("k_proj", "attention", 32, 64, "bf16"),
            Matrix("v_proj", "attention", 32, 64, "bf16"),
            Matrix("o_proj", "attention", 64, 64, "bf16"),
        ),
    )
    dense = Layer(
        attention,
        (
            Matrix("gate_proj", "dense_mlp", 128, 64, "bf16"),
            Matrix("up_proj", "dense_mlp", 128, 64, "bf16"),
            Matrix("down_proj", "dense_mlp", 64, 128, "bf16"),
        ),
        vectors=Vectors(128, 256),
    )
    expert = (
        Matrix("gate_proj", "routed_expert", 32, 64, "bf16"),
        Matrix("up_proj", "routed_expert", 32, 64, "bf16"),
        Matrix("down_proj", "routed_expert", 64, 32, "bf16"),
    )
    routed = Layer(
        attention, (Matrix("gate", "router", 8, 64, "bf16"),), (Experts(8, 2, expert),), vectors=Vectors(128, 256)
    )
    return ModelShape(
        "toy",
        "toy",
        64,
        Matrix("embed_tokens", "embedding", 1000, 64, "bf16"),
        Matrix("lm_head", "lm_head", 1000, 64, "bf16"),
        (dense, routed),
        Vectors(64, 128),
    )


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
        }
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, THROUGHPUT)
            writer.writeheader()
            writer.writerows({**plain, **row} for row in rows)
        return path

    return write
