"""The list of devices (`--device`): where a new backend is registered."""

from __future__ import annotations

from moegauge.errors import DeviceError, UnknownNameError
from moegauge.kernels.backend import Backend

NAMES = ("cpu", "cuda", "reference")


def get_backend(name: str, *, threads: int | None = None, launch_mode: str = "") -> Backend:
    """The backend for a device name.

    Args:
        name: `cpu`, `cuda` or `reference`.
        threads: CPU threads; None uses every core this process may run on.
        launch_mode: how a GPU's steps are launched (`eager`, `graph`, `pdl`); "" is the device's default.

    Raises:
        UnknownNameError: no such device name.
        DeviceError: the device is not there, or `threads` is out of range.
    """
    if name == "cpu":
        from moegauge.kernels.cpu.core import library

        if library() is None:  # installed without a compiler
            from moegauge.kernels.numpy_backend import NumpyBackend

            return NumpyBackend("cpu")
        from moegauge.kernels.cpu.backend import CpuBackend

        return CpuBackend(threads)
    if name == "cuda":
        try:
            import torch  # noqa: F401 - seconds to import
        except ImportError:
            raise DeviceError(
                "device 'cuda' needs PyTorch.", advice="Run: pip install 'moegauge[bench]', or use --device cpu."
            ) from None
        from moegauge.kernels.triton.backend import TritonBackend

        return TritonBackend(launch_mode=launch_mode)
    if name == "reference":
        from moegauge.kernels.numpy_backend import NumpyBackend

        return NumpyBackend("reference")
    raise UnknownNameError("device", name, NAMES)
