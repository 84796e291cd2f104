"""Batches: every row once, no collisions where they can be avoided, and exact masks where they cannot."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.examples import Batch, Examples, order

Row = tuple[str, str, list[str], float | None]


def table(*rows: Row) -> pa.Table:
    """Rows as intake hands them on: query, document, negatives, score."""
    columns: list[Any] = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    types = (pa.string(), pa.string(), pa.list_(pa.string()), pa.float64())
    names = ("query", "document", "negatives", "score")
    return pa.table({name: pa.array(c, t) for name, c, t in zip(names, columns, types, strict=True)})


def trained(examples: Examples, batches: list[Batch]) -> Counter[tuple[str, str]]:
    """The (query, document) pairs that the batches train, with how often."""
    return Counter(
        (examples.queries[query], examples.documents[batch.documents[positive]])
        for batch in batches
        for query, positive in zip(batch.queries, batch.positives, strict=True)
    )


rows = st.lists(
    st.tuples(
        st.sampled_from([f"key{n} rotate" for n in range(6)]),
        st.sampled_from([f"d{n}" for n in range(6)]),
        st.lists(st.sampled_from([f"d{n}" for n in range(8)]), max_size=2),
        st.none(),
    ),
    min_size=1,
    max_size=40,
)


@given(rows=rows, batch_size=st.integers(2, 9), seed=st.integers(0, 5))
def test_an_epoch_trains_every_row_once_in_even_batches(rows: list[Row], batch_size: int, seed: int) -> None:
    """Whatever collides, each row comes once; sizes differ by at most one and never exceed the batch size."""
    examples = Examples(table(*rows))
    batches = examples.epoch(batch_size, np.random.default_rng(seed))
    assert trained(examples, batches) == Counter((query, document) for query, document, _, _ in rows)
    sizes = [batch.pairs for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == examples.steps(batch_size)


@given(rows=rows, batch_size=st.integers(2, 9))
def test_no_known_positive_is_ever_a_negative(rows: list[Row], batch_size: int) -> None:
    """Of the candidates that count against a query, none is a document that some row says answers it."""
    answers = {(query, document) for query, document, _, _ in rows}
    examples = Examples(table(*rows))
    for batch in examples.epoch(batch_size, np.random.default_rng(0)):
        for line, query in enumerate(batch.queries):
            for column, document in enumerate(batch.documents):
                known = (examples.queries[query], examples.documents[document]) in answers
                assert bool(batch.masked[line, column]) == (known and column != batch.positives[line])


def test_collisions_wait_for_another_batch() -> None:
    """Two answers to one query, and one document for two queries, are put into different batches."""
    examples = Examples(
        table(
            ("rotate key", "a", [], None),
            ("rotate key", "b", [], None),
            ("list users", "c", [], None),
            ("show users", "c", [], None),
        )
    )
    for seed in range(10):
        for batch in examples.epoch(2, np.random.default_rng(seed)):
            assert len(set(batch.queries.tolist())) == len(set(batch.documents.tolist())) == 2
            assert not batch.masked.any()


def test_unavoidable_collisions_are_masked() -> None:
    """All rows share the query: nothing else can fill the batch, so each other answer is masked for it."""
    examples = Examples(table(("rotate key", "a", [], None), ("rotate key", "b", ["n"], None)))
    (batch,) = examples.epoch(2, np.random.default_rng(0))
    texts = [examples.documents[number] for number in batch.documents]
    assert sorted(texts) == ["a", "b", "n"]
    for line, positive in enumerate(batch.positives):
        assert {texts[column] for column in np.flatnonzero(batch.masked[line])} == {"a", "b"} - {texts[positive]}


def test_spellings_of_one_text_are_one() -> None:
    """A negative equal to the positive but for case and spacing is that document: one candidate, not a negative."""
    examples = Examples(table(("rotate key", "Rotate  the Key", ["rotate the key"], None)))
    (batch,) = examples.epoch(2, np.random.default_rng(0))
    assert len(batch.documents) == 1
    assert not batch.masked.any()


def test_a_high_score_is_a_known_positive() -> None:
    """A document scored 0.9 for a query is masked when another row brings it into that query's batch; 0.1 is not."""
    scored: list[Row] = [("rotate key", "b", [], 0.9), ("rotate key", "c", [], 0.1)]
    examples = Examples(table(("rotate key", "a", ["b", "c"], None), *scored))
    batch = next(b for b in examples.epoch(4, np.random.default_rng(0)) if b.kind == "ranking")
    masked = {examples.documents[batch.documents[column]] for column in np.flatnonzero(batch.masked[0])}
    assert masked == {"b"}


def test_kinds_follow_from_the_rows() -> None:
    """Scores train CoSENT; negatives train the ranking loss, or on request the triplet loss; steps by proportion."""
    rows = table(
        *[(f"pair {n}", f"a{n}", [], None) for n in range(6)],
        *[(f"scored {n}", f"b{n}", [], n / 4) for n in range(4)],
        *[(f"triple {n}", f"c{n}", ["x", "y"], None) for n in range(2)],
    )
    assert Examples(rows).counts == {"ranking": 8, "cosent": 4}
    examples = Examples(rows, triplets=True)
    assert examples.counts == {"ranking": 6, "triplet": 2, "cosent": 4}
    batches = examples.epoch(2, np.random.default_rng(0))
    assert Counter(batch.kind for batch in batches) == {"ranking": 3, "triplet": 1, "cosent": 2}
    (triplets,) = [batch for batch in batches if batch.kind == "triplet"]
    assert len(triplets.queries) == 4  # two negatives each
    assert [examples.documents[number] for number in triplets.documents[4:]] == ["x", "y", "x", "y"]
    scores = np.concatenate([batch.scores for batch in batches if batch.kind == "cosent"])
    assert sorted(scores.tolist()) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("epochs", [1, 3])
def test_order_is_a_function_of_the_seed(epochs: int) -> None:
    """The same seed gives the same batches; another seed, and another epoch, another order."""
    examples = Examples(table(*[(f"query {n}", f"d{n}", [], None) for n in range(20)]))

    def queries(seed: int) -> list[list[int]]:
        return [batch.queries.tolist() for batch in order(epochs, 4, seed, examples)]

    assert queries(1) == queries(1)
    assert queries(1) != queries(2)
    assert len(queries(1)) == 5 * epochs
    assert epochs == 1 or queries(1)[:5] != queries(1)[5:10]
