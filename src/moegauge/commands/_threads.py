"""Limit the linear algebra library's threads, for commands that solve many small systems."""

from __future__ import annotations

import os


def one_blas_thread() -> None:
    """Ask OpenBLAS for one thread; call it before numpy is imported.

    The estimator's matrices have 200 rows. Two threads that wait for each other on a busy machine took 16 s for what
    one does in 1 s. A number the user has set stands.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
