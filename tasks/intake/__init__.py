"""New objects under `pairs/`, `corpus/` and `golden/` to numbered commits, each object exactly once."""

from tasks.intake.commit_log import Commit, LogError
from tasks.intake.take import BATCH, ROWS, counts, new_pairs, quarantined, read_rows, take_in, with_origin

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
