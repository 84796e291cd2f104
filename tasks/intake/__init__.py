"""New objects under `pairs/`, `corpus/` and `golden/` to numbered commits, each object exactly once."""

from tasks.intake.batch import BATCH, with_origin
from tasks.intake.commit_log import Commit, LogError
from tasks.intake.read import ROWS, counts, new_pairs, quarantined, read_rows
from tasks.intake.take import take_in

__all__ = [
    "BATCH",
    "ROWS",
    "Commit",
    "LogError",
    "counts",
    "new_pairs",
    "quarantined",
    "read_rows",
    "take_in",
    "with_origin",
]
