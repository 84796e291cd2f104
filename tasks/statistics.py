"""Means of paired differences, and how far they can be trusted. Pure: arrays to numbers.

One place for what the gate and the watch of production infer from values per query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK_CELLS = 1 << 20
"""Resampled queries held at a time."""

_DECIMALS = 12
"""Means are rounded to this many decimals: what floating point leaves of a difference of zero is not a difference."""


@dataclass(frozen=True)
class Interval:
    """A mean with its one-sided bounds, each at the confidence that was asked for."""

    value: float
    low: float
    high: float


def mean(differences: Floats) -> float:
    """Their mean, rounded: a difference of zero is zero, whatever floating point makes of its terms."""
    return float(np.round(differences.mean(), _DECIMALS))


def bootstrap_means(table: Floats, resamples: int, seed: int) -> Floats:
    """The means of resampled queries, of shape (resamples, columns); `table` is of shape (queries, columns).

    Every column sees the same resamples (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
    """
    queries = len(table)
    means = np.empty((resamples, table.shape[1]))
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK_CELLS // queries)
    for start in range(0, resamples, rows):
        block = means[start : start + rows]  # (r, columns), filled in place
        drawn = generator.integers(0, queries, size=(len(block), queries))
        drawn += np.arange(len(block))[:, None] * queries
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)  # how often each query was drawn
        block[:] = times.astype(np.float64) @ table / queries
    return np.round(means, _DECIMALS)


def widened(interval: Interval, means: Floats, confidence: float) -> Interval:
    """The interval, as wide at least as the percentiles of the bootstrap's means."""
    low = float(np.quantile(means, 1 - confidence, method="lower"))
    high = float(np.quantile(means, confidence, method="higher"))
    return Interval(interval.value, min(interval.low, low), max(interval.high, high))


def clustered_error(differences: Floats, clusters: Ints | None) -> tuple[float, float]:
    """Standard error of the mean difference, and the effective number of clusters.

    Queries of one cluster (here: with the same relevant document) rise and fall together, so that they are fewer
    witnesses than they are queries. The error is the delete-one-cluster jackknife's (Cameron, Gelbach and Miller,
    Bootstrap-based improvements for inference with clustered errors, 2008), with a mean per query, and never below
    that of independent queries, sd / sqrt(n). The effective number is n^2 / sum of the squared cluster sizes (Carter,
    Schnepel and Steigerwald 2017): 1 where one cluster has everything. None: every query is a cluster.
    """
    queries = len(differences)
    independent = float(np.std(differences, ddof=1)) / math.sqrt(queries) if queries > 1 else 0.0
    if clusters is None:
        return independent, float(queries)
    _, cluster = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(cluster)
    groups = len(sizes)
    effective = queries**2 / float(np.sum(sizes.astype(np.float64) ** 2))
    if groups < 2:
        return independent, effective
    left_out = (differences.sum() - np.bincount(cluster, differences)) / (queries - sizes)
    jackknife = math.sqrt((groups - 1) / groups * float(np.sum((left_out - differences.mean()) ** 2)))
    return max(jackknife, independent), effective


def t_interval(differences: Floats, clusters: Ints | None, confidence: float) -> Interval:
    """Mean -+ t(confidence, effective clusters - 1) * clustered error; differences of shares, so within -1 and 1.

    One cluster alone says nothing about others: its bounds are -1 and 1.
    """
    from scipy.special import stdtrit

    value = mean(differences)
    error, effective = clustered_error(differences, clusters)
    margin = float(stdtrit(effective - 1, confidence)) * error if effective > 1 else math.inf
    low, high = np.round([max(-1.0, value - margin), min(1.0, value + margin)], _DECIMALS)
    return Interval(value, float(low), float(high))


def agreeing(interval: Interval, differences: Floats, confidence: float) -> Interval:
    """The interval, with zero inside where too few queries differ for a sign test to reach the confidence.

    Chance alone makes k differing queries agree with probability 0.5^k. The bootstrap overrates a difference that rests
    on a handful of queries, and one query alone convinces it fully.
    """
    if 0.5 ** np.count_nonzero(differences) <= 1 - confidence:
        return interval
    return Interval(interval.value, min(interval.low, 0.0), max(interval.high, 0.0))


def chance_of_fall(differences: Floats) -> float:
    """One-sided p of Student's t-test: how often a mean as low as this one arises where the true one is not below 0.

    Differences that are all equal leave nothing to chance; one query alone cannot be tested, which is no excuse: 0.
    """
    from scipy.special import stdtr

    fall = mean(differences)
    if len(differences) < 2 or not np.ptp(differences):
        return 0.0 if fall < 0 else 1.0
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return float(stdtr(len(differences) - 1, fall / error))


def queries_for(gain: float, errors: Sequence[float], queries: int, quantiles: float) -> int | None:
    """How many queries show a gain on every metric, where `queries` of them have these standard errors.

    (`quantiles` * error * sqrt(queries) / gain) squared, the sample size of a one-sided paired test (Cohen,
    Statistical Power Analysis, 1988; for retrieval Webber, Moffat and Zobel, CIKM 2008), of the metric that needs most.
    None where the differences of a metric do not vary: they say nothing about others.
    """
    if not all(error > 0 for error in errors):
        return None
    return max(math.ceil((quantiles * error / gain) ** 2 * queries) for error in errors)
