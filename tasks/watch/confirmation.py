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

_LOOKS: Final = (100, 200, 400, 800)
"""Queries at which is looked; the more there are, the smaller a loss is seen."""

_CRITICAL: Final = 3.02
"""Standard errors below zero at which a promotion counts as wrong: 1% over all looks and both metrics where it was not.

A true loss of 5 points is seen 96% of the time by 400 queries.
"""


class Clustered(BaseModel):
    """Sums over the clusters of a window, by which its queries for one document count together; all of them add up."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    clusters: int
    sizes: float = Field(description="Sum of the squared cluster sizes.")
    squares: dict[str, float] = Field(description="Sum of the squared sums of the clusters, by decisive metric.")
    products: dict[str, float] = Field(description="Sum of size times sum of the clusters, by decisive metric.")


class Comparison(BaseModel):
    """What serves minus the version before it, on the queries of one window."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str | None = Field(description="The version before; null: the base model.")
    queries: int
    sums: dict[str, float] = Field(description="Sum of the differences, by decisive metric.")
    squares: dict[str, float] = Field(description="Sum of their squares.")
    clustered: Clustered | None = Field(None, description="By document; null in windows of older versions.")


class Confirmation(BaseModel):
    """What a look at all queries so far has shown."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str | None = Field(description="The version before; null: the base model.")
    queries: int
    gains: dict[str, float] = Field(description="Mean difference by decisive metric: the gain, estimated anew.")
    wrong: list[str] = Field(description="Decisive metrics on which what serves is worse.")
    first: int = Field(description="First commit of the window with which this was looked at.")


def compare(
    serving: dict[str, NDArray[np.float64]],
    before: dict[str, NDArray[np.float64]],
    version: str | None,
    clusters: NDArray[np.int64] | None = None,
) -> Comparison:
    """Sum up the differences of a window; queries with equal numbers in `clusters` rise and fall together.

    Raises ValueError for values that are not as many, or not finite.
    """
    differences = {name: serving[name] - before[name] for name in DECISIVE}
    if not all(np.isfinite(values).all() for values in differences.values()):
        raise ValueError("a score is not finite")
    return Comparison(
        version=version,
        queries=len(differences[DECISIVE[0]]),
        sums={name: float(values.sum()) for name, values in differences.items()},
        squares={name: float((values**2).sum()) for name, values in differences.items()},
        clustered=None if clusters is None else _clustered(differences, clusters),
    )


def _clustered(differences: dict[str, NDArray[np.float64]], clusters: NDArray[np.int64]) -> Clustered:
    _, cluster = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(cluster)
    sums = {name: np.bincount(cluster, values) for name, values in differences.items()}
    return Clustered(
        clusters=len(sizes),
        sizes=float((sizes**2).sum()),
        squares={name: float((values**2).sum()) for name, values in sums.items()},
        products={name: float((values * sizes).sum()) for name, values in sums.items()},
    )


def confirm(windows: Sequence[tuple[int, Comparison]]) -> Confirmation | None:
    """The last look at a promotion, or the first that found it wrong; None before there are enough queries.

    Args:
        windows: First commit and comparison of every window of what serves, oldest first.
    """
    queries, looked = 0, 0
    sums = dict.fromkeys(DECISIVE, 0.0)
    found = None
    for place, (first, window) in enumerate(windows, 1):
        queries += window.queries
        for name in DECISIVE:
            sums[name] += window.sums[name]
        due = sum(queries >= look for look in _LOOKS)
        if due > looked:
            looked = due
            found = Confirmation(
                version=window.version,
                queries=queries,
                gains={name: sums[name] / queries for name in DECISIVE},
                wrong=[name for name in DECISIVE if _is_below([one for _, one in windows[:place]], name)],
                first=first,
            )
            if found.wrong:
                return found
    return found


def _is_below(windows: Sequence[Comparison], name: str) -> bool:
    """Whether a metric's mean is more than `_CRITICAL` standard errors below zero."""
    queries = sum(window.queries for window in windows)
    mean = sum(window.sums[name] for window in windows) / queries
    squares = sum(window.squares[name] for window in windows)
    variance = max(0.0, (squares - queries * mean**2) / (queries - 1)) * queries  # of the sum of all differences
    return mean < -_CRITICAL * math.sqrt(max(variance, _clustered_variance(windows, name, mean))) / queries


def _clustered_variance(windows: Sequence[Comparison], name: str, mean: float) -> float:
    """Variance of the sum of all differences: the squared sums of clusters (Liang and Zeger 1986), by G / (G - 1).

    In windows of older versions, which do not say, every query is a cluster. A document counts anew in each window.
    """
    clusters = squares = products = sizes = 0.0
    for window in windows:
        of = window.clustered
        clusters += window.queries if of is None else of.clusters
        squares += window.squares[name] if of is None else of.squares[name]
        products += window.sums[name] if of is None else of.products[name]
        sizes += window.queries if of is None else of.sizes
    if clusters < 2:
        return math.inf
    return max(0.0, squares - 2 * mean * products + mean**2 * sizes) * clusters / (clusters - 1)
