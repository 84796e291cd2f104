"""Rows of a night to what is trained on, what is tested on, and what is searched. Pure: no store, no clock.

What counts as one thing: a document is its `document_key`, and so is the text of a query (spellings that differ
in case or white space are one query, tested once). Rewordings of a query (the same `query_key`) are queries
of their own on the same side, and share their relevant documents: a document labelled relevant for "reset
password" must not count as a miss for "password reset".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.splits import Side, Split, document_key, query_key

Indices: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]

RELEVANT_SCORE: Final = 0.5
"""Score from which a scored row says that its document is relevant, unless told otherwise."""

_CHUNK: Final = 1 << 16
"""Texts taken into Python at a time: bounds memory at a few tens of megabytes."""


@dataclass(frozen=True)
class EvaluationSet:
    """Queries of one side that have at least one relevant document, in the order in which they arrived.

    `relevant[i]` holds the indices into `Dataset.documents` that are relevant to `queries[i]`, ascending.
    """

    queries: list[str]
    relevant: list[Indices]
    slices: list[str | None]
    golden: Mask
    excluded: int
    """Queries left out because nothing is labelled relevant to them."""
    sources: list[str | None] = field(default_factory=list)
    """Where the labels of each query come from (clicks, experts); empty: no row says."""

    def __len__(self) -> int:
        """How many queries there are."""
        return len(self.queries)

    def take(self, places: Indices) -> EvaluationSet:
        """The queries at these places, in this order."""
        return EvaluationSet(
            queries=[self.queries[i] for i in places],
            relevant=[self.relevant[i] for i in places],
            slices=[self.slices[i] for i in places],
            golden=self.golden[places],
            excluded=self.excluded,
            sources=[self.sources[i] for i in places] if self.sources else [],
        )

    @classmethod
    def concatenate(cls, sets: Sequence[EvaluationSet]) -> EvaluationSet:
        """The queries of several sets over the same documents, one set after the other."""
        return cls(
            queries=[query for part in sets for query in part.queries],
            relevant=[found for part in sets for found in part.relevant],
            slices=[name for part in sets for name in part.slices],
            golden=np.concatenate([part.golden for part in sets]),
            excluded=sum(part.excluded for part in sets),
            sources=[name for part in sets for name in part.sources or [None] * len(part)],
        )


@dataclass(frozen=True)
class Dataset:
    """Everything that one night learns from and is judged by.

    `train` has the columns of the rows and two more: `document_id` (index into `documents`) and `query_id`
    (equal for rewordings of one query). A document is a known positive of a query, and so no in-batch
    negative of it, when a row pairs its `document_id` with that `query_id`: all labels of a query are on one side.
    """

    train: pa.Table
    dev: EvaluationSet
    test: EvaluationSet
    documents: list[str]

    @property
    def trained_documents(self) -> Mask:
        """Which documents are trained on, with the query that they answer, of shape (n_documents,).

        A document of a test query that is not among them is new to the model.
        """
        trained = np.zeros(len(self.documents), dtype=bool)
        trained[self.train["document_id"].to_numpy()] = True
        return trained

    @property
    def counts(self) -> dict[str, int]:
        """Rows to train on, queries to develop and to test on, documents to search."""
        return {
            "train": self.train.num_rows,
            "dev": len(self.dev),
            "test": len(self.test),
            "corpus": len(self.documents),
        }


@dataclass(frozen=True)
class Codes:
    """Texts as numbers: `codes[i]` is equal for texts with the same key, numbered as they first appear."""

    codes: Indices
    first: Indices
    """For each code, the position of the first text that has it."""


def encode_texts(texts: pa.ChunkedArray, key: Callable[[str], str]) -> Codes:
    """Number texts by key. Every distinct text is normalised once, and only digests are kept.

    A missing text is numbered as an empty one; the data checks do not let one through.
    """
    filled = texts.fill_null("") if texts.null_count else texts
    spelled = filled.cast(pa.large_string()).dictionary_encode()  # every chunk gets the same, complete dictionary
    distinct = spelled.chunk(0).dictionary if spelled.num_chunks else pa.array([], pa.large_string())
    digests = [
        hashlib.blake2b(key(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for start in range(0, len(distinct), _CHUNK)
        for text in distinct.slice(start, _CHUNK).to_pylist()
    ]
    keys = pa.array(digests, pa.binary(16)).dictionary_encode().indices.to_numpy().astype(np.int64)
    codes = np.concatenate([np.zeros(0, np.int64), *(keys[chunk.indices.to_numpy()] for chunk in spelled.chunks)])
    return Codes(codes, np.unique(codes, return_index=True)[1])


def build(rows: pa.Table, split: Split, relevant_score: float = RELEVANT_SCORE) -> Dataset:
    """Divide the rows of a commit (schema `tasks.intake.ROWS`) into train, dev, test and documents.

    - Documents are those of pairs, golden and corpus rows, and negatives too: a text that somebody labelled wrong
      for a query is a text that a search would meet. The first spelling wins.
    - A row without a score says that its document is relevant, one with a score says so from `relevant_score`.
    - Golden queries are tested on. No pair row with the `query_key` of one is trained on or used for dev: it is
      tested on as well, and its labels count.
    - Rows to train on are distinct by (query, document): the first one stays, with the negatives of all of them
      and the mean of their scores. Rows with and without a score answer different questions and stay apart.
    - A negative that is relevant to the same query elsewhere, or is the row's own document, is dropped.

    A document that is relevant to a test query may be trained on with other queries: it is in the corpus of both.
    """
    corpus = index_documents(rows)
    n = len(corpus)
    is_labelled = pc.not_equal(rows["kind"], "corpus")
    labelled = np.flatnonzero(_mask(is_labelled))
    table = rows.filter(is_labelled)
    golden_row = _mask(pc.equal(table["kind"], "golden"))
    relevant_row = _mask(pc.fill_null(pc.greater_equal(table["score"], relevant_score), True))

    texts = encode_texts(table["query"], document_key)
    queries = table["query"].cast(pa.large_string()).take(pa.array(texts.first)).to_pylist()
    query_keys = [query_key(query) for query in queries]
    keys = encode_texts(pa.chunked_array([query_keys], pa.large_string()), str)
    key_of_row = keys.codes[texts.codes]
    side = np.array([split.side_of_key(query_keys[i]) for i in keys.first], dtype="U5")
    side[key_of_row[golden_row]] = "test"

    # every label "document is relevant to key" once, ascending: those of one key are one stretch of the array
    labels = np.unique(key_of_row[relevant_row] * n + corpus.document_of[labelled][relevant_row])
    bounds = np.searchsorted(labels, np.arange(len(side) + 1) * n)

    golden = np.zeros(len(queries), dtype=bool)
    golden[texts.codes[golden_row]] = True
    slices = _first_values(table["slice"], texts.codes, len(queries))
    sources = _first_values(table["source"], texts.codes, len(queries)) if "source" in table.column_names else []

    def evaluation_set(name: Side) -> EvaluationSet:
        asked = np.flatnonzero(side[keys.codes] == name)
        answered = asked[np.diff(bounds)[keys.codes[asked]] > 0]
        return EvaluationSet(
            queries=[queries[i] for i in answered],
            relevant=[labels[bounds[key] : bounds[key + 1]] - key * n for key in keys.codes[answered]],
            slices=[slices[i] for i in answered],
            golden=golden[answered],
            excluded=len(asked) - len(answered),
            sources=[sources[i] for i in answered] if sources else [],
        )

    trained = side[key_of_row] == "train"
    key_of = np.full(rows.num_rows, -1, dtype=np.int64)
    key_of[labelled[trained]] = key_of_row[trained]
    text_of = np.full(rows.num_rows, -1, dtype=np.int64)
    text_of[labelled[trained]] = texts.codes[trained]
    return Dataset(
        train=_distinct(rows, corpus, key_of, text_of, labels),
        dev=evaluation_set("dev"),
        test=evaluation_set("test"),
        documents=corpus.spelled(np.arange(n)).to_pylist(),
    )


@dataclass(frozen=True)
class Corpus:
    """The distinct documents of some rows, and which of them each row and each negative is."""

    texts: pa.ChunkedArray
    """Every text of every row, repetitions included."""
    first: Indices
    """For each document, where in `texts` it was first spelled."""
    document_of: Indices
    """For each row, its document."""
    negative_row: Indices
    """For each negative of any row, the row that it belongs to."""
    negative: Indices
    """For each negative of any row, the document that it is."""

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self.first)

    def spelled(self, documents: Indices) -> pa.Array:
        """The texts of some documents, in the spelling that came first."""
        return self.texts.take(pa.array(self.first[documents])).combine_chunks()


def index_documents(rows: pa.Table) -> Corpus:
    """Number the documents and negatives of all rows (schema `tasks.intake.ROWS`) in order of arrival."""
    negative, negative_row = flat_negatives(rows)
    document = rows["document"].cast(pa.large_string())
    texts = pa.chunked_array([*document.chunks, *negative.chunks], pa.large_string())
    encoded = encode_texts(texts, document_key)
    # a row's negatives arrive after its document and before the next row
    arrival = np.argsort(np.concatenate([np.arange(len(rows)), negative_row]), kind="stable")
    first = np.sort(np.unique(encoded.codes[arrival], return_index=True)[1])  # each document's first place in it
    new = np.empty(len(first), dtype=np.int64)
    new[encoded.codes[arrival[first]]] = np.arange(len(first))
    codes = new[encoded.codes]
    return Corpus(texts, arrival[first], codes[: len(rows)], negative_row, codes[len(rows) :])


def flat_negatives(rows: pa.Table) -> tuple[pa.ChunkedArray, Indices]:
    """All negatives of all rows one after the other, and for each of them its row."""
    chunks = rows["negatives"].cast(pa.large_list(pa.large_string())).chunks
    starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
    parents = [pc.list_parent_indices(c).to_numpy() + s for c, s in zip(chunks, starts[:-1], strict=True)]
    texts = pa.chunked_array([pc.list_flatten(chunk) for chunk in chunks], pa.large_string())
    return texts, np.concatenate([np.zeros(0, np.int64), *parents]).astype(np.int64)


def _distinct(rows: pa.Table, corpus: Corpus, key_of: Indices, text_of: Indices, labels: Indices) -> pa.Table:
    """The rows whose `key_of` is not -1, once per query text, document and presence of a score (see `build`)."""
    n = len(corpus)
    chosen = np.flatnonzero(key_of >= 0)
    scored = _mask(pc.is_valid(rows["score"]))
    same = (text_of[chosen] * n + corpus.document_of[chosen]) * 2 + scored[chosen]
    _, first, group = np.unique(same, return_index=True, return_inverse=True)
    in_order = np.argsort(first)
    group = np.argsort(in_order)[group]
    kept = chosen[first[in_order]]

    score = rows["score"].to_numpy()[chosen].astype(np.float64)
    mean = np.bincount(group, score, len(kept)) / np.maximum(np.bincount(group, minlength=len(kept)), 1)

    group_of = np.full(rows.num_rows, -1, dtype=np.int64)
    group_of[chosen] = group
    own = group_of[corpus.negative_row]
    usable = own >= 0
    usable &= ~np.isin(key_of[corpus.negative_row] * n + corpus.negative, labels)
    usable &= corpus.negative != corpus.document_of[corpus.negative_row]
    negatives = np.unique(own[usable] * n + corpus.negative[usable])
    offsets = np.searchsorted(negatives, np.arange(len(kept) + 1) * n)
    texts = corpus.spelled(negatives % max(n, 1))

    keep = np.zeros(len(rows), dtype=bool)
    keep[kept] = True  # ascending, so a filter keeps the order; `take` fails on columns over 2 GiB
    train = rows.filter(pa.array(keep))
    train = _replaced(train, "negatives", pa.LargeListArray.from_arrays(pa.array(offsets), texts))
    train = _replaced(train, "score", pa.array(mean, mask=~scored[kept]))
    return train.append_column("query_id", pa.array(key_of[kept])).append_column(
        "document_id", pa.array(corpus.document_of[kept])
    )


def _first_values(column: pa.ChunkedArray, codes: Indices, n_codes: int) -> list[str | None]:
    """For each code the first value that is not null, or None."""
    valid = np.flatnonzero(_mask(pc.is_valid(column)))
    found, first = np.unique(codes[valid], return_index=True)
    values: list[str | None] = [None] * n_codes
    for code, value in zip(found, column.take(pa.array(valid[first])).to_pylist(), strict=True):
        values[code] = value
    return values


def _replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """The table with one column replaced."""
    return table.set_column(table.schema.get_field_index(name), name, column)


def _mask(condition: pa.ChunkedArray) -> Mask:
    """An Arrow condition without nulls as a numpy array."""
    mask: Mask = condition.to_numpy().astype(bool)
    return mask
