"""Rows -> batches: which texts are trained together, in which order, and which of them are not negatives of which.

Texts are numbered once (`Examples`); a batch refers to them by number, so that each is tokenised once and a text that
occurs twice in a batch is encoded once. Numpy only: what a batch holds does not depend on the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.splits import document_key, query_key

Ints = npt.NDArray[np.int64]
Kind = Literal["ranking", "triplet", "cosent"]

KINDS: Final[tuple[Kind, ...]] = ("ranking", "triplet", "cosent")

POSITIVE_SCORE: Final = 0.5
"""A scored pair from this score on is a known positive: never used as a negative elsewhere."""

_LOOK_AHEAD: Final = 8
"""Batches' worth of rows that are searched for one that does not collide; bounds planning to linear time."""


@dataclass(frozen=True)
class Batch:
    """One step's texts, as numbers into `Examples.queries` and `Examples.documents`.

    For kind `ranking`, `documents` are the candidates (m,): positives and hard negatives, each distinct text once;
    `positives` (n,) is the column of each query's own, and `masked` (n, m) marks candidates that are not negatives of
    the query. For `triplet` and `cosent`, `documents` has the n positives (right sides), then the negatives.
    """

    kind: Kind
    queries: Ints
    documents: Ints
    positives: Ints
    masked: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    pairs: int


class Examples:
    """The training rows with every text numbered, and what is known about which document answers which query.

    Args:
        rows: columns query, document, negatives (list, may be empty) and score (null for pairs and triplets).
        triplets: whether rows with a negative train the triplet loss instead of the ranking loss.
    """

    def __init__(self, rows: pa.Table, *, triplets: bool = False) -> None:
        queries, documents, keys = _Numbers(), _Numbers(), _Numbers()
        self._query_keys: list[int] = []
        self._document_keys: list[int] = []
        query_keys = _Numbers()

        def query_number(text: str) -> int:
            number = queries.number(text)
            if number == len(self._query_keys):
                self._query_keys.append(query_keys.number(query_key(text)))
            return number

        def document_number(text: str) -> int:
            number = documents.number(text)
            if number == len(self._document_keys):
                self._document_keys.append(keys.number(document_key(text)))
            return number

        self._rows: list[tuple[int, int, tuple[int, ...], float]] = []
        self._by_kind: dict[Kind, list[int]] = {kind: [] for kind in KINDS}
        self._known: dict[int, set[int]] = {}
        columns = (rows.column(name).to_pylist() for name in ("query", "document", "negatives", "score"))
        for position, (query, document, negatives, score) in enumerate(zip(*columns, strict=True)):
            row = (query_number(query), document_number(document), tuple(map(document_number, negatives or ())))
            self._rows.append((*row, 1.0 if score is None else float(score)))
            kind: Kind = "cosent" if score is not None else "triplet" if triplets and row[2] else "ranking"
            self._by_kind[kind].append(position)
            if score is None or score >= POSITIVE_SCORE:
                self._known.setdefault(self._query_keys[row[0]], set()).add(self._document_keys[row[1]])
        self.fingerprint: str = hashlib.sha256(
            json.dumps([self._rows, queries.texts, documents.texts, self._by_kind]).encode()
        ).hexdigest()
        self.queries: list[str] = queries.texts
        self.documents: list[str] = documents.texts

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def query_numbers(self) -> Ints:
        """Each row's query, as a number into `queries`."""
        return np.array([query for query, _, _, _ in self._rows], np.int64)

    @property
    def document_numbers(self) -> Ints:
        """Each row's document, as a number into `documents`."""
        return np.array([document for _, document, _, _ in self._rows], np.int64)

    @property
    def document_keys(self) -> Ints:
        """The key of each of `documents`: spellings of one document share it."""
        return np.array(self._document_keys, np.int64)

    def answers_of(self, query: int) -> set[int]:
        """Keys of all that is known to answer a query, given by its number in `queries`."""
        return self._known.get(self._query_keys[query], set())

    def answers(self, row: int) -> set[int]:
        """Keys of what can be no new negative of a row: all that answers its query, and the negatives it has."""
        query, _, negatives, _ = self._rows[row]
        return self._known[self._query_keys[query]] | {self._document_keys[number] for number in negatives}

    @property
    def counts(self) -> dict[Kind, int]:
        """Rows by the loss that they train."""
        return {kind: len(rows) for kind, rows in self._by_kind.items() if rows}

    @property
    def distinct_documents(self) -> int:
        """Different documents and negatives, by document key."""
        return len(set(self._document_keys))

    def epoch(self, batch_size: int, rng: np.random.Generator) -> list[Batch]:
        """One pass over all rows, each exactly once, in batches of nearly equal size and at most `batch_size`.

        Kinds are mixed in proportion to their rows. Rows whose query or documents collide with a batch (repeated, or a
        known positive of a query in it) wait for a later one; where none is left to take instead they are taken
        all the same, and `Batch.masked` keeps them from being false negatives.
        """
        batches = [
            self._batch(kind, chosen)
            for kind in KINDS
            for chosen in self._groups(kind, self._by_kind[kind], batch_size, rng)
        ]
        return [batches[position] for position in rng.permutation(len(batches))]

    def steps(self, batch_size: int) -> int:
        """Batches of one epoch."""
        return sum(-(-len(rows) // batch_size) for rows in self._by_kind.values())

    def _groups(self, kind: Kind, rows: list[int], batch_size: int, rng: np.random.Generator) -> Iterator[list[int]]:
        waiting = [rows[position] for position in rng.permutation(len(rows))]
        batches = -(-len(rows) // batch_size)
        for batch in range(batches):
            size = -(-len(waiting) // (batches - batch))
            if kind == "cosent":  # compares scores, has no in-batch negatives: nothing can collide
                chosen, waiting = waiting[:size], waiting[size:]
            else:
                chosen, waiting = self._without_collisions(waiting, size)
            yield chosen

    def _without_collisions(self, waiting: list[int], size: int) -> tuple[list[int], list[int]]:
        """Take `size` rows from the front, passing over those that collide; returns them and the rest in order."""
        chosen: list[int] = []
        passed: list[int] = []
        queries: set[int] = set()
        documents: set[int] = set()
        answers: set[int] = set()  # all known positives of the queries taken
        horizon = min(len(waiting), size * _LOOK_AHEAD)
        end = 0
        while end < horizon and len(chosen) < size:
            position = waiting[end]
            end += 1
            query, document, negatives, _ = self._rows[position]
            query_id = self._query_keys[query]
            own = {self._document_keys[number] for number in (document, *negatives)}
            known = self._known[query_id]
            if query_id in queries or not own.isdisjoint(documents | answers) or not known.isdisjoint(documents):
                passed.append(position)
                continue
            chosen.append(position)
            queries.add(query_id)
            documents |= own
            answers |= known
        missing = size - len(chosen)
        return chosen + passed[:missing], passed[missing:] + waiting[end:]

    def _batch(self, kind: Kind, chosen: list[int]) -> Batch:
        rows = [self._rows[position] for position in chosen]
        queries = np.array([query for query, _, _, _ in rows], np.int64)
        own = np.array([document for _, document, _, _ in rows], np.int64)
        scores = np.array([score for _, _, _, score in rows], np.float32)
        if kind == "triplet":
            return self._triplets(rows)
        if kind == "cosent":
            return Batch(kind, queries, own, np.arange(len(rows)), np.zeros((0, 0), np.bool_), scores, len(rows))
        hard = [number for _, _, negatives, _ in rows for number in negatives]
        # by key, so that spellings of one document are one candidate
        first: dict[int, int] = {}
        candidates: list[int] = []
        for number in (*own.tolist(), *hard):
            if self._document_keys[number] not in first:
                first[self._document_keys[number]] = len(candidates)
                candidates.append(number)
        positives = np.array([first[self._document_keys[number]] for number in own.tolist()], np.int64)
        masked = np.zeros((len(rows), len(candidates)), np.bool_)
        for line, query in enumerate(queries.tolist()):
            for key in self._known[self._query_keys[query]]:
                if key in first:
                    masked[line, first[key]] = True
        masked[np.arange(len(rows)), positives] = False
        return Batch(kind, queries, np.array(candidates, np.int64), positives, masked, scores, len(rows))

    def _triplets(self, rows: list[tuple[int, int, tuple[int, ...], float]]) -> Batch:
        triplets = [(query, document, negative) for query, document, negatives, _ in rows for negative in negatives]
        queries, positives, negatives = np.array(triplets, np.int64).T
        nothing = np.zeros((0, 0), np.bool_)
        scores = np.ones(len(triplets), np.float32)
        documents = np.concatenate([positives, negatives])
        return Batch("triplet", queries, documents, np.arange(len(triplets)), nothing, scores, len(rows))


class _Numbers:
    """Numbers texts in order of arrival; equal texts share a number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> list[str]:
        return list(self._numbers)


def order(epochs: int, batch_size: int, seed: int, examples: Examples) -> Iterable[Batch]:
    """All batches of a run in order; a pure function of its arguments, so that a run can be continued anywhere."""
    for epoch in range(epochs):
        yield from examples.epoch(batch_size, np.random.default_rng([seed, epoch]))
