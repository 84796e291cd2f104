"""Test queries that nearly repeat a training query."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

NEAR_IDENTICAL: Final = 0.95
"""Cosine of the base model above which two queries ask the same thing in other words."""

_BLOCK: Final = 4096
"""Queries compared at a time: a block of cosines takes 64 MiB."""


def leaked_queries(
    test: NDArray[np.float32], trained: NDArray[np.float32], *, threshold: float = NEAR_IDENTICAL, block: int = _BLOCK
) -> NDArray[np.bool_]:
    """Which test queries have a training query with a cosine above `threshold`.

    `test` is of shape (n, d) and `trained` of (m, d), of length 1 per row; the result is of shape (n,).
    Exact, in O(n * m * d) time and O(block ** 2) memory besides the vectors.

    Raises ValueError when the dimensions differ, or a vector is not of length 1 (or not a number): its cosines
    would be below any threshold, and pass for "no leak".
    """
    if test.ndim != 2 or trained.ndim != 2 or test.shape[1] != trained.shape[1]:
        raise ValueError(f"expected (n, d) and (m, d), got {test.shape} and {trained.shape}")
    for name, vectors in (("test", test), ("training", trained)):
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-3))
        if len(wrong):
            raise ValueError(f"vector {wrong[0]} of the {name} queries has length {lengths[wrong[0]]}, expected 1")
    leaked = np.zeros(len(test), dtype=bool)
    for row in range(0, len(test), block):
        for column in range(0, len(trained), block):
            cosines = test[row : row + block] @ trained[column : column + block].T  # (rows, columns)
            leaked[row : row + block] |= (cosines > threshold).any(axis=1)
    return leaked
