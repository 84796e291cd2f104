"""Is production still as good as when it was promoted, and does it still move? Pure: scores and dates to findings.

Fresh labels come in windows: the labels of some consecutive commits, none of which the serving model was trained on.
A window counts as below when Recall@10 or MRR on it is significantly lower than at promotion, beyond the tolerance.
One such window may be an odd batch of labels, so production counts as drifted only when several of the latest are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tasks.config import DECISIVE, Watch
from tasks.statistics import bootstrap_means, t_interval, widened
from tasks.watch.confirmation import Comparison

_RESAMPLES: Final = 2_000


class Window(BaseModel):
    """What the serving model scored on the labels of some commits; also `watch/<version>/<first>.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    first: int = Field(description="First commit whose labels are in it.")
    last: int = Field(description="Last commit whose labels are in it.")
    queries: int = Field(description="Queries with fresh labels that the model had not seen.")
    scores: dict[str, float] = Field(description="Mean by metric, 0 to 1.")
    at_most: dict[str, float] = Field(description="Upper bound of the decisive means.")
    promoted: dict[str, float] = Field(description="The scores at promotion.")
    below: list[str] = Field(description="Decisive metrics that fell significantly, by more than is tolerated.")
    base: dict[str, float] = Field({}, description="Decisive means of the base model on the same queries.")
    before: Comparison | None = Field(None, description="What serves minus the version before it, on the same queries.")
    run_id: str
    at: str


@dataclass(frozen=True)
class Measured:
    """The part of a window that follows from its scores."""

    scores: dict[str, float]
    at_most: dict[str, float]
    below: list[str]


def measure(
    per_query: Mapping[str, NDArray[np.float64]],
    promoted: Mapping[str, float],
    watch: Watch,
    clusters: NDArray[np.int64] | None = None,
) -> Measured:
    """Compare a window's scores with those at promotion.

    The bound is the higher of two one-sided ones, as in the gate: a percentile bootstrap over queries, and a t-interval
    that counts queries of one cluster together. The scores at promotion are taken as they are: what they were measured
    on is `max_drop`'s business.

    Args:
        per_query: Metric by name, each of shape (n_queries,).
        promoted: Mean by metric at promotion.
        watch: Tolerance, confidence, seed.
        clusters: Equal numbers for queries that rise and fall together; None: none do.

    Raises:
        ValueError: No query, a decisive metric is missing on either side, or a value is not finite.
    """
    sizes = {len(values) for values in per_query.values()}
    missing = [name for name in DECISIVE if name not in per_query or name not in promoted]
    if missing or len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"a window needs queries and {', '.join(DECISIVE)} on both sides; missing: {missing}")
    table = np.stack([per_query[name] for name in DECISIVE], axis=1)  # (queries, metrics)
    if not (np.isfinite(table).all() and all(np.isfinite(promoted[name]) for name in DECISIVE)):
        raise ValueError("a score is not finite")
    means = bootstrap_means(table, _RESAMPLES, watch.seed)
    at_most = {
        name: widened(t_interval(per_query[name], clusters, watch.confidence), means[:, place], watch.confidence).high
        for place, name in enumerate(DECISIVE)
    }
    return Measured(
        scores={name: float(np.mean(values)) for name, values in sorted(per_query.items())},
        at_most=at_most,
        below=[name for name in DECISIVE if at_most[name] < promoted[name] - watch.max_drop],
    )


def drift_began(windows: Sequence[Window], watch: Watch) -> int | None:
    """Place of the window with which production began to count as drifted; None when it does not now.

    Args:
        windows: Every window of the serving version, oldest first.
        watch: How many of the latest `windows` must be below.
    """
    began = None
    for place in range(len(windows)):
        latest = windows[max(0, place + 1 - watch.windows) : place + 1]
        drifted = sum(bool(window.below) for window in latest) >= watch.windows_below
        began = (place if began is None else began) if drifted else None
    return began


@dataclass(frozen=True)
class Standstill:
    """Production has not moved for too long. `times` is how often over: it is told again at every multiple."""

    what: str
    """`nights` or `days`."""
    passed: float
    limit: float

    @property
    def times(self) -> int:
        """Multiples of the limit that have passed."""
        return int(self.passed // self.limit)


def standstill(nights: int, days: float | None, watch: Watch) -> list[Standstill]:
    """What says that production has not moved for too long.

    Args:
        nights: Nights since the last change of production that had something to train on.
        days: Days since the last change of production; None where nothing is in production.
        watch: The limits; 0 is none.
    """
    found = []
    if watch.max_nights and nights >= watch.max_nights:
        found.append(Standstill("nights", nights, watch.max_nights))
    if watch.max_days and days is not None and days >= watch.max_days:
        found.append(Standstill("days", days, watch.max_days))
    return found
