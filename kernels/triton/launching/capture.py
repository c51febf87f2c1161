"""Capture launches as one CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any


def capture(enqueue: Callable[[], None]) -> Any:
    """Run `enqueue` once, so that every kernel is compiled outside the capture, then capture it; the graph.

    No garbage is collected meanwhile: a tensor freed within a capture ends it with an error.
    """
    import torch

    cuda: Any = torch.cuda  # its classes are not typed
    side = cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        enqueue()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    before = torch.cuda.current_stream()
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph):
            enqueue()
    except BaseException:
        # A capture that fails raises once more at its end, and PyTorch (2.11) then never leaves the capture's stream.
        torch.cuda.set_stream(before)
        raise
    finally:
        if collects:
            gc.enable()
    return graph
