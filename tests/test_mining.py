"""Hard negatives: the nearest documents that are no answer, and not too near."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.examples import Examples
from tasks.training.mining import MARGIN, add, find
from tests.test_batches import table


def unit(degrees: list[float]) -> Any:
    """Vectors of length 1 at the given angles."""
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def mine(rows: pa.Table, examples: Examples, queries: Any, documents: Any, count: int) -> tuple[pa.Table, int]:
    """Find and add, as one process does."""
    return add(rows, examples, find(rows, examples, queries, documents, count))


def test_by_hand() -> None:
    """Query at 0 degrees, its answer at 30 (cosine .87, limit .82): 35 (.819) and 60 are taken, 20 and 31 too near."""
    rows = table(
        ("rotate key", "answer 30", [], None),
        ("list users", "near 20", [], None),
        ("show groups", "near 31", [], None),
        ("drop tables", "hard 35", [], None),
        ("make rain", "easy 60", [], None),
        ("fly home", "far 170", [], None),
    )
    examples = Examples(rows)
    queries = unit([0, 20, 31, 35, 60, 170])
    found, added = mine(rows, examples, queries, unit([30, 20, 31, 35, 60, 170]), 2)
    assert found.column("negatives")[0].as_py() == ["hard 35", "easy 60"]
    assert added == sum(len(negatives) for negatives in found.column("negatives").to_pylist())
    assert found.drop_columns(["negatives"]).equals(rows.drop_columns(["negatives"]))


def test_other_answers_given_negatives_and_scored_rows() -> None:
    """Another answer of the query is none, in any spelling; a given negative is kept once; scored rows get none."""
    rows = table(
        ("rotate key", "answer", ["given"], None),
        ("Key, rotate!", "other answer", [], None),
        ("list users", "Other  Answer", [], None),
        ("show groups", "hard", [], None),
        ("show groups", "answer", [], 0.1),
    )
    examples = Examples(rows)
    assert examples.documents == ["answer", "given", "other answer", "Other  Answer", "hard"]
    found, _ = mine(rows, examples, unit([0, 0, 90, 90]), unit([10, 40, 42, 43, 50]), 3)
    negatives = found.column("negatives").to_pylist()
    assert negatives[0] == ["given", "hard"]
    assert negatives[1] == ["hard"]  # "given" is too near this row's answer
    assert negatives[4] == []


@given(seed=st.integers(0, 1000), count=st.integers(1, 4))
def test_every_mined_negative_is_below_the_margin_and_no_answer(seed: int, count: int) -> None:
    """Random vectors: at most `count` each, distinct, none an answer of the query, all below the positive's limit."""
    rng = np.random.default_rng(seed)
    rows = table(*[(f"query {n % 8}", f"d{rng.integers(12)}", [], None) for n in range(20)])
    examples = Examples(rows)
    vectors = [rng.normal(size=(len(texts), 6)).astype(np.float32) for texts in (examples.queries, examples.documents)]
    queries, documents = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors)
    found, added = mine(rows, examples, queries, documents, count)
    answers = {(row["query"], row["document"]) for row in rows.to_pylist()}
    total = 0
    for row in found.to_pylist():
        total += len(row["negatives"])
        assert len(set(row["negatives"])) == len(row["negatives"]) <= count
        cosines = documents @ queries[examples.queries.index(row["query"])]
        for negative in row["negatives"]:
            assert (row["query"], negative) not in answers
            limit = MARGIN * cosines[examples.documents.index(row["document"])]
            assert cosines[examples.documents.index(negative)] < limit + 1e-6
    assert total == added
