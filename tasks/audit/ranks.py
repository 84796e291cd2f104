"""Pairs whose document no model finds, although another one stands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_BLOCK: Final = 1 << 22
"""Similarities held at a time: 16 MiB."""

_HOPELESS: Final = 0.02
"""Share of the documents that are nearer to the query than the labelled one, from which that ranks hopelessly ..."""

_HOPELESS_RANK: Final = 20
"""... and how many at least, among few documents."""

_FAR: Final = 3.0
"""How far above the labelled document the nearest one is, in standard deviations of the query's similarities."""


@dataclass(frozen=True)
class Ranked:
    """How one model ranks the labelled document of each pair, each of shape (n_pairs,).

    Attributes:
        above: Documents that are nearer to the query and not labelled right for it.
        best: The nearest of them.
        gap: How much nearer that is than the labelled one, in standard deviations of the query's similarities.
    """

    above: Ints
    best: Ints
    gap: NDArray[np.float32]


def rank(queries: Vectors, documents: Vectors, own: Ints, answers: Sequence[Ints]) -> Ranked:
    """Rank the labelled document of each pair among all documents.

    Args:
        queries: Unit vectors of shape (n, d).
        documents: Unit vectors of shape (m, d).
        own: The labelled document of each pair.
        answers: For each pair, every document that is labelled right for its query.
    """
    above, best = np.zeros(len(queries), np.int64), np.zeros(len(queries), np.int64)
    gap = np.zeros(len(queries), np.float32)
    size = max(1, _BLOCK // len(documents))
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        scores = queries[part] @ documents.T  # (pairs of the block, m)
        labelled = np.take_along_axis(scores, own[part][:, None], axis=1)
        spread = np.maximum(scores.std(axis=1), 1e-9)
        for line, known in enumerate(answers[part]):
            scores[line, known] = -np.inf
        above[part] = (scores > labelled).sum(axis=1)
        best[part] = scores.argmax(axis=1)
        gap[part] = np.maximum(scores.max(axis=1) - labelled[:, 0], 0.0) / spread
    return Ranked(above, best, gap)


def hopeless(untrained: Ranked, trained: Sequence[Ranked], documents: int) -> Mask:
    """Which pairs no model understands.

    A model that was trained on a pair has partly learnt it by heart. So the base model, which was not, has to rank the
    document hopelessly, with another far above it; under the trained ones another has to be above it still.
    """
    lost = untrained.above >= max(_HOPELESS_RANK, _HOPELESS * documents)
    lost &= untrained.gap >= _FAR
    for side in trained:
        lost &= side.above >= 1
    return np.asarray(lost)
