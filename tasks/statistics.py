"""Means of paired differences, and how far they can be trusted. Pure: arrays to numbers.

One place for what the gate and the watch of production infer from values per query.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BLOCK_CELLS = 1 << 20
"""Resampled queries held at a time."""


def bootstrap_means(table: Floats, resamples: int, seed: int) -> Floats:
    """The means of resampled queries, of shape (resamples, columns); `table` is of shape (queries, columns).

    Every column sees the same resamples (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
    """
    queries = len(table)
    means = np.empty((resamples, table.shape[1]))
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK_CELLS // queries)
    for start in range(0, resamples, rows):
        block = means[start : start + rows]  # (r, columns), filled in place
        drawn = generator.integers(0, queries, size=(len(block), queries))
        drawn += np.arange(len(block))[:, None] * queries
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)  # how often each query was drawn
        block[:] = times.astype(np.float64) @ table / queries
    return means
