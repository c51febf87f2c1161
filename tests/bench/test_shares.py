"""How a step's launches are cut for a GPU of 132 multiprocessors, without one, as docs/kernels-triton.md says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from moegauge import models
from moegauge.bench.run.launches import uneven
from moegauge.bench.step.lowered import lowered
from moegauge.kernels.triton.launching.launch import PROGRAMS, REGISTERS
from moegauge.kernels.triton.lowering.configuration import CONFIGURATIONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("model", ["deepseek-v3", "gpt-oss-120b"])
def test_no_program_that_streams_weights_waits_for_a_place(model: str, batch: int) -> None:
    for name in CONFIGURATIONS:
        sharing = [launch for launch in lowered(model, True, batch=batch, name=name) if launch.chunks]
        assert sharing
        for launch in sharing:
            most = PROGRAMS * REGISTERS // max(REGISTERS, launch.maxnreg)
            assert launch.grid[0] <= 132 * most
            assert uneven(launch.chunks, launch.grid[0]) < 0.26
            assert launch.chunks >= launch.grid[0] * CONFIGURATIONS[name].turns or launch.grid[0] == 1


@pytest.mark.parametrize(("model", "each", "others"), [("gpt-oss-120b", 6, 3), ("deepseek-v3", 9, 3)])
def test_a_single_token_s_layer_has_no_launch_for_norms_and_routing(model: str, each: int, others: int) -> None:
    """Beside the layers: the embedding, the first norm and the logits. Dense layers of DeepSeek-V3 have one less."""
    launches = [launch for launch in lowered(model, True) if launch.enqueued]
    layers = models.load(model).layers
    dense = sum(not layer.experts for layer in layers)
    assert len(launches) == each * len(layers) - dense + others
    assert sum(launch.kernel.fn.__name__ == "prepare" for launch in launches) == 1
    assert not any(launch.kernel.fn.__name__ == "choose" for launch in launches)


def test_the_script_prints_every_model() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "shares.py"), "--model", "gpt-oss-20b", "--batch", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("gpt-oss-20b, ")
    assert "experts_up mxfp4, 2880 rows, 45 tiles" in done.stdout
