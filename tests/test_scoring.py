"""Scoring: from vectors to metrics per query, and back from the stored table to the gate's input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.dataset import EvaluationSet
from tasks.encoding import Progress, Role
from tasks.scoring import per_query_table, read_side, score_side

DOCUMENTS = ["north", "east", "north-east", "up"]
VECTORS = {
    "north": [1, 0, 0],
    "east": [0, 1, 0],
    "north-east": [0.8, 0.6, 0],
    "up": [0, 0, 1],
    "where is north": [1, 0.1, 0],
    "where is east": [0.7, 0.7, 0],
}


class ByHand:
    """An encoder that looks vectors up; only queries ask where."""

    dimension = 3

    def __init__(self) -> None:
        self.calls: list[str] = []

    def key(self, role: Role) -> str:
        """Never kept."""
        return role

    def encode(self, texts: Sequence[str], role: Role, *, on_progress: Progress | None = None) -> NDArray[np.float32]:
        """Unit vectors of the known texts; they are known at once, so nobody is told how far it is."""
        del on_progress
        self.calls.append(role)
        assert all(text.startswith("where") == (role == "query") for text in texts)
        found = np.array([VECTORS[text] for text in texts], np.float32).reshape(-1, 3)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def _test_set() -> EvaluationSet:
    return EvaluationSet(
        queries=["where is north", "where is east"],
        relevant=[np.array([0]), np.array([1])],
        slices=["a", None],
        golden=np.array([False, True]),
        excluded=0,
    )


def test_scores_by_hand() -> None:
    """North is found first; for east, north-east is closer and north as close (a tie loses): ranks 1 and 3."""
    scores = score_side(_test_set(), DOCUMENTS, ByHand())
    assert scores.per_query["mrr"].tolist() == pytest.approx([1.0, 1 / 3])
    assert scores.means["recall_at_1"] == 0.5
    assert scores.means["recall_at_10"] == 1.0


def test_smaller_dimensions_come_from_the_same_encoding() -> None:
    """At one dimension, east is orthogonal to its query: last. Dimensions the model lacks are left out."""
    encoder = ByHand()
    scores = score_side(_test_set(), DOCUMENTS, encoder, dims=(1, 2, 256))
    assert sorted(scores.by_dimension) == [1, 2, 3]
    assert scores.by_dimension[1]["mrr"] < scores.by_dimension[3]["mrr"]
    assert encoder.calls == ["query", "document"]


def test_the_table_gives_the_gate_what_was_scored() -> None:
    """Both sides come back from Parquet per query, with slices by name and the golden queries as one more."""
    scores = score_side(_test_set(), DOCUMENTS, ByHand())
    table = per_query_table(_test_set(), {"candidate": scores, "production": scores})
    side = read_side(table, "candidate", "fingerprint")
    assert side.model == "fingerprint"
    assert side.queries == ("where is north", "where is east")
    assert side.per_query["mrr"].tolist() == pytest.approx([1.0, 1 / 3])
    assert {name: mask.tolist() for name, mask in side.slices.items()} == {
        "slice a": [True, False],
        "golden": [False, True],
    }
    assert set(side.per_query) == set(read_side(table, "production", "fingerprint").per_query)


def test_a_vacuous_test_set_has_no_scores() -> None:
    """No test query: an error, never a mean of nothing."""
    empty = EvaluationSet([], [], [], np.zeros(0, dtype=bool), 0)
    with pytest.raises(ValueError, match="empty"):
        score_side(empty, DOCUMENTS, ByHand())
