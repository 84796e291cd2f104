"""What people are asked to judge: documents that one model alone finds, without saying which."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tasks.dataset import EvaluationSet
from tasks.encoding import Progress, Role
from tasks.scoring.judging import QUERIES, to_judge

DOCUMENTS = [f"document {i:02d}" for i in range(40)]


class Circle:
    """Texts by number on a circle, the documents moved by some places: so the first tens are known."""

    dimension = 2

    def __init__(self, moved: float) -> None:
        self.moved = moved

    def key(self, role: Role) -> str:
        """Never kept."""
        return role

    def encode(self, texts: Sequence[str], role: Role, *, on_progress: Progress | None = None) -> NDArray[np.float32]:
        """The n-th of 40 places."""
        del on_progress
        places = np.array([float(text.split()[1]) for text in texts]) + (self.moved if role == "document" else 0)
        angles = places * 2 * np.pi / 40
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def _test_set(queries: int) -> EvaluationSet:
    return EvaluationSet(
        queries=[f"query {i % 40} {i}" for i in range(queries)],
        relevant=[np.array([(i + 5) % 40]) for i in range(queries)],
        slices=[None] * queries,
        golden=np.zeros(queries, bool),
        excluded=0,
    )


def _lines(queries: int, moved: Sequence[float], seed: int = 0) -> list[dict[str, object]]:
    body = to_judge(_test_set(queries), DOCUMENTS, [Circle(by) for by in moved], seed)
    return [json.loads(line) for line in body.splitlines()]


def test_documents_that_one_of_two_models_finds() -> None:
    """Around query 20 one model finds 16 to 25, the other 15 to 24; 25 is labelled already, so 15 is asked for."""
    lines = [line for line in _lines(40, (-0.5, 0.5)) if line["query"] == "query 20 20"]
    assert lines == [{"query": "query 20 20", "document": "document 15", "relevant": None}]


def test_models_that_agree_leave_nothing_to_judge() -> None:
    """No line, and no error."""
    assert _lines(40, (0.1, 0.1)) == []


def test_a_sample_in_random_order_that_names_no_model() -> None:
    """At most so many queries, none of them in order; the same seed asks the same."""
    lines = _lines(300, (-2.5, 2.5))
    asked = [str(line["query"]) for line in lines]
    assert len(set(asked)) == QUERIES
    assert lines == _lines(300, (-2.5, 2.5))
    assert lines != _lines(300, (-2.5, 2.5), seed=1)
    # the two documents of a query that either model alone finds do not come one after the other
    assert sum(one == other for one, other in pairwise(asked)) < len(asked) / 4
    assert {tuple(line) for line in lines} == {("query", "document", "relevant")}
    swapped = {json.dumps(line) for line in _lines(300, (2.5, -2.5))}
    assert swapped == {json.dumps(line) for line in lines}, "whichever model comes first"
