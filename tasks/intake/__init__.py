"""New objects under `pairs/`, `corpus/` and `golden/` to numbered commits, each object exactly once."""

from tasks.intake.batch import BATCH, with_origin
from tasks.intake.commit_log import Commit, LogError
from tasks.intake.read import (
    ROWS,
    Changes,
    Refused,
    TooLargeError,
    changes,
    counts,
    decisions,
    live_tables,
    new_pairs,
    quarantined,
    read_rows,
    refused,
)
from tasks.intake.take import Intake, Pending, take_in

__all__ = [
    "BATCH",
    "ROWS",
    "Changes",
    "Commit",
    "Intake",
    "LogError",
    "Pending",
    "Refused",
    "TooLargeError",
    "changes",
    "counts",
    "decisions",
    "live_tables",
    "new_pairs",
    "quarantined",
    "read_rows",
    "refused",
    "take_in",
    "with_origin",
]
