"""Loaded before any test module, so before numpy: the estimator solves many systems of 200 rows, and BLAS threads that
wait for each other on a busy machine make that ten times slower."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
