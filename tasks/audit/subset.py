"""The documents that an audit ranks, numbered anew: all of a night's, or a sample with those that labels name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tasks.dataset import Dataset, labelled_right
from tasks.splits import document_key

Ints = NDArray[np.int64]

_DOCUMENTS: Final = 20_000
"""Documents that are ranked."""

_DEV: Final = 300
"""Dev queries by which an adapter is scored."""


@dataclass(frozen=True)
class Subset:
    """Some documents of a night, numbered from 0, and what the labels say of them.

    Attributes:
        places: Their numbers in `Dataset.documents`, ascending.
        texts: Their texts.
        own: The document of each pair that is looked at.
        answers: For each pair, the documents that are labelled right for its query.
        dev: Dev queries that an adapter is scored by, as numbers into `Dataset.dev`.
        relevant: For each of them, its relevant documents.
        by_key: Number by `document_key`.
    """

    places: Ints
    texts: Sequence[str]
    own: Ints
    answers: Sequence[Ints]
    dev: Ints
    relevant: Sequence[Ints]
    by_key: dict[str, int]


def choose(data: Dataset, rows: Ints, seed: int, most: int = _DOCUMENTS) -> Subset:
    """Choose documents for some rows of the train side; those that their labels name and those of dev come first."""
    rng = np.random.default_rng(seed)
    query_id, document_id = data.train["query_id"].to_numpy(), data.train["document_id"].to_numpy()
    dev = np.sort(rng.permutation(len(data.dev))[:_DEV]).astype(np.int64)
    right = np.flatnonzero(labelled_right(data.train["score"]))
    order = right[np.argsort(query_id[right], kind="stable")]
    bounds = np.searchsorted(query_id[order], np.stack([query_id[rows], query_id[rows] + 1]))
    answers = [np.unique(document_id[order[low:high]]) for low, high in bounds.T]
    labelled = [document_id[rows], *answers, *(data.dev.relevant[i] for i in dev)]
    needed = np.unique(np.concatenate(labelled))
    others = rng.permutation(np.setdiff1d(np.arange(len(data.documents)), needed))
    places = np.sort(np.concatenate([needed, others[: max(0, most - len(needed))]])).astype(np.int64)
    texts = [data.documents[place] for place in places]
    return Subset(
        places=places,
        texts=texts,
        own=np.searchsorted(places, document_id[rows]),
        answers=[np.searchsorted(places, found) for found in answers],
        dev=dev,
        relevant=[np.searchsorted(places, data.dev.relevant[i]) for i in dev],
        by_key={document_key(text): number for number, text in enumerate(texts)},
    )
