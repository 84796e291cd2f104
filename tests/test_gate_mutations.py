"""The gate's own checks, tried on gates with a planted fault: each fault must be caught by at least one.

A fault is a replacement in the gate's source that must match exactly once, so that a fault which no longer fits the
source fails here instead of silently testing nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from tasks import gate, statistics
from tests.test_gate import CHECKS

SOURCES = {
    name: Path(str(of.__file__)).read_text(encoding="utf-8")
    for name, of in (("statistics", statistics), ("gate", gate))
}  # in the order in which they import each other

FAULTS: dict[str, tuple[str, str]] = {
    "difference is production minus candidate": ("after[name] - before[name] for", "before[name] - after[name] for"),
    "production's metrics are read from the candidate": ("after[name] - before[name] for", "0 * after[name] for"),
    "only Recall@10 decides": (
        "from tasks.config import DECISIVE, Delta, Gate, metric_label",
        "from tasks.config import Delta, Gate, metric_label\nDECISIVE = ('recall_at_10',)",
    ),
    "only MRR decides": (
        "from tasks.config import DECISIVE, Delta, Gate, metric_label",
        "from tasks.config import Delta, Gate, metric_label\nDECISIVE = ('mrr',)",
    ),
    "a gain equal to min_gain is enough": ("deltas[name].value > gate.min_gain", "deltas[name].value >= gate.min_gain"),
    "min_gain is ignored": ("deltas[name].value > gate.min_gain", "deltas[name].value > 0"),
    "a lower bound of zero is enough": ("elif not deltas[name].low > 0:", "elif not deltas[name].low >= 0:"),
    "any gain is enough": ("elif not deltas[name].low > 0:", "elif not deltas[name].value > 0:"),
    "the upper bound is taken for the lower": ("elif not deltas[name].low > 0:", "elif not deltas[name].high > 0:"),
    "a loss is never seen": ("surest[name].high < -gate.max_regression", "surest[name].high < -1"),
    "every fall is a regression": ("surest[name].high < -gate.max_regression", "surest[name].value < 0"),
    "a regression has no margin": ("surest[name].high < -gate.max_regression", "surest[name].high < 0"),
    "a fall by the margin is a regression": (
        "surest[name].high < -gate.max_regression",
        "surest[name].high <= -gate.max_regression",
    ),
    "the margin is always a point": ("surest[name].high < -gate.max_regression", "surest[name].high < -0.01"),
    "a regression is judged by the mean": (
        "surest[name].high < -gate.max_regression",
        "deltas[name].value < -gate.max_regression",
    ),
    "a regression needs no more confidence than a gain": (
        "either = 1 - (1 - gate.confidence) / len(DECISIVE)",
        "either = gate.confidence",
    ),
    "a regression needs certainty": ("either = 1 - (1 - gate.confidence) / len(DECISIVE)", "either = 0.99999"),
    "a regression only on both metrics": ("    if fallen:\n", "    if len(fallen) == len(DECISIVE):\n"),
    "a regression is promoted": ('verdict="regressed"', 'verdict="promoted"'),
    "a regression is only held": ('verdict="regressed"', 'verdict="held"'),
    "obstacles are found and forgotten": ("    if obstacles:\n", "    if not obstacles:\n"),
    "one obstacle is forgiven": ("    if obstacles:\n", "    if len(obstacles) > 1:\n"),
    "a veto is forgotten": (
        "        *_new_document_falls(pair, gate),\n        *vetoes,\n",
        "        *_new_document_falls(pair, gate),\n",
    ),
    "a veto is not told": ('must not serve.", *vetoes, ', 'must not serve.", '),
    "a veto is not told of a regression": (
        '"The candidate is worse, so production stays.", *vetoes]',
        '"The candidate is worse, so production stays."]',
    ),
    "NaN is let through": ("~((values >= 0) & (values <= 1))", "(values < 0) | (values > 1)"),
    "negative values are let through": ("~((values >= 0) & (values <= 1))", "~(values <= 1)"),
    "values above one are let through": ("~((values >= 0) & (values <= 1))", "~(values >= 0)"),
    "only the candidate's values are looked at": (
        'for side, scores in (("candidate", candidate), ("production", production)):',
        'for side, scores in (("candidate", candidate),):',
    ),
    "only production's values are looked at": (
        'for side, scores in (("candidate", candidate), ("production", production)):',
        'for side, scores in (("production", production),):',
    ),
    "problems are found and forgotten": ("    if problems:\n", "    if False:\n"),
    "one problem is forgiven": ("    if problems:\n", "    if len(problems) > 1:\n"),
    "a metric that only one side has is dropped": (
        "names = {*DECISIVE, *candidate.per_query, *production.per_query}",
        "names = {*DECISIVE}",
    ),
    "both sides may lack a decisive metric": (
        "names = {*DECISIVE, *candidate.per_query, *production.per_query}",
        "names = {*candidate.per_query, *production.per_query}",
    ),
    "the same model may be compared with itself": (
        "elif candidate.model == production.model:",
        "elif candidate is production:",
    ),
    "a model needs no fingerprint": ("if not (candidate.model and production.model):", "if False:"),
    "the order of queries is ignored": (
        "if candidate.queries != production.queries:",
        "if sorted(candidate.queries) != sorted(production.queries):",
    ),
    "only the number of queries is compared": (
        "if candidate.queries != production.queries:",
        "if len(candidate.queries) != len(production.queries):",
    ),
    "repeated queries count twice": ("if len(set(candidate.queries)) != queries:", "if False:"),
    "shapes are not looked at": ("values.shape != (queries,) or", "values.size < queries or"),
    "one test query is enough": ("not pair.queries >= gate.min_test_queries", "not pair.queries >= 1"),
    "one test query less is enough": (
        "not pair.queries >= gate.min_test_queries",
        "not pair.queries >= gate.min_test_queries - 1",
    ),
    "min_test_queries are not enough": (
        "not pair.queries >= gate.min_test_queries",
        "not pair.queries > gate.min_test_queries",
    ),
    "each query is drawn once": (
        "drawn = generator.integers(0, queries, size=(len(block), queries))",
        "drawn = np.tile(np.arange(queries), (len(block), 1))",
    ),
    "the last query is never drawn": (
        "drawn = generator.integers(0, queries, size=(len(block), queries))",
        "drawn = generator.integers(0, max(1, queries - 1), size=(len(block), queries))",
    ),
    "only half of each resample is drawn": (
        "drawn = generator.integers(0, queries, size=(len(block), queries))",
        "drawn = np.repeat(generator.integers(0, queries, size=(len(block), (queries + 1) // 2)), 2, 1)[:, :queries]",
    ),
    "the first block of resamples is the only one": (
        "for start in range(0, resamples, rows):",
        "means[:] = 0\n    for start in range(0, rows, rows):",
    ),
    "the seed is ignored": ("np.random.default_rng(seed)", "np.random.default_rng(0)"),
    "the resamples are different every time": ("np.random.default_rng(seed)", "np.random.default_rng()"),
    "the seed of the gate is not handed on": ("gate.resamples, gate.seed)", "gate.resamples, 0)"),
    "the lower bound is at half the confidence": (
        "low = float(np.quantile(means, 1 - confidence,",
        "low = float(np.quantile(means, (1 - confidence) / 2,",
    ),
    "the bootstrap's lower bound is not looked at": ("min(interval.low, low), max", "interval.low, max"),
    "the bootstrap's upper bound is not looked at": ("max(interval.high, high))", "interval.high)"),
    "the narrower of two lower bounds counts": ("min(interval.low, low), max", "max(interval.low, low), max"),
    "the narrower of two upper bounds counts": ("max(interval.high, high))", "min(interval.high, high))"),
    "the bounds are the bootstrap's alone": (
        "widened(t_interval(self.differences[name], self.clusters, confidence), of_metric",
        "widened(Interval(mean(self.differences[name]), 1.0, -1.0), of_metric",
    ),
    "another metric's resamples are taken": ("list(self.differences).index(name)]", "0]"),
    "clusters are ignored": (
        "clusters=None if candidate.clusters is None else np.asarray(candidate.clusters)",
        "clusters=None",
    ),
    "clusters are ignored by the bounds": (
        "widened(t_interval(self.differences[name], self.clusters, confidence)",
        "widened(t_interval(self.differences[name], None, confidence)",
    ),
    "clusters are ignored by the detectable gain": (
        "clustered_error(self.differences[name], self.clusters)[0]",
        "clustered_error(self.differences[name], None)[0]",
    ),
    "clusters that cancel out make sure": ("return max(jackknife, independent)", "return jackknife"),
    "the jackknife forgets the size of what is left": ("/ (queries - sizes)", "/ queries"),
    "the jackknife is a variance of means, not of their mean": ("(groups - 1) / groups *", "1 / groups *"),
    "there are as many degrees of freedom as queries": ("stdtrit(effective - 1,", "stdtrit(len(differences) - 1,"),
    "there are as many degrees of freedom as clusters": ("stdtrit(effective - 1,", "stdtrit(effective,"),
    "the number of clusters takes no heed of their sizes": (
        "effective = queries**2 / float(np.sum(sizes.astype(np.float64) ** 2))",
        "effective = float(groups)",
    ),
    "one cluster is proof": ("if effective > 1 else math.inf", "if effective > 1 else 0.0"),
    "a handful of queries is proof": ("if 0.5 ** np.count_nonzero(differences) <=", "if 0 <="),
    "one query more is asked of a handful": (
        "np.count_nonzero(differences) <= 1 - confidence",
        "np.count_nonzero(differences) <= (1 - confidence) / 2",
    ),
    "rounding errors are gains": (
        "return float(np.round(differences.mean(), _DECIMALS))",
        "return float(differences.mean() + 1e-17)",
    ),
    "clusters may differ between the sides": (
        "if not _same(candidate.clusters, production.clusters",
        "if False and not _same(candidate.clusters, production.clusters",
    ),
    "near duplicates may differ between the sides": (
        "if not _same(candidate.near_duplicates, production",
        "if False and not _same(candidate.near_duplicates, production",
    ),
    "slices may differ between the sides": (" and np.array_equal(first, second)", ""),
    "near duplicates decide": ("return self.take(~self.near_duplicates)", "return self"),
    "near duplicates alone decide": (
        "return self.take(~self.near_duplicates)",
        "return self.take(self.near_duplicates)",
    ),
    "near duplicates are not said": ("    if decision.near_duplicates:\n", "    if False:\n"),
    "the other figure is without near duplicates": (
        "{name: mean(everything.differences[name])",
        "{name: mean(pair.differences[name])",
    ),
    "nothing left is something": ("    if not pair.queries:\n", "    if pair.queries < 0:\n"),
    "the ceiling is everywhere": ("return above is not None and bool(", "return above is None or bool("),
    "the ceiling is at, not above": (".mean() > above)", ".mean() >= above)"),
    "near the ceiling Recall@10 may fall": ("if not low > -NOT_INFERIOR:", "if not low > -1:"),
    "near the ceiling Recall@10 must not fall at all": ("if not low > -NOT_INFERIOR:", "if not low > 0:"),
    "near the ceiling MRR need not rise": ('if at_ceiling and name == "recall_at_10":', "if at_ceiling:"),
    "near the ceiling MRR need not rise, Recall@10 must": (
        'if at_ceiling and name == "recall_at_10":',
        'if at_ceiling and name == "mrr":',
    ),
    "near the ceiling the confidence is the gate's": (
        "means, gate, NOT_INFERIOR_CONFIDENCE).low",
        "means, gate, 0.9999).low",
    ),
    "slices are not judged": (
        "judged = {name: one for name, one in slices.items() if one.judged and",
        "judged = {name: one for name, one in slices.items() if False and",
    ),
    "small slices are judged": ("judged=part.queries >= least", "judged=True"),
    "a slice needs one query more": ("judged=part.queries >= least", "judged=part.queries > least"),
    "the rise of a slice counts as a fall": ("not value >= -gate.max_slice_drop", "not value <= gate.max_slice_drop"),
    "no slice may fall at all": ("not value >= -gate.max_slice_drop", "not value >= 0"),
    "a slice may fall by less than the rule says": (
        "not value >= -gate.max_slice_drop",
        "not value > -gate.max_slice_drop",
    ),
    "a slice may fall by chance": (" and not chance >= _SLICE_ERROR / (len(DECISIVE) * len(judged))", ""),
    "the number of slices is forgotten": ("(len(DECISIVE) * len(judged))", "len(DECISIVE)"),
    "the number of metrics is forgotten": ("(len(DECISIVE) * len(judged))", "len(judged)"),
    "slices that are not judged count": ("(len(DECISIVE) * len(judged))", "(len(DECISIVE) * len(slices))"),
    "built-in slices are judged like any other": (
        " and name not in (GOLDEN, NEW_DOCUMENTS)}",
        "}",
    ),
    "chance is two-sided": (
        "stdtr(len(differences) - 1, fall / error)",
        "2 * stdtr(len(differences) - 1, fall / error)",
    ),
    "chance is that of a rise": (
        "stdtr(len(differences) - 1, fall / error)",
        "stdtr(len(differences) - 1, -fall / error)",
    ),
    "a slice is everything but itself": (
        "pair.differences[metric][pair.slices[name]]",
        "pair.differences[metric][~pair.slices[name]]",
    ),
    "a slice's mean is everybody's": ("mean(part.differences[metric])", "mean(pair.differences[metric])"),
    "slices may be missing on one side": ("if candidate.slices.keys() != production.slices.keys():", "if False:"),
    "the golden slice needs thirty queries": ("{GOLDEN: 1, NEW_DOCUMENTS", "{NEW_DOCUMENTS"),
    "the golden slice is without near duplicates": ("_golden_falls(everything, gate)", "_golden_falls(pair, gate)"),
    "golden queries may drop out": ("if lost and golden.queries < GOLDEN_STATISTICS:", "if False:"),
    "no golden query of many may drop out": (
        "golden.queries < GOLDEN_STATISTICS:",
        "golden.queries <= GOLDEN_STATISTICS:",
    ),
    "a golden query of 99 may drop out": (
        "golden.queries < GOLDEN_STATISTICS:",
        "golden.queries < GOLDEN_STATISTICS - 1:",
    ),
    "golden queries that nobody finds drop out": ('(golden.production["recall_at_10"] > 0) & ~', "~"),
    "golden queries drop out by halves": (
        '~(golden.candidate["recall_at_10"] > 0)',
        '(golden.candidate["recall_at_10"] < golden.production["recall_at_10"])',
    ),
    "the golden slice may fall a little": (
        "found = golden.interval(name, gate)\n        if not found.high >= 0:",
        "found = golden.interval(name, gate)\n        if not found.high >= -1:",
    ),
    "the golden slice may not fall by chance": (
        "found = golden.interval(name, gate)\n        if not found.high >= 0:",
        "found = golden.interval(name, gate)\n        if found.value < 0:",
    ),
    "the golden slice is all queries": ("golden = everything.slice(GOLDEN)", "golden = everything"),
    "new documents may get worse": (
        "found = new.interval(name, gate)\n        if not found.high >= 0:",
        "found = new.interval(name, gate)\n        if not found.high >= -1:",
    ),
    "new documents may not fall by chance": (
        "found = new.interval(name, gate)\n        if not found.high >= 0:",
        "found = new.interval(name, gate)\n        if found.value < 0:",
    ),
    "the unseen slice is inverted": (
        "take(self.slices[name]) if name",
        "take(self.slices[name] ^ (name == NEW_DOCUMENTS)) if name",
    ),
    "a few new documents are judged": ("not new.queries >= NEW_DOCUMENT_QUERIES", "not new.queries >= 1"),
    "one more new document is asked for": (
        "not new.queries >= NEW_DOCUMENT_QUERIES",
        "not new.queries > NEW_DOCUMENT_QUERIES",
    ),
    "that nothing is said of new documents is not said": ("if new.queries < NEW_DOCUMENT_QUERIES:", "if False:"),
    "guard sets are not judged": ("        if not delta.value >= -gate.max_guard_drop and", "        if False and"),
    "the rise of a guard set is a fall": ("not delta.value >= -gate.max_guard_drop", "not delta.value <= 0"),
    "no guard set may fall at all": ("not delta.value >= -gate.max_guard_drop", "not delta.value >= 0"),
    "a guard set may fall by less than the rule says": (
        "not delta.value >= -gate.max_guard_drop",
        "not delta.value > -gate.max_guard_drop",
    ),
    "a guard set may always fall by two points": (
        "not delta.value >= -gate.max_guard_drop",
        "not delta.value >= -0.02",
    ),
    "a guard set may not fall by chance": ("(too_few or not delta.high >= 0)", "True"),
    "a guard set must surely fall by the margin": (
        "(too_few or not delta.high >= 0)",
        "(too_few or not delta.high >= -gate.max_guard_drop)",
    ),
    "a guard set must fall for sure whatever happens": ("(too_few or not delta.high >= 0)", "(not delta.low >= 0)"),
    "a tiny guard set has an excuse": ("(too_few or not delta.high >= 0)", "not delta.high >= 0"),
    "a tiny guard set alone holds": ("(too_few or not delta.high >= 0)", "too_few"),
    "seven queries are too few for a guard set": (
        "too_few = not 0.5**effective <= 1 - gate.confidence",
        "too_few = not 0.5**effective <= (1 - gate.confidence) / 2",
    ),
    "a guard set is too small whatever the confidence": (
        "too_few = not 0.5**effective <= 1 - gate.confidence",
        "too_few = effective < 7",
    ),
    "a guard set counts queries, not documents": (
        "        _, effective = clustered_error(pair.differences[metric], pair.clusters)",
        "        effective = float(pair.queries)",
    ),
    "the clusters of a guard set are ignored": (
        "t_interval(pair.differences[metric], pair.clusters, gate.confidence) for metric in DECISIVE",
        "t_interval(pair.differences[metric], None, gate.confidence) for metric in DECISIVE",
    ),
    "a guard set's confidence is 99% always": (
        "t_interval(pair.differences[metric], pair.clusters, gate.confidence) for metric in DECISIVE",
        "t_interval(pair.differences[metric], pair.clusters, 0.99) for metric in DECISIVE",
    ),
    "one metric of a guard set is judged": (
        "    for metric, delta in deltas.items():\n        _, eff",
        "    for metric, delta in list(deltas.items())[:1]:\n        _, eff",
    ),
    "the other metric of a guard set is judged": (
        "    for metric, delta in deltas.items():\n        _, eff",
        "    for metric, delta in list(deltas.items())[1:]:\n        _, eff",
    ),
    "a guard set that cannot be compared passes": (
        'return Guarded({}, tuple(f"Guard set {name!r} cannot be judged. {one}" for one in faults), judged=False)',
        "return Guarded({}, ())",
    ),
    "a guard set that cannot be compared counts as judged": (
        "for one in faults), judged=False)",
        "for one in faults))",
    ),
    "a guard set of which nothing is found passes": (
        'if not faults and not np.any(np.asarray(production.per_query["recall_at_10"]) > 0):',
        "if False:",
    ),
    "a guard set of which the candidate finds nothing cannot be judged": (
        'np.any(np.asarray(production.per_query["recall_at_10"]) > 0)',
        'np.any(np.asarray(candidate.per_query["recall_at_10"]) > 0)',
    ),
    "other metrics may get worse": ("if name not in DECISIVE and not delta.high >= 0:", "if False:"),
    "other metrics may not fall by chance": (
        "if name not in DECISIVE and not delta.high >= 0:",
        "if name not in DECISIVE and not delta.value >= 0:",
    ),
    "the detectable gain forgets the power": (
        "float(stdtrit(freedom, confidence) + stdtrit(freedom, POWER ** (1 / len(DECISIVE))))",
        "float(stdtrit(freedom, confidence))",
    ),
    "the power is that of one metric": ("stdtrit(freedom, POWER ** (1 / len(DECISIVE)))", "stdtrit(freedom, POWER)"),
    "few documents detect as much as many": (
        "quantiles = _quantiles(confidence, self.effective - 1)",
        "quantiles = _quantiles(confidence)",
    ),
    "one document detects a gain": (
        "        if not self.effective > 1:\n            return {}\n        quantiles = _quantiles(confidence, self",
        "        quantiles = _quantiles(confidence, self",
    ),
    "more queries for one document would do": (
        "        if not self.effective > 1:\n            return {}\n        errors",
        "        errors",
    ),
    "that there is one document is not said": (
        "one_document=pair.queries > 1 and not pair.effective > 1",
        "one_document=False",
    ),
    "the needed queries are those of the easier metric": (
        "return max(math.ceil(",
        "return min(math.ceil(",
    ),
    "metrics that do not vary need no queries": (
        "if not all(error > 0 for error in errors):",
        "if not any(error > 0 for error in errors):",
    ),
}


@contextmanager
def compiled(sources: dict[str, str]) -> Iterator[ModuleType]:
    """The gate of these sources, as modules of their own which exist while the context does."""
    made = []
    try:
        for name, source in sources.items():
            module = ModuleType(f"tasks.{name}_with_a_fault")
            sys.modules[module.__name__] = module  # dataclasses look their module up
            made.append(module)
            source = source.replace("from tasks.statistics import", "from tasks.statistics_with_a_fault import")
            exec(compile(source, f"{name}_with_a_fault.py", "exec"), module.__dict__)  # noqa: S102 - our own source
        yield made[-1]
    finally:
        for module in made:
            del sys.modules[module.__name__]


def failure(module: ModuleType) -> str | None:
    """Name of the first check whose assertion the module fails.

    A check that breaks in another way does not count: a fault that is a mere slip would be "caught" by everything.
    """
    for check in CHECKS:
        try:
            check(module)
        except AssertionError:
            return check.__name__
        except Exception:  # noqa: BLE001, S112 - see above
            continue
    return None


def test_the_gate_without_a_fault_passes() -> None:
    """Otherwise every fault would seem to be caught."""
    with compiled(SOURCES) as module:
        assert failure(module) is None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # some faults let infinite values through
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    """The fault fits the sources in exactly one place, and at least one check fails with it."""
    before, after = FAULTS[fault]
    counts = [source.count(before) for source in SOURCES.values()]
    assert sum(counts) == 1, f"{before!r} is in the gate's sources {sum(counts)} times"
    with compiled({name: source.replace(before, after) for name, source in SOURCES.items()}) as module:
        assert failure(module), f"no check notices that {fault}"
