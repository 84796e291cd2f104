"""Test queries that the training side nearly repeats, by their words: no model takes part in it.

The cosine of two queries depends on the scale of a base model: of the same queries one model calls 15% near-identical
and another, with the same ranking, 69%. The words give one answer for all models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tasks.splits import document_key, query_key

_NEAR_DUPLICATE: Final = 0.9
"""Similarity from which two queries ask the same thing with hardly another word."""

_CELLS: Final = 1 << 22
"""Similarities held at a time: 16 MiB."""

_COMPARED: Final = 2_000
"""Characters of a document that are compared."""


def nearest_training_query(test: Sequence[str], trained: Sequence[str]) -> NDArray[np.float64]:
    """How similar the most similar training query is to each test query, from 0 to 1, of shape (n_test,).

    Queries are compared by their keys (`tasks.splits.query_key`: folded, no punctuation, no stop words, words sorted),
    as the share of characters that both have in the same order (rapidfuzz's normalised Indel similarity): 1 for
    rewordings, 0.9 where every tenth character differs. Exact, in O(n_test * n_trained): about 20 million pairs a
    second on one core. Without a training query: 0.
    """
    from rapidfuzz import fuzz, process

    nearest = np.zeros(len(test))
    keys = list(dict.fromkeys(map(query_key, trained)))
    if not keys:
        return nearest
    asked = [query_key(query) for query in test]
    rows = max(1, _CELLS // len(keys))
    for start in range(0, len(asked), rows):
        part = asked[start : start + rows]
        similar = process.cdist(part, keys, scorer=fuzz.ratio, dtype=np.float32)  # (part, keys), 0 to 100
        nearest[start : start + rows] = similar.max(axis=1).astype(np.float64) / 100
    return np.round(nearest, 4)


def near_duplicates(nearest: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which test queries nearly repeat a training query, by how similar the most similar one is."""
    return nearest >= _NEAR_DUPLICATE


def similar(asked: Sequence[str], among: Sequence[str]) -> NDArray[np.int64]:
    """Pairs of different queries that ask nearly the same, as (place in `asked`, place in `among`), of shape (n, 2).

    Compared as by `nearest_training_query`; queries with the same key are one question, and no pair.
    """
    from rapidfuzz import fuzz, process

    keys = [query_key(query) for query in among]
    if not keys:
        return np.empty((0, 2), np.int64)
    own = [query_key(query) for query in asked]
    rows = max(1, _CELLS // len(keys))
    found = []
    for start in range(0, len(own), rows):
        near = process.cdist(own[start : start + rows], keys, scorer=fuzz.ratio, dtype=np.float32)
        places = np.argwhere((near >= 100 * _NEAR_DUPLICATE) & (near < 100))
        found.append(places + np.array([start, 0]))
    return np.concatenate([*found, np.empty((0, 2), np.int64)])


def alike(one: str, other: str) -> bool:
    """Whether two documents nearly repeat each other, by their first 2,000 characters."""
    from rapidfuzz import fuzz

    return fuzz.ratio(document_key(one[:_COMPARED]), document_key(other[:_COMPARED])) >= 100 * _NEAR_DUPLICATE
