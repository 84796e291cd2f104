"""Two models and a test set to metrics per query, and the check that the published model serves what was scored."""

from tasks.scoring.index import broken_promise, reindexing
from tasks.scoring.serving import Sample, check_saved, check_serving, describe
from tasks.scoring.sides import (
    BASE,
    CANDIDATE,
    PRODUCTION,
    SAMPLE,
    Exposure,
    SideScores,
    new_documents,
    per_query_table,
    read_side,
    returned,
    score_side,
)

__all__ = [
    "BASE",
    "CANDIDATE",
    "PRODUCTION",
    "SAMPLE",
    "Exposure",
    "Sample",
    "SideScores",
    "broken_promise",
    "check_saved",
    "check_serving",
    "describe",
    "new_documents",
    "per_query_table",
    "read_side",
    "reindexing",
    "returned",
    "score_side",
]
