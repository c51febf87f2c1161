"""The Triton kernels as Triton's interpreter runs them, against float64: no GPU, the compiled arithmetic apart.

What inline assembly computes is held to the same numbers over every code point in test_layout.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("interpreted.py")


def run(*jobs: str) -> list[dict[str, float]]:
    """The JSON lines of some jobs, all in one process."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *" , ".join(jobs).split()],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_products_of_every_format_are_within_the_rounding_of_their_sums():
    # (format, columns, tokens): whole chunks of 4 and of 3 tiles, a ragged last chunk, fewer tiles than a chunk.
    jobs = ["mxfp4 256 1", "nvfp4 192 3", "int4 320 9", "int4_g128 384 2", "fp8 160 5", "int8 96 2", "bf16 48 17"]
    jobs += ["mxfp8 320 3", "mxfp8 256 1"]
    for job, got in zip(jobs, run(*(f"product {job}" for job in jobs)), strict=True):
        assert got["tiled"], job
        assert got["same"], f"{job}: arena.read does not give the canonical bytes back"
        assert got["worst"] <= 1, job


def test_products_of_several_row_tiles_are_whole_however_their_chunks_are_shared():
    """Sixteen programs at most: shares that begin and end inside row tiles, shares of several of them, a row tile of
    thirteen parts."""
    jobs = [
        "bf16 448 1 80",
        "bf16 1616 1",
        "bf16 1616 3",
        "fp8 672 3 80",
        "mxfp4 1216 1 112",
        "nvfp4 1216 9 112",
        "int8 64 1 640",
    ]
    for job, got in zip(jobs, run(*(f"product {job}" for job in jobs)), strict=True):
        assert got["tiled"] and got["worst"] <= 1, job  # noqa: PT018


def test_shares_are_even_joined_and_known_to_everyone():
    for got in run("shares"):
        assert got["joined"] and got["even"] and got["owned"], got  # noqa: PT018


def test_shapes_that_do_not_fill_tiles_take_the_obvious_kernel():
    jobs = [
        "mxfp4 100 2 5",
        "mxfp8 100 2 5",
        "mxfp8 96 1 16",
        "nvfp4 33 1 7",
        "int4 65 2 3",
        "fp8 130 1 3",
        "int8 9 2 5",
        "bf16 7 1 1",
        "f32 33 2 4",
    ]
    for job, got in zip(jobs, run(*(f"product {job}" for job in jobs)), strict=True):
        assert not got["tiled"], job
        assert got["same"] and got["worst"] <= 1, job  # noqa: PT018


def test_a_wrong_scale_or_nibble_order_is_far_outside_the_bound():
    jobs = [
        "mxfp4 256 1 16 scale",
        "int4 256 1 16 nibble",
        "fp8 256 2 16 scale",
        "nvfp4 256 1 16 scale",
        "mxfp8 256 1 16 scale",
    ]
    for job, got in zip(jobs, run(*(f"product {job}" for job in jobs)), strict=True):
        assert got["worst"] > 10, job


@pytest.mark.slow
def test_a_dense_step_passes_the_numerical_gate():
    (got,) = run("step mxfp4 gqa 1 3")
    assert got["worst"] < 0.05


@pytest.mark.slow
def test_an_expert_step_of_two_tokens_with_latent_attention_passes():
    (got,) = run("step fp8 mla 2 2")
    assert got["worst"] < 0.05


@pytest.mark.slow
def test_expert_steps_wide_enough_to_share_row_tiles_pass_for_one_token_and_for_several():
    """One token: the router's product chooses the experts, and norms have no launches of their own."""
    jobs = ["step bf16 mla 1 2 160 192 16", "step bf16 mla 3 3 160 192"]
    for job, got in zip(jobs, run(*jobs), strict=True):
        assert got["worst"] < 0.05, job


def test_attention_of_several_blocks_of_heads_and_splits_writes_every_output_and_its_copy():
    """Latent attention of 40 heads fills its second block of 32 by a quarter; three tokens, a ragged last split."""
    jobs = {"mla bf16 40 3 300 2": [3, 2, 2], "mla fp8 40 1 140 1": [1, 2, 1], "gqa bf16 8 2 300 2": [2, 2, 2]}
    for (job, grid), got in zip(jobs.items(), run(*(f"attention {job}" for job in jobs)), strict=True):
        assert got["grid"] == grid, job
        assert got["copied"], job


def test_a_kernel_timed_alone_has_its_inputs_and_choices_made_before():
    jobs = {"fp8 1 experts-up": 1, "fp8 2 experts-down": 1, "fp8 1 router": 1}
    for (job, launches), got in zip(jobs.items(), run(*(f"alone {job}" for job in jobs)), strict=True):
        assert got["launches"] == launches, job
        assert got["input"] and not got["output"], job  # noqa: PT018
        assert got["worst"] < 0.05, job


def test_experts_are_chosen_by_score_then_by_number_and_scores_that_are_none_come_last():
    jobs = ["7 3", "40 8", "256 8"]
    for job, got in zip(jobs, run(*(f"choose {job}" for job in jobs)), strict=True):
        assert got["chosen"] and got["even"], job  # noqa: PT018


def test_an_empty_batch_compiles_to_nothing():
    (got,) = run("step bf16 gqa 0 0")
    assert got["batch"] == 0
