"""Rows of a night to what is trained on, what is tested on, and what is searched. Pure: no store, no clock.

What counts as one thing: a document is its `document_key`, and so is the text of a query (spellings that differ
in case or white space are one query, tested once). Rewordings of a query (the same `query_key`) are queries
of their own on the same side, and share their relevant documents: a document labelled relevant for "reset
password" must not count as a miss for "password reset".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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

_DIGEST: Final = 16
"""Bytes of a digest: texts with equal ones are taken for the same."""

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
    """Number texts by key. A text is normalised once for some tens of thousands of rows, and only digests are kept.

    A missing text is numbered as an empty one; the data checks do not let one through.
    """
    codes = _numbered(digest for part in _parts(texts) for digest in _digests(part, key))
    return Codes(codes, np.unique(codes, return_index=True)[1])


def _parts(texts: pa.ChunkedArray) -> Iterator[pa.Array]:
    """A column a few rows at a time."""
    for chunk in texts.chunks:
        for start in range(0, len(chunk), _CHUNK):
            yield chunk.slice(start, _CHUNK)


def _digests(texts: pa.Array, key: Callable[[str], str]) -> Iterator[bytes]:
    """The digest of each text's key, as one run of bytes."""
    coded = (texts.fill_null("") if texts.null_count else texts).dictionary_encode()
    distinct = np.array([_digest(key(text)) for text in coded.dictionary.to_pylist()], dtype="V16")
    yield distinct[coded.indices.to_numpy(zero_copy_only=False)].tobytes() if len(distinct) else b""


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()


def _numbered(runs: Iterable[bytes]) -> Indices:
    """Digests one after the other to numbers: equal for equal ones, in order of first appearance."""
    body = b"".join(runs)
    digests = pa.FixedSizeBinaryArray.from_buffers(pa.binary(_DIGEST), len(body) // _DIGEST, [None, pa.py_buffer(body)])
    return np.asarray(digests.dictionary_encode().indices.to_numpy().astype(np.int64))


def build(rows: pa.Table, split: Split, relevant_score: float = RELEVANT_SCORE) -> Dataset:
    """Divide the rows of a commit (schema `tasks.intake.ROWS`) into train, dev, test and documents.

    - Documents are those of pairs, golden and corpus rows, and negatives too: a text that somebody labelled wrong
      for a query is a text that a search would meet. The first spelling wins.
    - A row without a score says that its document is relevant, one with a score says so from `relevant_score`.
    - Golden queries are tested on. No pair row with the `query_key` of one is trained on or used for dev: it is
      tested on as well, and its labels count.
    - Rows to train on are distinct by (query, document): the first one stays, with the negatives of all of them
      and the mean of their scores. Rows with and without a score answer different questions and stay apart.
    - Rows that are marked `train_only` are trained on where their query is on the train side. Elsewhere they are left
      out: they neither ask a query of dev or test nor say what is relevant to one.
    - A negative that is relevant to the same query elsewhere, or is the row's own document, is dropped.

    A document that is relevant to a test query may be trained on with other queries: it is in the corpus of both.
    """
    divided = _divide(rows, split, relevant_score)
    corpus, labels, bounds = divided.corpus, divided.labels, divided.bounds
    n = len(corpus)
    slices = divided.first_values(rows, "slice")
    sources = divided.first_values(rows, "source") if "source" in rows.column_names else []

    def evaluation_set(name: Side) -> EvaluationSet:
        asked, answered = divided.queries(name)
        return EvaluationSet(
            queries=divided.column(rows, "query").take(pa.array(divided.first[answered])).to_pylist(),
            relevant=[labels[bounds[key] : bounds[key + 1]] - key * n for key in divided.key_of_text[answered]],
            slices=[slices[i] for i in answered],
            golden=divided.golden[answered],
            excluded=len(asked) - len(answered),
            sources=[sources[i] for i in answered] if sources else [],
        )

    return Dataset(
        train=_distinct(rows, corpus, *divided.trained(rows), labels),
        dev=evaluation_set("dev"),
        test=evaluation_set("test"),
        documents=corpus.listed(),
    )


def sizes(rows: pa.Table, split: Split, relevant_score: float = RELEVANT_SCORE) -> dict[str, int]:
    """The counts of what `build` would make, in a fraction of the memory."""
    divided = _divide(rows, split, relevant_score)
    key_of, text_of = divided.trained(rows)
    chosen = np.flatnonzero(key_of >= 0)
    same = _same_rows(rows, divided.corpus, chosen, text_of)
    only = _train_only(rows)
    unused = int((only & (key_of < 0)).sum())
    return {
        "train": len(np.unique(same)),
        "dev": len(divided.queries("dev")[1]),
        "test": len(divided.queries("test")[1]),
        "corpus": len(divided.corpus),
        **({"train_only": int(only.sum()), "train_only_left_out": unused} if only.any() else {}),
    }


@dataclass(frozen=True)
class _Divided:
    """What is on which side, in numbers: of texts nothing is kept."""

    corpus: Corpus
    labelled: Indices
    """The rows that are labels."""
    text_of_row: Indices
    """For each label, its query's text."""
    first: Indices
    """For each text of a query, the first label that has it."""
    key_of_text: Indices
    """For each text of a query, its key."""
    side: NDArray[np.str_]
    """For each key, its side."""
    golden: Mask
    """For each text of a query, whether a golden row asks it."""
    labels: Indices
    """Every "document is relevant to key" once, ascending: those of one key are one stretch of the array."""
    bounds: Indices
    """Where in `labels` the stretch of each key begins."""
    judging: Mask
    """For each label, whether it may be tested on."""

    def column(self, rows: pa.Table, name: str) -> pa.ChunkedArray:
        """A column of the labels."""
        column = rows[name]
        return column if len(self.labelled) == len(column) else column.take(pa.array(self.labelled))

    def queries(self, name: Side) -> tuple[Indices, Indices]:
        """The texts of queries on a side: all of them, and those that have a relevant document."""
        by_judging = np.zeros(len(self.key_of_text), dtype=bool)
        by_judging[self.text_of_row[self.judging]] = True
        asked = np.flatnonzero((self.side[self.key_of_text] == name) & by_judging)
        return asked, asked[np.diff(self.bounds)[self.key_of_text[asked]] > 0]

    def first_values(self, rows: pa.Table, name: str) -> list[str | None]:
        """For each text of a query the first value that a label which may be tested on gives."""
        column = self.column(rows, name).filter(pa.array(self.judging))
        return _first_values(column, self.text_of_row[self.judging], len(self.key_of_text))

    def trained(self, rows: pa.Table) -> tuple[Indices, Indices]:
        """For each row, the key and the text of its query where it is trained on, else -1."""
        key_of_row = self.key_of_text[self.text_of_row]
        chosen = self.side[key_of_row] == "train"
        key_of = np.full(rows.num_rows, -1, dtype=np.int64)
        text_of = np.full(rows.num_rows, -1, dtype=np.int64)
        key_of[self.labelled[chosen]] = key_of_row[chosen]
        text_of[self.labelled[chosen]] = self.text_of_row[chosen]
        return key_of, text_of


def _divide(rows: pa.Table, split: Split, relevant_score: float) -> _Divided:
    """Number documents, queries and keys, and put every key on its side."""
    corpus = index_documents(rows)
    n = len(corpus)
    is_labelled = _mask(pc.not_equal(rows["kind"], "corpus"))
    labelled = np.flatnonzero(is_labelled)
    query = rows["query"] if len(labelled) == rows.num_rows else rows["query"].filter(pa.array(is_labelled))
    golden_row = _mask(pc.equal(rows["kind"], "golden"))[labelled]
    relevant_row = labelled_right(rows["score"], relevant_score)[labelled]

    texts = encode_texts(query, document_key)
    key_of_text, side = _sides(query, texts.first, split)
    key_of_row = key_of_text[texts.codes]
    side[key_of_row[golden_row]] = "test"
    judging = ~_train_only(rows)[labelled]
    relevant_row &= judging | (side[key_of_row] == "train")
    labels = np.unique(key_of_row[relevant_row] * n + corpus.document_of[labelled][relevant_row])
    golden = np.zeros(len(texts.first), dtype=bool)
    golden[texts.codes[golden_row]] = True
    return _Divided(
        corpus=corpus,
        labelled=labelled,
        text_of_row=texts.codes,
        first=texts.first,
        key_of_text=key_of_text,
        side=side,
        golden=golden,
        labels=labels,
        bounds=np.searchsorted(labels, np.arange(len(side) + 1) * n),
        judging=judging,
    )


def labelled_right(scores: pa.ChunkedArray, relevant_score: float = RELEVANT_SCORE) -> Mask:
    """Which rows say that their document is relevant: those without a score, and those with a high one."""
    return _mask(pc.fill_null(pc.greater_equal(scores, relevant_score), True))


def _train_only(rows: pa.Table) -> Mask:
    """Which rows are for training only."""
    if "train_only" not in rows.column_names:
        return np.zeros(rows.num_rows, dtype=bool)
    return _mask(pc.fill_null(rows["train_only"], False))


def _sides(query: pa.ChunkedArray, first: Indices, split: Split) -> tuple[Indices, NDArray[np.str_]]:
    """For each distinct text of a query its key, and for each key its side."""
    runs: list[bytes] = []
    side_of_text = np.empty(len(first), dtype="U5")
    for start in range(0, len(first), _CHUNK):
        part = query.take(pa.array(first[start : start + _CHUNK])).to_pylist()
        keys = [query_key(text) for text in part]
        runs.append(b"".join(map(_digest, keys)))
        side_of_text[start : start + len(keys)] = [split.side_of_key(key) for key in keys]
    key_of_text = _numbered(runs)
    return key_of_text, side_of_text[np.unique(key_of_text, return_index=True)[1]]


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

    def listed(self) -> list[str]:
        """Every document, in the spelling that came first."""
        starts = range(0, len(self), _CHUNK)
        parts = (self.texts.take(pa.array(self.first[start : start + _CHUNK])).to_pylist() for start in starts)
        return [text for part in parts for text in part]

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
    same = _same_rows(rows, corpus, chosen, text_of)
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


def _same_rows(rows: pa.Table, corpus: Corpus, chosen: Indices, text_of: Indices) -> Indices:
    """A number for each of the chosen rows, equal for rows that are trained on once."""
    scored = _mask(pc.is_valid(rows["score"]))[chosen]
    same: Indices = (text_of[chosen] * len(corpus) + corpus.document_of[chosen]) * 2 + scored
    return same


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
