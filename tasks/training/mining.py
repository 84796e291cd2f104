"""Hard negatives: documents that the starting model ranks high for a query and that no row says answer it.

Mined among the training side's own documents, so nothing of dev or test is read. A document that is nearly as similar
to the query as its labelled positive may well answer it too; the margin keeps such likely false negatives out
(Moreira et al. 2024, NV-Retriever, "TopK with percentage to positive threshold", 95%).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.training.examples import Examples, Ints

MARGIN: Final = 0.95
"""A negative's cosine must stay below this share of the positive's."""

_BLOCK: Final = 1 << 24
"""Cosines held at a time: 64 MB."""

Vectors = npt.NDArray[np.float32]


def find(rows: pa.Table, examples: Examples, queries: Vectors, documents: Vectors, count: int) -> Ints:
    """Up to `count` hard negatives of each row without a score, as numbers into `examples.documents`.

    Args:
        rows: the training rows.
        examples: the same rows, numbered.
        queries: unit vectors of `examples.queries`, shape (n, d).
        documents: unit vectors of `examples.documents`, shape (m, d).
        count: negatives per row.

    Returns:
        Shape (rows, count): the hardest first, then -1 where there are no more.
    """
    found: Ints = np.full((rows.num_rows, count), -1, np.int64)
    wanted = np.array([score is None for score in rows.column("score").to_pylist()], np.bool_).nonzero()[0]
    asked, answers = examples.query_numbers[wanted], examples.document_numbers[wanted]
    size = max(1, _BLOCK // len(documents))
    for start in range(0, len(wanted), size):
        block = slice(start, start + size)
        cosines = queries[asked[block]] @ documents.T  # (rows of the block, m)
        limits = MARGIN * np.take_along_axis(cosines, answers[block][:, None], axis=1)  # (rows of the block, 1)
        cosines[cosines >= limits] = -np.inf
        for row, line in zip(wanted[block].tolist(), cosines, strict=True):
            hardest = _hardest(line, examples.answers(row), examples.document_keys, count)
            found[row, : len(hardest)] = hardest
    return found


def add(rows: pa.Table, examples: Examples, found: Ints) -> tuple[pa.Table, int]:
    """Add what `find` found to each row's negatives, after those that were given; also how many were added."""
    negatives = [
        [*(given or ()), *(examples.documents[number] for number in numbers if number >= 0)]
        for given, numbers in zip(rows.column("negatives").to_pylist(), found.tolist(), strict=True)
    ]
    place = rows.column_names.index("negatives")
    added = int((found >= 0).sum())
    return rows.set_column(place, "negatives", pa.array(negatives, pa.list_(pa.string()))), added


def _hardest(cosines: Vectors, excluded: set[int], keys: Ints, count: int) -> list[int]:
    """The highest finite cosines' documents whose key is not excluded, each key once."""
    reach = min(len(cosines), count + 16 + len(excluded))
    top = np.argpartition(-cosines, reach - 1)[:reach]
    found: list[int] = []
    taken = set(excluded)
    for number in top[np.lexsort((top, -cosines[top]))].tolist():
        if len(found) == count or not np.isfinite(cosines[number]):
            break
        if int(keys[number]) not in taken:
            taken.add(int(keys[number]))
            found.append(number)
    return found
