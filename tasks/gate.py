"""Scores to a verdict with reasons: whether a candidate may replace production. Pure, and closed unless opened.

Both sides were scored on the same queries, so what is judged is the per-query difference, candidate minus production:
paired, it varies far less than either side does. Everything here is a function of the arguments; a rule that cannot
be evaluated (a value is missing, NaN, out of range, or says nothing) counts as not passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.config import DECISIVE, Delta, Gate, metric_label
from tasks.statistics import bootstrap_means

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

GOLDEN: Final = "golden"
"""The slice of queries that people chose because they must keep working; judged at any size."""

POWER: Final = 0.8
"""Share of real gains that a test of the computed size would see; the convention since Cohen (1988)."""

_DECIMALS: Final = 12
"""Gains are rounded to this many decimals: what floating point leaves of a difference of zero is no gain."""


@dataclass(frozen=True)
class Scores:
    """What one model scored: `per_query[metric][i]` belongs to `queries[i]`.

    `model` is the fingerprint of everything that changes its vectors, `slices` maps a slice's name to a mask of shape
    (n_queries,); the golden queries are the slice named "golden".
    """

    model: str
    queries: tuple[str, ...]
    per_query: Mapping[str, Floats]
    slices: Mapping[str, Mask] = field(default_factory=dict)


@dataclass(frozen=True)
class SliceDelta:
    """Candidate minus production on the decisive metrics over one slice's queries; not `judged`: too few of them."""

    queries: int
    values: dict[str, float]
    judged: bool


@dataclass(frozen=True)
class Decision:
    """A verdict and what it rests on.

    `deltas` holds every metric of both sides; `low` and `high` are one-sided bounds, each at the rule's confidence.
    `mde` is the minimum detectable effect by decisive metric: the gain that so many queries would show on 8 of 10
    nights; a metric is missing where its differences do not vary.
    `needed_queries` is how many test queries would show the observed gains so often; None where there is no gain.
    """

    verdict: Literal["promoted", "held", "regressed"]
    reasons: tuple[str, ...]
    deltas: dict[str, Delta] = field(default_factory=dict)
    mde: dict[str, float] = field(default_factory=dict)
    needed_queries: int | None = None
    slices: dict[str, SliceDelta] = field(default_factory=dict)


def decide(candidate: Scores, production: Scores, gate: Gate, *, vetoes: Sequence[str] = ()) -> Decision:
    """Judge a candidate against production on the same queries; never raises for what the scores contain.

    - regressed: on Recall@10 or on MRR the candidate is below production with `gate.confidence`.
    - promoted: on both the gain exceeds `min_gain` and is above zero with that confidence; at least `min_test_queries`;
      no other metric is below production with that confidence; no slice of `min_slice_queries` or more falls by more
      than `max_slice_drop`; the golden slice, whatever its size, neither falls by more than that nor at all with
      that confidence.
    - held: anything else, also scores that cannot be compared. `reasons` says why, and what it would take.

    `vetoes` are reasons from elsewhere why the candidate must not serve (it does not serve as it was scored, it fell on
    a guard set): each turns a promotion into `held`, and is among the reasons of every verdict.

    Confidence is from a paired percentile bootstrap over queries (Efron and Tibshirani 1993, chapter 13), all metrics
    on the same resamples. The bootstrap overrates a difference that rests on a handful of queries, and one query alone
    convinces it fully; so a difference must also rest on enough queries that a sign test could reach the confidence.
    """
    problems = list(_incomparable(candidate, production))
    if problems:
        return Decision("held", (*problems, "Nothing was compared, so production stays.", *vetoes))

    queries = len(candidate.queries)
    differences = {
        name: np.asarray(candidate.per_query[name], np.float64) - np.asarray(production.per_query[name], np.float64)
        for name in sorted(candidate.per_query)
    }
    deltas = _bootstrap(differences, gate)
    slices = _slices(candidate.slices, differences, gate)
    detectable = {name: detectable_gain(differences[name], queries, gate.confidence) for name in DECISIVE}
    mde = {name: gain for name, gain in detectable.items() if gain is not None}
    decision = Decision("held", (), deltas, mde, _needed(differences, deltas, gate), slices)

    fallen = [name for name in DECISIVE if deltas[name].high < 0]
    if fallen:
        lines = [_sentence(name, candidate, production, deltas[name]) for name in fallen]
        lines += ["The candidate is worse, so production stays.", *vetoes]
        return replace(decision, verdict="regressed", reasons=tuple(lines))

    obstacles = list(_obstacles(candidate, production, deltas, slices, gate))
    golden = candidate.slices.get(GOLDEN)
    if golden is not None and np.any(golden):
        of_golden = _bootstrap({name: differences[name][golden] for name in DECISIVE}, gate)
        obstacles += [
            f"The golden queries fall in {metric_label(name)} by {_points(-delta.value)}, which is not chance."
            for name, delta in of_golden.items()
            if not delta.high >= 0
        ]
    if obstacles:
        return replace(decision, reasons=(*obstacles, *vetoes, *_advice(decision, queries)))
    if vetoes:
        return replace(decision, reasons=("The candidate scores better, but must not serve.", *vetoes))
    lines = [_sentence(name, candidate, production, deltas[name]) for name in DECISIVE]
    return replace(decision, verdict="promoted", reasons=(*lines, f"Both were measured on {queries:,} test queries."))


def detectable_gain(differences: Floats, queries: int, confidence: float) -> float | None:
    """Minimum detectable effect: the true gain that `queries` queries show, at this confidence, `POWER` of the time.

    (z_confidence + z_power) * sd / sqrt(n), with the standard deviation of the paired differences: the sample-size
    formula of a one-sided paired test (Cohen, Statistical Power Analysis, 1988; for retrieval Webber, Moffat and Zobel,
    Statistical power in retrieval experimentation, CIKM 2008). None where the differences do not vary, so that they
    say nothing about others.
    """
    deviation = _deviation(differences)
    return None if deviation is None else _z(confidence) * deviation / math.sqrt(queries)


def needed_queries(differences: Floats, gain: float, confidence: float) -> int | None:
    """How many test queries show a true gain of `gain` at this confidence, `POWER` of the time; None for no gain.

    The same formula as `detectable_gain`, solved for n: ((z_confidence + z_power) * sd / gain) squared.
    """
    deviation = _deviation(differences)
    return None if deviation is None or not gain > 0 else math.ceil((_z(confidence) * deviation / gain) ** 2)


def _deviation(differences: Floats) -> float | None:
    """Standard deviation of the paired differences; None where there are fewer than two or they are all equal."""
    deviation = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    return deviation if deviation > 0 else None


def _z(confidence: float) -> float:
    """Standard normal quantiles of the confidence and of the power, added."""
    normal = NormalDist()
    return normal.inv_cdf(confidence) + normal.inv_cdf(POWER)


def _incomparable(candidate: Scores, production: Scores) -> Iterator[str]:
    """Why the two sides cannot be compared at all, in words."""
    if not (candidate.model and production.model):
        yield "A model has no fingerprint, so it is unknown what was scored."
    elif candidate.model == production.model:
        yield f"Candidate and production are the same model ({candidate.model[:12]})."
    queries = len(candidate.queries)
    if not queries:
        yield "There are no test queries."
    if candidate.queries != production.queries:
        yield (
            f"The two were scored on different queries: {queries:,} for the candidate and "
            f"{len(production.queries):,} for production, which must be the same in the same order."
        )
    if len(set(candidate.queries)) != queries:
        yield f"{queries - len(set(candidate.queries)):,} test queries occur twice and would count twice."
    names = {*DECISIVE, *candidate.per_query, *production.per_query}
    for side, scores in (("candidate", candidate), ("production", production)):
        for name in sorted(names - set(scores.per_query)):
            yield f"The {side} has no {metric_label(name)}."
        for name in sorted(scores.per_query):
            yield from _unusable(f"The {side}'s {metric_label(name)}", scores.per_query[name], queries)
    if candidate.slices.keys() != production.slices.keys():
        yield "The two sides have different slices."
    for name in sorted(candidate.slices.keys() & production.slices.keys()):
        mask, other = np.asarray(candidate.slices[name]), np.asarray(production.slices[name])
        if not (mask.dtype == other.dtype == np.bool_ and mask.shape == (queries,) and np.array_equal(mask, other)):
            yield f"Slice {name!r} is not the same choice of the {queries:,} test queries on both sides."


def _unusable(what: str, values: Floats, queries: int) -> Iterator[str]:
    """What is wrong with one metric's per-query values, in words."""
    values = np.asarray(values)
    if values.shape != (queries,) or not np.issubdtype(values.dtype, np.number):
        yield f"{what} has {values.dtype} values of shape {values.shape}, not a number for each of {queries:,} queries."
        return
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(bad):
        yield f"{what} is NaN or outside 0 to 1 for {len(bad):,} of {queries:,} queries, first for query {bad[0]}."


def _bootstrap(differences: Mapping[str, Floats], gate: Gate) -> dict[str, Delta]:
    """Mean difference of each metric with its one-sided bounds; every metric sees the same resampled queries.

    A bound is moved to zero where a sign test on the differing queries could not reach the confidence even if all of
    them agreed: with k of them, chance alone makes them agree with probability 0.5^k.
    """
    table = np.stack(list(differences.values()), axis=1)  # (queries, metrics)
    means = bootstrap_means(table, gate.resamples, gate.seed)
    means = np.round(means, _DECIMALS)
    value = np.round(table.mean(axis=0), _DECIMALS)
    low = np.quantile(means, 1 - gate.confidence, axis=0, method="lower")
    high = np.quantile(means, gate.confidence, axis=0, method="higher")
    telling = 0.5 ** np.count_nonzero(table, axis=0) <= 1 - gate.confidence
    low, high = np.where(telling, low, np.minimum(low, 0)), np.where(telling, high, np.maximum(high, 0))
    return {
        name: Delta(value=float(value[i]), low=float(low[i]), high=float(high[i]), confidence=gate.confidence)
        for i, name in enumerate(differences)
    }


def _slices(masks: Mapping[str, Mask], differences: Mapping[str, Floats], gate: Gate) -> dict[str, SliceDelta]:
    """The decisive metrics' mean difference over each slice that has a query."""
    sizes = {name: int(np.sum(mask)) for name, mask in sorted(masks.items())}
    return {
        name: SliceDelta(
            queries=size,
            values={m: float(np.round(differences[m][masks[name]].mean(), _DECIMALS)) for m in DECISIVE},
            judged=name == GOLDEN or size >= gate.min_slice_queries,
        )
        for name, size in sizes.items()
        if size
    }


def _obstacles(
    candidate: Scores, production: Scores, deltas: Mapping[str, Delta], slices: Mapping[str, SliceDelta], gate: Gate
) -> Iterator[str]:
    """What stands between a comparable candidate and production, in words. Written so that NaN is an obstacle."""
    queries = len(candidate.queries)
    if not queries >= gate.min_test_queries:
        yield f"{queries:,} test queries are too few to decide; the rule asks for {gate.min_test_queries:,}."
    for name in DECISIVE:
        delta = deltas[name]
        sentence = _sentence(name, candidate, production, delta)
        if not delta.value > gate.min_gain:
            yield f"{sentence} A promotion needs a gain of more than {_points(gate.min_gain)}."
        elif not delta.low > 0:
            yield f"{sentence} That may be chance."
    for name, delta in deltas.items():
        if name not in DECISIVE and not delta.high >= 0:
            yield f"{_sentence(name, candidate, production, delta)} No metric may get worse."
    for name, part in slices.items():
        for metric, value in part.values.items():
            if part.judged and not value >= -gate.max_slice_drop:
                yield (
                    f"Slice {name!r} ({part.queries:,} queries) falls in {metric_label(metric)} by {_points(-value)}; "
                    f"the rule allows {_points(gate.max_slice_drop)}."
                )


def _needed(differences: Mapping[str, Floats], deltas: Mapping[str, Delta], gate: Gate) -> int | None:
    """Test queries that would show the observed gains of both decisive metrics; None where one has not gained."""
    needed = [needed_queries(differences[name], deltas[name].value, gate.confidence) for name in DECISIVE]
    counts = [count for count in needed if count is not None]
    return max(counts) if len(counts) == len(needed) else None


def _advice(decision: Decision, queries: int) -> Iterator[str]:
    """What this many test queries can show, and how many the observed gain needs."""
    if decision.mde:
        gains = " or ".join(f"{_points(gain)} in {metric_label(name)}" for name, gain in decision.mde.items())
        yield f"With {queries:,} test queries, a true gain of {gains} would be seen on 8 of 10 nights."
    if decision.needed_queries is not None and decision.needed_queries > queries:
        yield f"If the observed gains are real, about {decision.needed_queries:,} test queries would show it."


def _sentence(name: str, candidate: Scores, production: Scores, delta: Delta) -> str:
    """One metric's change with its bounds, for someone who reads it at four in the morning."""
    means = f"{np.mean(production.per_query[name]):.4f} to {np.mean(candidate.per_query[name]):.4f}"
    if delta.value == 0:
        change, bound = "is unchanged", f"at least {100 * delta.low:+.2f} points"
    elif delta.value < 0:
        change, bound = f"fell by {_points(-delta.value)}", f"at most {100 * delta.high:+.2f} points"
    else:
        change, bound = f"rose by {_points(delta.value)}", f"at least {100 * delta.low:+.2f} points"
    confidence = f"{100 * delta.confidence:.4g}% confidence"
    return f"{metric_label(name)} {change} ({means}); with {confidence} the true change is {bound}."


def _points(value: float) -> str:
    """A share as percentage points."""
    return f"{100 * value:.2f} points"
