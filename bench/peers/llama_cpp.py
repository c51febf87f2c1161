"""llama.cpp's decode step on the CPU, one token at an empty context, from a GGUF of the same shape.

The file is written to the temporary folder with random weights and deleted afterwards. It is loaded without mmap: the
file's pages would be of 4 KiB and evictable, and the write before it would decide what is cached.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from moegauge.bench.peers import gguf_model
from moegauge.bench.peers.peer import Peer, Prepared, load, needs
from moegauge.bench.peers.work import Work
from moegauge.errors import DeviceError, NumericsError
from moegauge.machine import available_bytes
from moegauge.units import human_bytes

CONTEXT = 256  # tokens of cache: llama.cpp rounds up to this


def _prepare(work: Work, threads: int) -> Prepared:
    """Write the file and load it.

    Raises:
        DeviceError: a batch, a context or an architecture it is not set up for, or no room on disk or in memory.
    """
    if work.tokens != 1 or work.point.context:
        raise DeviceError("llama.cpp is timed at batch 1 and context 0 only.")
    needed = sum(t.bytes for t in gguf_model.tensors(work.shape))
    folder = Path(tempfile.mkdtemp(prefix="moegauge-gguf-"))
    try:
        _check_room(needed, shutil.disk_usage(folder).free, available_bytes())
        path = folder / "model.gguf"
        written = gguf_model.write(path, work.shape, work.seed)
        return _Loaded(work, written, path, threads)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # loaded into memory by now


def _check_room(needed: int, disk: int, memory: int | None) -> None:
    spare = 1 << 30  # bytes for the cache, buffers and whatever else runs
    for name, free in (("disk", disk), ("memory", memory)):
        if free is not None and needed + spare > free:
            raise DeviceError(
                f"a GGUF file of {human_bytes(needed)} does not fit in the {human_bytes(free)} of {name} free.",
                advice="Lower its depth with --layers.",
            )


class _Loaded:
    """A model in memory and its context."""

    launch_mode = "threads"
    kernels = 1

    def __init__(self, work: Work, tensors: list[gguf_model.GgufTensor], path: Path, threads: int) -> None:
        self.bytes = sum(t.read for t in tensors)
        self.parameters = work.parameters
        self._api = api = load("llama_cpp")
        self._quiet = api.llama_log_callback(lambda *_: None)  # held here: ctypes does not
        api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        self._model = self._context = None
        model = api.llama_model_default_params()
        model.n_gpu_layers = 0
        _no_mmap(model)
        self._model = api.llama_model_load_from_file(str(path).encode(), model)
        if not self._model:
            raise DeviceError("llama.cpp does not load the GGUF file of this shape.")
        context = api.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max = CONTEXT, 1, 1, 1
        context.n_threads = context.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, context)
        if not self._context:
            self.close()
            raise DeviceError("llama.cpp makes no context for this model.")
        self._vocabulary = work.shape.embedding.rows
        # Another token each time, so that other experts are chosen.
        self._tokens = np.random.default_rng(work.seed).integers(0, self._vocabulary, 4096)
        self._next = 0
        self._token = (api.llama_token * 1)()

    def run(self) -> None:
        """Decode one token at an empty context."""
        self._decode(int(self._tokens[self._next]))
        self._next = (self._next + 1) % len(self._tokens)

    def _decode(self, token: int) -> None:
        api = self._api
        api.llama_memory_clear(api.llama_get_memory(self._context), False)
        self._token[0] = token
        if status := api.llama_decode(self._context, api.llama_batch_get_one(self._token, 1)):
            raise DeviceError(f"llama_decode failed with status {status}.")
        api.llama_synchronize(self._context)

    def _logits(self, token: int) -> Any:
        self._decode(token)
        return np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (self._vocabulary,)).copy()

    def check(self) -> float:
        """The same token twice: logits finite, not all alike, and the same.

        A whole step of another program has no float64 reference here; what is returned is the largest difference of
        two runs over the largest logit.

        Raises:
            NumericsError: logits that are no answer, or that differ by more than 1 %.
        """
        first, second = self._logits(1), self._logits(1)
        largest = float(np.abs(first).max())
        if not np.isfinite(first).all() or first.std() == 0:
            raise NumericsError("llama.cpp: logits that are infinite or all alike.")
        error = float(np.abs(first - second).max()) / largest
        if not error <= 0.01:
            raise NumericsError(f"llama.cpp: the same token gave logits {error:.2g} apart.")
        return error

    def close(self) -> None:
        """Free model and context."""
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._model = self._context = None


def _no_mmap(parameters: Any) -> None:
    """Read the file into memory. Releases before 2026 have a flag, later ones a mode."""
    if hasattr(parameters, "load_mode"):
        parameters.load_mode = 0  # LLAMA_LOAD_MODE_NONE
    else:
        parameters.use_mmap = False


PEERS = (
    Peer(
        name="llama.cpp",
        device="cpu",
        kernels=frozenset({"decode"}),
        formats={ours: theirs.lower() for ours, theirs in gguf_model.TYPES.items()},
        distributions=("llama-cpp-python",),  # which pins llama.cpp
        absent=lambda: needs("llama-cpp-python", "llama_cpp")() or needs("gguf", "gguf")(),
        prepare=_prepare,
    ),
)
