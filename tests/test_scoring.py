"""Scoring: from vectors to metrics per query, and back from the stored table to the gate's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.dataset import EvaluationSet
from tasks.encoding import Progress, Role
from tasks.scoring import Exposure, Sample, SideScores, new_documents, per_query_table, read_side, score_side
from tasks.scoring.movers import by_similarity

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
    assert scores.means_over(np.array([False, True]))["mrr"] == pytest.approx(1 / 3)
    assert scores.means_over(np.array([False, False])) == scores.means


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
    assert side.clusters is not None
    assert side.clusters.tolist() == [0, 1], "the lowest relevant document"
    assert side.near_duplicates is None
    assert set(side.per_query) == set(read_side(table, "production", "fingerprint").per_query)


def test_what_training_saw_comes_back_from_the_table() -> None:
    """Near duplicates, the slice of new documents (empty or not), and the source of the labels as a slice."""
    test = replace(_test_set(), sources=["clicks", None])
    scores = score_side(test, DOCUMENTS, ByHand())
    exposure = Exposure(np.array([0.2, 0.95]), np.array([False, True]), np.array([False, False]))
    table = per_query_table(test, {"candidate": scores, "production": scores}, exposure)
    side = read_side(table, "production", "fingerprint")
    assert side.near_duplicates is not None
    assert side.near_duplicates.tolist() == [False, True]
    assert {name: mask.tolist() for name, mask in side.slices.items()} == {
        "slice a": [True, False],
        "source clicks": [True, False],
        "golden": [False, True],
        "new documents": [False, False],
    }
    bands = by_similarity(table)
    assert [(band.low, band.high, band.queries) for band in bands if band.queries] == [(0.0, 0.5, 1), (0.9, 1.0, 1)]
    assert bands[0].gains == {"recall_at_10": 0.0, "mrr": 0.0}
    assert by_similarity(per_query_table(test, {"candidate": scores, "production": scores})) == []


def test_documents_of_which_none_was_trained_on_are_new() -> None:
    """By either model; a query with one new document and a known one asks for nothing new."""
    test = replace(_test_set(), relevant=[np.array([0, 1]), np.array([3])])
    known = np.array([True, False, False, False])
    assert new_documents(test, known).tolist() == [False, True]
    assert new_documents(test, known, np.array([False, False, False, True])).tolist() == [False, False]
    assert new_documents(test, ~known).tolist() == [False, False]


def test_a_vacuous_test_set_has_no_scores() -> None:
    """No test query: an error, never a mean of nothing."""
    empty = EvaluationSet([], [], [], np.zeros(0, dtype=bool), 0)
    with pytest.raises(ValueError, match="empty"):
        score_side(empty, DOCUMENTS, ByHand())


def test_slices_of_their_own_for_20_000_queries_stay_small() -> None:
    """A column of ids: the masks would be 400 MB. What is large enough to be judged is kept, wherever it stands."""
    count, large = 20_000, 40
    names = [f"only {number}" for number in range(count - large)] + ["large"] * large
    test = EvaluationSet(
        [f"q{number}" for number in range(count)], [np.array([0])] * count, names, np.zeros(count, bool), 0
    )
    side = SideScores({"mrr": np.ones(count)}, {3: {"mrr": 1.0}}, Sample([], np.empty((0, 3)), [], np.empty((0, 3))))
    table = per_query_table(test, {"candidate": side, "production": side})
    slices = read_side(table, "candidate", "fingerprint").slices
    assert sum(mask.nbytes for mask in slices.values()) < 25_000_000
    assert int(slices["slice large"].sum()) == large
