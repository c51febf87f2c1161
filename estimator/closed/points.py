"""Quasi-random points: an additive recurrence with a seeded shift.

Point i of d coordinates is frac(s + i a), a_j = g^-j, where g > 1 solves g^(d+1) = g + 1 (M. Roberts, "The unreasonable
effectiveness of quasirandom sequences", 2018: the golden ratio in one dimension, its generalisation in more). The
shift s is uniform from the seed (Cranley and Patterson, 1976), so answers of several seeds show the error that is
left. scipy.stats.qmc would do as well and takes a second to import, half of what an estimate may take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def quasi_random(count: int, dimensions: int, seed: int) -> npt.NDArray[np.float64]:
    """Points in the open unit cube; shape [count, dimensions]. The same seed gives the same points."""
    import numpy as np

    root = 2.0
    for _ in range(64):
        root = (1.0 + root) ** (1.0 / (dimensions + 1))
    steps = root ** -np.arange(1, dimensions + 1, dtype=float)
    shift = np.random.default_rng(seed).random(dimensions)
    points = (shift + np.outer(np.arange(count), steps)) % 1.0
    return np.asarray(np.clip(points, 1e-9, 1 - 1e-9))
