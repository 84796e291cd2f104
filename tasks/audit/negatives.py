"""Negatives that probably answer their query: given ones, and those that were mined for the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.audit.subset import Subset
from tasks.audit.texts import CUT, row_of
from tasks.records import Suspect
from tasks.splits import document_key
from tasks.training.mining import MARGIN

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]

_GIVEN: Final = "This negative was given; every model finds it nearer to the query than the labelled document."
_MINED: Final = (
    "This negative was mined; the candidate was trained to push it away, and still finds it nearer to the query than "
    "the labelled document."
)


def given(
    train: pa.Table, rows: Ints, subset: Subset, queries: Mapping[str, Vectors], documents: Mapping[str, Vectors]
) -> Iterator[Suspect]:
    """Given negatives that every model puts before the labelled document.

    `rows` are those of the train side that are looked at, `queries` and `documents` unit vectors by side: of the rows'
    queries, and of the subset's documents.
    """
    for place, texts in enumerate(train["negatives"].take(pa.array(rows)).to_pylist()):
        numbers = {subset.by_key.get(document_key(text)) for text in texts or ()}
        for number in sorted(number for number in numbers if number is not None):
            if all(_nearer(queries[side], documents[side], subset, place, number) for side in queries):
                yield Suspect("false negative", *row_of(train, int(rows[place])), subset.texts[number][:CUT], _GIVEN)


def mined(
    train: pa.Table,
    rows: Ints,
    subset: Subset,
    start: tuple[Vectors, Vectors],
    candidate: tuple[Vectors, Vectors],
    trained: Ints,
    count: int,
) -> Iterator[Suspect]:
    """Negatives that were mined as `tasks.training.mining` does, and that the candidate still puts first.

    `start` and `candidate` are the vectors of queries and documents by the model that training started from and by what
    came of it; `trained` are the documents of the train side, of which `count` were mined for each pair.
    """
    asked, found = start
    for place, row in enumerate(rows.tolist()):
        scores = found[trained] @ asked[place]
        limit = MARGIN * float(found[subset.own[place]] @ asked[place])
        usable = trained[(scores < limit) & ~np.isin(trained, subset.answers[place])]
        hardest = usable[np.argsort(-(found[usable] @ asked[place]), kind="stable")[:count]]
        for number in hardest.tolist():
            if _nearer(*candidate, subset, place, number):
                yield Suspect("false negative", *row_of(train, row), subset.texts[number][:CUT], _MINED)


def _nearer(queries: Vectors, documents: Vectors, subset: Subset, place: int, number: int) -> bool:
    """Whether a document is nearer to the query of a pair than the labelled one."""
    return bool(documents[number] @ queries[place] > documents[subset.own[place]] @ queries[place])
