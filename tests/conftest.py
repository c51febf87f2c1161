"""Settings of every test: one BLAS thread, and property tests that draw the same examples every time.

Loaded before any test module, so before numpy: the estimator solves many systems of 200 rows, and BLAS threads that
wait for each other on a busy machine make that ten times slower.

Property tests draw the same examples every time: a red test is red for everyone. `make fuzz` explores.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("same-for-everyone", derandomize=True, deadline=None)
settings.load_profile("same-for-everyone")
