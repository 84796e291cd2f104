"""Was the last promotion right? What serves beside the version before it, on labels that neither was trained on.

The gain that a night tells is inflated: of many candidates the lucky ones are promoted (+2.2 points told, +1.0 true in
simulated years). Labels that arrived after it tell the gain anew, and whether it is one. Pure: windows to a finding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tasks.config import DECISIVE

LOOKS: Final = (100, 200, 400, 800)
"""Queries at which is looked; the more there are, the smaller a loss is seen."""

CRITICAL: Final = 3.02
"""Standard errors below zero at which a promotion counts as wrong: 1% over all looks and both metrics where it was not.

A true loss of 5 points is seen 96% of the time by 400 queries.
"""


class Comparison(BaseModel):
    """What serves minus the version before it, on the queries of one window."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str | None = Field(description="The version before; null: the base model.")
    queries: int
    sums: dict[str, float] = Field(description="Sum of the differences, by decisive metric.")
    squares: dict[str, float] = Field(description="Sum of their squares.")


class Confirmation(BaseModel):
    """What a look at all queries so far has shown."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str | None = Field(description="The version before; null: the base model.")
    queries: int
    gains: dict[str, float] = Field(description="Mean difference by decisive metric: the gain, estimated anew.")
    wrong: list[str] = Field(description="Decisive metrics on which what serves is worse.")
    first: int = Field(description="First commit of the window with which this was looked at.")


def compare(
    serving: dict[str, NDArray[np.float64]], before: dict[str, NDArray[np.float64]], version: str | None
) -> Comparison:
    """Sum up the differences of a window. Raises ValueError for values that are not as many, or not finite."""
    differences = {name: serving[name] - before[name] for name in DECISIVE}
    if not all(np.isfinite(values).all() for values in differences.values()):
        raise ValueError("a score is not finite")
    return Comparison(
        version=version,
        queries=len(differences[DECISIVE[0]]),
        sums={name: float(values.sum()) for name, values in differences.items()},
        squares={name: float((values**2).sum()) for name, values in differences.items()},
    )


def confirm(windows: Sequence[tuple[int, Comparison]]) -> Confirmation | None:
    """The last look at a promotion, or the first that found it wrong; None before there are enough queries.

    Args:
        windows: First commit and comparison of every window of what serves, oldest first.
    """
    queries, looked = 0, 0
    sums, squares = dict.fromkeys(DECISIVE, 0.0), dict.fromkeys(DECISIVE, 0.0)
    found = None
    for first, window in windows:
        queries += window.queries
        for name in DECISIVE:
            sums[name] += window.sums[name]
            squares[name] += window.squares[name]
        due = sum(queries >= look for look in LOOKS)
        if due > looked:
            looked = due
            found = Confirmation(
                version=window.version,
                queries=queries,
                gains={name: sums[name] / queries for name in DECISIVE},
                wrong=[name for name in DECISIVE if _is_below(sums[name], squares[name], queries)],
                first=first,
            )
            if found.wrong:
                return found
    return found


def _is_below(total: float, squares: float, queries: int) -> bool:
    """Whether a mean is more than `CRITICAL` standard errors below zero."""
    mean = total / queries
    deviation = math.sqrt(max(0.0, (squares - queries * mean**2) / (queries - 1)))
    return mean < -CRITICAL * deviation / math.sqrt(queries)
