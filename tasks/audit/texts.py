"""Labels that contradict each other, found without a model: in all rows, and by their words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.dataset import Dataset, encode_texts, index_documents, labelled_right
from tasks.records import Suspect
from tasks.splits import query_key

Ints = NDArray[np.int64]

CUT = 300
"""Characters of a text that are kept."""


def row_of(rows: pa.Table, place: int) -> tuple[str, int, str, str]:
    """Object, line, query and document of a row, the texts cut."""
    object_, line, query, document = (rows[name][place].as_py() for name in ("object", "line", "query", "document"))
    return object_, line, query[:CUT], document[:CUT]


def contradictions(rows: pa.Table) -> Iterator[Suspect]:
    """Documents that one row calls right and another row wrong for the same query, up to rewording.

    `rows` are all rows of a commit (schema `tasks.intake.ROWS`).
    """
    rows = rows.filter(pc.not_equal(rows["kind"], "corpus"))
    documents = index_documents(rows)
    n = len(documents)
    asked = encode_texts(rows["query"], query_key).codes
    right = np.flatnonzero(labelled_right(rows["score"]))
    labels, first = np.unique(asked[right] * n + documents.document_of[right], return_index=True)
    wrong = asked[documents.negative_row] * n + documents.negative
    if not len(labels):
        return
    place = np.minimum(np.searchsorted(labels, wrong), len(labels) - 1)
    for number in np.flatnonzero(labels[place] == wrong).tolist():
        row, other = int(documents.negative_row[number]), int(right[first[place[number]]])
        object_, line, query, document = row_of(rows, row)
        other_object, other_line, _, negative = row_of(rows, other)
        yield Suspect(
            "contradiction", object_, line, query, document, negative,
            "A negative of this row is the document of another row with the same query.", other_object, other_line,
        )  # fmt: skip


def similar_queries(train: pa.Table, asked: Ints, among: Ints) -> Iterator[Suspect]:
    """Of some rows of the train side, those whose query another one nearly repeats, with other documents only."""
    from data_checks import leaks

    queries = train["query"].to_pylist()
    query_id, document = train["query_id"].to_numpy(), train["document_id"].to_numpy()
    answers: dict[int, set[int]] = {}
    for key, found in zip(query_id.tolist(), document.tolist(), strict=True):
        answers.setdefault(key, set()).add(found)
    seen: set[tuple[int, int]] = set()
    for one, two in leaks.similar([queries[i] for i in asked], [queries[i] for i in among]).tolist():
        row, other = int(asked[one]), int(among[two])
        keys = tuple(sorted((int(query_id[row]), int(query_id[other]))))
        if (keys[0], keys[1]) in seen or not answers[keys[0]].isdisjoint(answers[keys[1]]):
            continue
        seen.add((keys[0], keys[1]))
        other_object, other_line, query, _ = row_of(train, other)
        yield Suspect(
            "similar queries", *row_of(train, row), query,
            "Nearly the same query has another document, which counts as wrong for this one.", other_object, other_line,
        )  # fmt: skip


def similar_documents(
    data: Dataset, rows: Ints, own: Ints, nearest: Sequence[Sequence[int]], answers: Sequence[Ints], places: Ints
) -> Iterator[Suspect]:
    """Rows whose document another one nearly repeats, which then counts as wrong for the query.

    Args:
        data: The night's data.
        rows: Rows of the train side.
        own: The document of each.
        nearest: The most similar other documents of each; all as places in `places`.
        answers: What is labelled right for the query of each.
        places: Numbers of documents in `data.documents`.
    """
    from data_checks import leaks

    seen: set[tuple[int, int]] = set()
    for row, document, others, known in zip(rows.tolist(), own.tolist(), nearest, answers, strict=True):
        for other in others:
            texts = data.documents[places[document]], data.documents[places[other]]
            if other in known or (document, other) in seen or not leaks.alike(*texts):
                continue
            seen |= {(document, other), (other, document)}
            yield Suspect(
                "similar documents", *row_of(data.train, row), texts[1][:CUT],
                "Nearly the same text is another document, which counts as wrong for this query.",
            )  # fmt: skip
