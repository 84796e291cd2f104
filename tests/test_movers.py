"""The queries that moved, on tables that a person can check."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.scoring.movers import moved


def _table(rows: list[tuple[str, float, float, float, float]]) -> bytes:
    """Rows of (query, production MRR, candidate MRR, production recall, candidate recall)."""
    columns: dict[str, Any] = {
        "query": pa.array([row[0] for row in rows], pa.string()),
        "slice": pa.array([None] * len(rows), pa.string()),
        "golden": pa.array([False] * len(rows), pa.bool_()),
        "production_mrr": pa.array([row[1] for row in rows], pa.float64()),
        "candidate_mrr": pa.array([row[2] for row in rows], pa.float64()),
        "production_recall_at_10": pa.array([row[3] for row in rows], pa.float64()),
        "candidate_recall_at_10": pa.array([row[4] for row in rows], pa.float64()),
    }
    sink = BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


ROWS = [
    ("same", 0.5, 0.5, 1.0, 1.0),
    ("first to second", 1.0, 0.5, 1.0, 1.0),
    ("lost", 1.0, 0.01, 1.0, 0.0),
    ("found", 0.02, 1.0, 0.0, 1.0),
    ("second to first", 0.5, 1.0, 1.0, 1.0),
    ("one more hit", 0.5, 0.5, 0.5, 1.0),
]


def test_the_largest_change_comes_first() -> None:
    """Lost and gained are apart, each by how far the first hit moved, then by recall; what stayed is in neither."""
    lost, gained = moved(_table(ROWS), 10)
    assert [found.query for found in lost] == ["lost", "first to second"]
    assert [found.query for found in gained] == ["found", "second to first", "one more hit"]
    assert lost[0].before == {"mrr": 1.0, "recall_at_10": 1.0}
    assert lost[0].after == {"mrr": 0.01, "recall_at_10": 0.0}


def test_no_more_than_asked_for() -> None:
    """A large night gives a short list."""
    lost, gained = moved(_table(ROWS), 1)
    assert [found.query for found in (*lost, *gained)] == ["lost", "found"]


def test_equal_changes_keep_their_order() -> None:
    """The list is the same at every run."""
    rows = [(f"query {number}", 1.0, 0.5, 1.0, 1.0) for number in range(20)]
    lost, gained = moved(_table(rows), 3)
    assert [found.query for found in lost] == ["query 0", "query 1", "query 2"]
    assert gained == []
