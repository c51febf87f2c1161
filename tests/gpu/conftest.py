"""Tests here need an NVIDIA GPU; without one each skips and says why."""

from __future__ import annotations

import os
import sys

import pytest


@pytest.fixture(autouse=True)
def _the_device_answers():
    """After a test that lost the device none in this process can tell anything: under pytest-xdist another process
    takes its place, alone the run ends."""
    yield
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        pytest.exit(f"the device stopped answering: {error}", returncode=3)


def _missing() -> str:
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed"
    if not torch.cuda.is_available():
        return "no CUDA device is visible to PyTorch"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"compute capability {torch.cuda.get_device_capability()} is below 8.0"
    return ""


@pytest.fixture(scope="session")
def backend():
    """The GPU's backend; skips with the reason where there is none."""
    if reason := _missing():
        pytest.skip(reason)
    from moegauge.kernels.triton.backend import TritonBackend

    return TritonBackend()


@pytest.fixture(scope="session")
def arena(backend):
    """256 MiB of every pool a test reads."""
    pools = {f"{f}.weight": 1 << 28 for f in ("bf16", "fp8", "int8", "int4", "int4_g128", "mxfp4", "mxfp8", "nvfp4")}
    pools["f32.weight"] = 1 << 26
    pools |= {f"{f}.scale": 1 << 26 for f in ("fp8", "int8", "int4", "int4_g128", "mxfp4", "mxfp8", "nvfp4")}
    pools |= {"nvfp4.tensor": 1 << 20, "kv.bf16": 1 << 26, "kv.fp8": 1 << 26}
    pools |= {"gain.bf16": 1 << 20, "bias.bf16": 1 << 20, "bias.f32": 1 << 20}
    held = backend.arena(pools)
    yield held
    held.close()
