"""Scores to a verdict with reasons: whether a candidate may replace production. Pure, and closed unless opened.

Both sides were scored on the same queries, so what is judged is the per-query difference, candidate minus production:
paired, it varies far less than either side does. Everything here is a function of the arguments; a rule that cannot
be evaluated (a value is missing, NaN, out of range, or says nothing) counts as not passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.config import DECISIVE, Delta, Gate, metric_label
from tasks.statistics import (
    Interval,
    agreeing,
    bootstrap_means,
    chance_of_fall,
    clustered_error,
    mean,
    queries_for,
    t_interval,
    widened,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

GOLDEN: Final = "golden"
"""The slice of queries that people chose because they must keep working; judged at any size."""

NEW_DOCUMENTS: Final = "new documents"
"""The slice of queries none of whose relevant documents either model was trained on."""

POWER: Final = 0.8
"""Share of real gains that a test of the computed size would see, on all decisive metrics together (Cohen 1988)."""

GAINS: Final = (0.01, 0.02, 0.03)
"""True gains for which a decision says how many test queries they need."""

GOLDEN_STATISTICS: Final = 100
"""From this many golden queries on one may drop out by chance; below, none may."""

NEW_DOCUMENT_QUERIES: Final = 50
"""Queries for new documents from which on they are judged."""

NOT_INFERIOR: Final = 0.01
"""What Recall@10 may lose at the ceiling, where `recall_non_inferior_above` says so ..."""

NOT_INFERIOR_CONFIDENCE: Final = 0.95
"""... and the confidence with which it must not lose more."""

_SLICE_ERROR: Final = 0.10
"""Chance that any slice of a candidate that is as good as production holds it, over all slices and metrics."""


@dataclass(frozen=True)
class Scores:
    """What one model scored: `per_query[metric][i]` belongs to `queries[i]`.

    `model` is the fingerprint of everything that changes its vectors, `slices` maps a slice's name to a mask of shape
    (n_queries,); the golden queries are the slice `GOLDEN`, those for new documents the slice `NEW_DOCUMENTS`.
    `clusters` says which queries rise and fall together, by equal numbers (here: the lowest relevant document); None:
    none do. `near_duplicates` are queries that nearly repeat a training query, which do not decide.
    """

    model: str
    queries: tuple[str, ...]
    per_query: Mapping[str, Floats]
    slices: Mapping[str, Mask] = field(default_factory=dict)
    clusters: Ints | None = None
    near_duplicates: Mask | None = None


@dataclass(frozen=True)
class SliceDelta:
    """Candidate minus production on the decisive metrics over one slice's queries; not `judged`: too few of them."""

    queries: int
    values: dict[str, float]
    judged: bool


@dataclass(frozen=True)
class Decision:
    """A verdict and what it rests on.

    `deltas` holds every metric of both sides; `low` and `high` are one-sided bounds, each at the gate's confidence.
    `mde` is the minimum detectable effect by decisive metric: the true gain that so many queries would show on 8 of 10
    nights, with the other metric gaining as clearly; a metric is missing where its differences do not vary.
    `needed_queries` says by true gain in points ("1", "2", "3") how many test queries would show it so often.
    `queries` decided; `near_duplicates` more nearly repeat a training query, and `with_near_duplicates` is the gain on
    all of them together.
    """

    verdict: Literal["promoted", "held", "regressed"]
    reasons: tuple[str, ...]
    deltas: dict[str, Delta] = field(default_factory=dict)
    mde: dict[str, float] = field(default_factory=dict)
    needed_queries: dict[str, int] = field(default_factory=dict)
    slices: dict[str, SliceDelta] = field(default_factory=dict)
    queries: int = 0
    near_duplicates: int = 0
    with_near_duplicates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Guarded:
    """What a guard set says: the decisive metrics with their bounds, and why it holds the candidate, if it does.

    `judged` is False where there was nothing to compare.
    """

    deltas: dict[str, Delta]
    reasons: tuple[str, ...]
    judged: bool = True


def guard(name: str, candidate: Scores, production: Scores, gate: Gate) -> Guarded:
    """Judge a candidate on a set that must not get worse; never raises for what the scores contain.

    The set holds the candidate where Recall@10 or MRR falls by more than `max_guard_drop`, unless that may be chance:
    the upper bound of the clustered t-interval, at the gate's `confidence`, is not below zero. Chance is no excuse
    where the set has so few queries, those for one document counting together, that not even agreement of all of them
    would reach that confidence (fewer than 7 for 99%): then the mean decides. A set that cannot be compared, or of
    which production finds nothing in the first 10, so that nothing can fall, holds every candidate.

    Neither the bootstrap nor the rule of differing queries widens the bounds: of a gain they err on the side of
    production, of a fall they would err on the candidate's. Nor do sets share the error, as slices do: one more night
    with the same production costs less than what falls unseen.
    """
    faults = list(_incomparable(candidate, production))
    if not faults and not np.any(np.asarray(production.per_query["recall_at_10"]) > 0):
        faults = ["Production finds nothing of it in the first 10, so that nothing can fall: mend or remove it."]
    if faults:
        return Guarded({}, tuple(f"Guard set {name!r} cannot be judged. {one}" for one in faults), judged=False)
    pair = _Pair.of(candidate, production)
    found = {metric: t_interval(pair.differences[metric], pair.clusters, gate.confidence) for metric in DECISIVE}
    deltas = {
        metric: Delta(value=one.value, low=one.low, high=one.high, confidence=gate.confidence)
        for metric, one in found.items()
    }
    reasons = []
    for metric, delta in deltas.items():
        _, effective = clustered_error(pair.differences[metric], pair.clusters)
        too_few = not 0.5**effective <= 1 - gate.confidence
        if not delta.value >= -gate.max_guard_drop and (too_few or not delta.high >= 0):
            excuse = "and it has too few queries to call that chance" if too_few else "beyond chance"
            reasons.append(
                f"Guard set {name!r} ({pair.queries:,} queries) falls in {metric_label(metric)} by "
                f"{_points(-delta.value)}, {excuse}; the gate allows {_points(gate.max_guard_drop)}."
            )
    return Guarded(deltas, tuple(reasons))


def decide(candidate: Scores, production: Scores, gate: Gate, *, vetoes: Sequence[str] = ()) -> Decision:
    """Judge a candidate against production on the same queries; never raises for what the scores contain.

    - regressed: on Recall@10 or on MRR the candidate is worse than production by more than `max_regression`, with half
      the error that `confidence` leaves, since either metric may say so (99.5% for 99%).
    - promoted: on both the gain exceeds `min_gain` and is above zero with that confidence; at least `min_test_queries`;
      no other metric is below production with that confidence; no slice of `min_slice_queries` or more falls by more
      than `max_slice_drop`, beyond chance; no golden query drops out (of 100 or more: they don't fall with that
      confidence); nor do queries for new documents, where there are 50.
    - held: anything else, also scores that cannot be compared. `reasons` says why, and what it would take.

    Above `recall_non_inferior_above`, where there is hardly anything to gain, Recall@10 need not rise: it must not fall
    by more than a point, with 95% confidence.

    Confidence is that of the wider of two intervals: a t-interval with standard errors clustered by document, and a
    paired percentile bootstrap over queries, all metrics on the same resamples. A difference must also rest on enough
    queries that a sign test could reach the confidence.

    `vetoes` are reasons from elsewhere why the candidate must not serve (it does not serve as it was scored, it fell on
    a guard set): each turns a promotion into `held`, and is among the reasons of every verdict.
    """
    problems = list(_incomparable(candidate, production))
    if problems:
        return Decision("held", (*problems, "Nothing was compared, so production stays.", *vetoes))
    everything = _Pair.of(candidate, production)
    pair = everything.without_near_duplicates()
    if not pair.queries:
        reason = "Every test query nearly repeats a training query, so none can decide."
        return Decision("held", (reason, "Nothing was compared, so production stays.", *vetoes))

    means = bootstrap_means(np.stack(list(pair.differences.values()), axis=1), gate.resamples, gate.seed)
    deltas = {name: pair.delta(name, means, gate, gate.confidence) for name in pair.differences}
    decision = Decision(
        verdict="held",
        reasons=(),
        deltas=deltas,
        mde=pair.detectable(gate.confidence),
        needed_queries=pair.needed(gate.confidence),
        slices=_slices(everything, pair, gate),
        queries=pair.queries,
        near_duplicates=everything.queries - pair.queries,
        with_near_duplicates={name: mean(everything.differences[name]) for name in DECISIVE},
    )

    either = 1 - (1 - gate.confidence) / len(DECISIVE)
    surest = {name: pair.delta(name, means, gate, either) for name in DECISIVE}
    fallen = [name for name in DECISIVE if surest[name].high < -gate.max_regression]
    if fallen:
        lines = [pair.sentence(name, surest[name]) for name in fallen]
        lines += ["The candidate is worse, so production stays.", *vetoes]
        return replace(decision, verdict="regressed", reasons=tuple(lines))

    at_ceiling = _at_ceiling(pair, gate)
    obstacles = [
        *_too_little_gain(pair, deltas, means, gate, at_ceiling),
        *_slice_falls(pair, decision.slices, gate),
        *_golden_falls(everything, gate),
        *_new_document_falls(pair, gate),
        *vetoes,
    ]
    novelty = list(_novelty(pair))
    if obstacles == list(vetoes) and vetoes:
        return replace(decision, reasons=("The candidate scores better, but must not serve.", *vetoes, *novelty))
    if obstacles:
        advice = _advice(decision, one_document=pair.queries > 1 and not pair.effective > 1)
        return replace(decision, reasons=(*obstacles, *advice, *novelty))
    lines = [pair.sentence(name, deltas[name]) for name in DECISIVE]
    measured = f"Both were measured on {pair.queries:,} test queries."
    return replace(decision, verdict="promoted", reasons=(*lines, measured, *_left_out(decision), *novelty))


@dataclass(frozen=True)
class _Pair:
    """Both sides on the queries that decide: `differences` is candidate minus production, by metric."""

    differences: dict[str, Floats]
    candidate: dict[str, Floats]
    production: dict[str, Floats]
    slices: dict[str, Mask]
    clusters: Ints | None
    near_duplicates: Mask

    @classmethod
    def of(cls, candidate: Scores, production: Scores) -> _Pair:
        """All queries of both sides, which are the same."""
        names = sorted(candidate.per_query)
        after, before = (
            {name: np.asarray(side.per_query[name], np.float64) for name in names} for side in (candidate, production)
        )
        none = np.zeros(len(candidate.queries), dtype=bool)
        return cls(
            differences={name: after[name] - before[name] for name in names},
            candidate=after,
            production=before,
            slices=dict(candidate.slices),
            clusters=None if candidate.clusters is None else np.asarray(candidate.clusters),
            near_duplicates=none if candidate.near_duplicates is None else np.asarray(candidate.near_duplicates),
        )

    def take(self, mask: Mask) -> _Pair:
        """The queries of a mask."""
        return _Pair(
            differences={name: values[mask] for name, values in self.differences.items()},
            candidate={name: values[mask] for name, values in self.candidate.items()},
            production={name: values[mask] for name, values in self.production.items()},
            slices={name: values[mask] for name, values in self.slices.items()},
            clusters=None if self.clusters is None else self.clusters[mask],
            near_duplicates=self.near_duplicates[mask],
        )

    def without_near_duplicates(self) -> _Pair:
        """The queries that decide."""
        return self.take(~self.near_duplicates)

    def slice(self, name: str) -> _Pair | None:
        """The queries of a slice; None where there is no such slice."""
        return replace(self, slices={}).take(self.slices[name]) if name in self.slices else None

    @property
    def queries(self) -> int:
        """How many there are."""
        return len(self.near_duplicates)

    def interval(self, name: str, gate: Gate) -> Interval:
        """One metric's clustered t-interval, with zero inside where only a handful of queries differ."""
        found = t_interval(self.differences[name], self.clusters, gate.confidence)
        return agreeing(found, self.differences[name], gate.confidence)

    def delta(self, name: str, means: Floats, gate: Gate, confidence: float) -> Delta:
        """The same at a confidence, as wide at least as the bootstrap's; `means` are of all metrics in their order."""
        of_metric = means[:, list(self.differences).index(name)]
        found = widened(t_interval(self.differences[name], self.clusters, confidence), of_metric, confidence)
        found = agreeing(found, self.differences[name], gate.confidence)
        return Delta(value=found.value, low=found.low, high=found.high, confidence=confidence)

    def errors(self) -> dict[str, float]:
        """Clustered standard errors of the decisive metrics."""
        return {name: clustered_error(self.differences[name], self.clusters)[0] for name in DECISIVE}

    @property
    def effective(self) -> float:
        """How many witnesses the queries are, those for one document counting together; see `clustered_error`."""
        return clustered_error(next(iter(self.differences.values())), self.clusters)[1]

    def detectable(self, confidence: float) -> dict[str, float]:
        """(t_confidence + t_power) * error, for decisive metrics whose differences vary; nothing for one document."""
        if not self.effective > 1:
            return {}
        quantiles = _quantiles(confidence, self.effective - 1)
        return {name: quantiles * error for name, error in self.errors().items() if error > 0}

    def needed(self, confidence: float) -> dict[str, int]:
        """Queries that would show each of `GAINS`, by gain in points, where they ask for as many more documents."""
        if not self.effective > 1:
            return {}
        errors = list(self.errors().values())
        found = {gain: queries_for(gain, errors, self.queries, _quantiles(confidence)) for gain in GAINS}
        return {f"{100 * gain:.0f}": count for gain, count in found.items() if count is not None}

    def sentence(self, name: str, delta: Delta) -> str:
        """One metric's change with its bound, for someone who reads it at four in the morning."""
        means = f"{self.production[name].mean():.4f} to {self.candidate[name].mean():.4f}"
        if delta.value == 0:
            change, bound = "is unchanged", f"at least {100 * delta.low:+.2f} points"
        elif delta.value < 0:
            change, bound = f"fell by {_points(-delta.value)}", f"at most {100 * delta.high:+.2f} points"
        else:
            change, bound = f"rose by {_points(delta.value)}", f"at least {100 * delta.low:+.2f} points"
        confidence = f"{100 * delta.confidence:.4g}% confidence"
        return f"{metric_label(name)} {change} ({means}); with {confidence} the true change is {bound}."


def _quantiles(confidence: float, freedom: float = math.inf) -> float:
    """Quantiles of Student's t (of the normal, with endless freedom) of confidence and power of each metric, added.

    Both metrics must gain: where they were independent, each would have to be seen sqrt(0.8) of the time, 89%.
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, confidence) + stdtrit(freedom, POWER ** (1 / len(DECISIVE))))


def _incomparable(candidate: Scores, production: Scores) -> Iterator[str]:
    """Why the two sides cannot be compared at all."""
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
    yield from _unequal(candidate, production, queries)


def _unequal(candidate: Scores, production: Scores, queries: int) -> Iterator[str]:
    """What the two sides say differently of the queries themselves."""
    if candidate.slices.keys() != production.slices.keys():
        yield "The two sides have different slices."
    for name in sorted(candidate.slices.keys() & production.slices.keys()):
        if not _same(candidate.slices[name], production.slices[name], np.bool_, queries):
            yield f"Slice {name!r} is not the same choice of the {queries:,} test queries on both sides."
    if not _same(candidate.clusters, production.clusters, np.integer, queries):
        yield f"The clusters are not the same numbers for each of the {queries:,} test queries on both sides."
    if not _same(candidate.near_duplicates, production.near_duplicates, np.bool_, queries):
        yield f"The near duplicates are not the same choice of the {queries:,} test queries on both sides."


def _same(one: object, other: object, kind: type, queries: int) -> bool:
    """Whether both are None, or both are the same values of this kind, one for each query."""
    if one is None or other is None:
        return one is other
    first, second = np.asarray(one), np.asarray(other)
    kinds = np.issubdtype(first.dtype, kind) and np.issubdtype(second.dtype, kind)
    return kinds and first.shape == (queries,) and np.array_equal(first, second)


def _unusable(what: str, values: Floats, queries: int) -> Iterator[str]:
    """What is wrong with one metric's per-query values."""
    values = np.asarray(values)
    if values.shape != (queries,) or not np.issubdtype(values.dtype, np.number):
        yield f"{what} has {values.dtype} values of shape {values.shape}, not a number for each of {queries:,} queries."
        return
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(bad):
        yield f"{what} is NaN or outside 0 to 1 for {len(bad):,} of {queries:,} queries, first for query {bad[0]}."


# --- rules ------------------------------------------------------------------------------------------------------


def _at_ceiling(pair: _Pair, gate: Gate) -> bool:
    """Whether Recall@10 has hardly anything left to gain, by the setting that says so."""
    above = gate.recall_non_inferior_above
    return above is not None and bool(pair.production["recall_at_10"].mean() > above)


def _too_little_gain(
    pair: _Pair, deltas: Mapping[str, Delta], means: Floats, gate: Gate, at_ceiling: bool
) -> Iterator[str]:
    """What the metrics lack. Written so that NaN is an obstacle."""
    if not pair.queries >= gate.min_test_queries:
        yield f"{pair.queries:,} test queries are too few to decide; the gate asks for {gate.min_test_queries:,}."
    for name in DECISIVE:
        sentence = pair.sentence(name, deltas[name])
        if at_ceiling and name == "recall_at_10":
            low = pair.delta(name, means, gate, NOT_INFERIOR_CONFIDENCE).low
            if not low > -NOT_INFERIOR:
                yield f"{sentence} Near the ceiling it may lose at most {_points(NOT_INFERIOR)}, with 95% confidence."
        elif not deltas[name].value > gate.min_gain:
            yield f"{sentence} A promotion needs a gain of more than {_points(gate.min_gain)}."
        elif not deltas[name].low > 0:
            yield f"{sentence} That may be chance."
    for name, delta in deltas.items():
        if name not in DECISIVE and not delta.high >= 0:
            yield f"{pair.sentence(name, delta)} No metric may get worse."


def _slices(everything: _Pair, pair: _Pair, gate: Gate) -> dict[str, SliceDelta]:
    """The decisive metrics' mean difference over each slice that has a query.

    Golden queries are all of them: that one nearly repeats a training query is not a reason to lose it.
    """
    found = {}
    for name in sorted(pair.slices):
        part = (everything if name == GOLDEN else pair).slice(name)
        if part is not None and part.queries:
            least = {GOLDEN: 1, NEW_DOCUMENTS: NEW_DOCUMENT_QUERIES}.get(name, gate.min_slice_queries)
            values = {metric: mean(part.differences[metric]) for metric in DECISIVE}
            found[name] = SliceDelta(part.queries, values, judged=part.queries >= least)
    return found


def _slice_falls(pair: _Pair, slices: Mapping[str, SliceDelta], gate: Gate) -> Iterator[str]:
    """Slices that fall by more than is allowed, beyond chance.

    Many slices are looked at, so each test gets a share of the error (Bonferroni): 0.10 over slices and metrics.
    """
    judged = {name: one for name, one in slices.items() if one.judged and name not in (GOLDEN, NEW_DOCUMENTS)}
    for name, one in judged.items():
        for metric, value in one.values.items():
            chance = chance_of_fall(pair.differences[metric][pair.slices[name]])
            if not value >= -gate.max_slice_drop and not chance >= _SLICE_ERROR / (len(DECISIVE) * len(judged)):
                yield (
                    f"Slice {name!r} ({one.queries:,} queries) falls in {metric_label(metric)} by {_points(-value)}, "
                    f"beyond chance (p = {chance:.2g}); the gate allows {_points(gate.max_slice_drop)}."
                )


def _golden_falls(everything: _Pair, gate: Gate) -> Iterator[str]:
    """What the golden queries lose. A few must all stay found; of many, one may drop out by chance."""
    golden = everything.slice(GOLDEN)
    if golden is None or not golden.queries:
        return
    lost = int(np.sum((golden.production["recall_at_10"] > 0) & ~(golden.candidate["recall_at_10"] > 0)))
    if lost and golden.queries < GOLDEN_STATISTICS:
        yield f"{lost:,} of {golden.queries:,} golden queries drop out of the first 10, where production finds them."
    for name in DECISIVE:
        found = golden.interval(name, gate)
        if not found.high >= 0:
            yield f"The golden queries fall in {metric_label(name)} by {_points(-found.value)}, which is not chance."


def _new_document_falls(pair: _Pair, gate: Gate) -> Iterator[str]:
    """What queries for new documents lose, where there are enough to tell."""
    new = pair.slice(NEW_DOCUMENTS)
    if new is None or not new.queries >= NEW_DOCUMENT_QUERIES:
        return
    for name in DECISIVE:
        found = new.interval(name, gate)
        if not found.high >= 0:
            yield (
                f"On documents that neither model was trained on ({new.queries:,} queries) {metric_label(name)} falls "
                f"by {_points(-found.value)}, which is not chance."
            )


# --- what is said -----------------------------------------------------------------------------------------------


def _novelty(pair: _Pair) -> Iterator[str]:
    """What the verdict says about documents that nobody trained on, where that is known."""
    new = pair.slice(NEW_DOCUMENTS)
    if new is None:
        return
    if new.queries < NEW_DOCUMENT_QUERIES:
        yield (
            f"The verdict says nothing about new documents: {new.queries:,} test queries ask for one that neither "
            f"model was trained on, and {NEW_DOCUMENT_QUERIES} are needed."
        )
        return
    changes = " and ".join(f"{metric_label(name)} {100 * mean(new.differences[name]):+.2f} points" for name in DECISIVE)
    yield f"On documents that neither model was trained on ({new.queries:,} queries): {changes}."


def _left_out(decision: Decision) -> Iterator[str]:
    """What near duplicates of training queries would have added."""
    if decision.near_duplicates:
        gains = " and ".join(
            f"{metric_label(name)} {100 * gain:+.2f} points" for name, gain in decision.with_near_duplicates.items()
        )
        yield (
            f"{decision.near_duplicates:,} more nearly repeat a training query and do not decide; with them the change "
            f"would be {gains}."
        )


def _advice(decision: Decision, *, one_document: bool) -> Iterator[str]:
    """What this many test queries can show, and how many other gains need."""
    yield from _left_out(decision)
    if one_document:
        yield "All test queries ask for one document, which shows nothing: label queries for more documents."
    if decision.mde:
        gains = " and ".join(f"{_points(gain)} in {metric_label(name)}" for name, gain in decision.mde.items())
        yield f"With {decision.queries:,} test queries, true gains of {gains} would be seen on 8 of 10 nights."
    if decision.needed_queries:
        counts = ", ".join(
            f"{count:,} for {points} point{'s' * (points != '1')}" for points, count in decision.needed_queries.items()
        )
        yield f"To see a true gain in both as often takes about so many test queries: {counts}."


def _points(value: float) -> str:
    """A share as percentage points."""
    return f"{100 * value:.2f} points"
