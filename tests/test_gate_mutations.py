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
    "difference is production minus candidate": (
        "np.asarray(candidate.per_query[name], np.float64) - np.asarray(production.per_query[name], np.float64)",
        "np.asarray(production.per_query[name], np.float64) - np.asarray(candidate.per_query[name], np.float64)",
    ),
    "production's metrics are read from the candidate": (
        "- np.asarray(production.per_query[name], np.float64)",
        "- np.asarray(candidate.per_query[name], np.float64)",
    ),
    "only Recall@10 decides": (
        "from tasks.config import DECISIVE, Delta, Gate, metric_label",
        "from tasks.config import Delta, Gate, metric_label\nDECISIVE = ('recall_at_10',)",
    ),
    "only MRR decides": (
        "from tasks.config import DECISIVE, Delta, Gate, metric_label",
        "from tasks.config import Delta, Gate, metric_label\nDECISIVE = ('mrr',)",
    ),
    "a gain equal to min_gain is enough": ("not delta.value > gate.min_gain", "not delta.value >= gate.min_gain"),
    "min_gain is ignored": ("not delta.value > gate.min_gain", "not delta.value > 0"),
    "a lower bound of zero is enough": ("elif not delta.low > 0:", "elif not delta.low >= 0:"),
    "any gain is enough": ("elif not delta.low > 0:", "elif not delta.value > 0:"),
    "the upper bound is taken for the lower": ("elif not delta.low > 0:", "elif not delta.high > 0:"),
    "a loss is never seen": ("if deltas[name].high < 0]", "if deltas[name].high < -1]"),
    "every fall is a regression": ("if deltas[name].high < 0]", "if deltas[name].value < 0]"),
    "not losing is a regression": ("if deltas[name].high < 0]", "if deltas[name].high <= 0]"),
    "a regression only on both metrics": (
        "    if fallen:\n",
        "    if len(fallen) == len(DECISIVE):\n",
    ),
    "a regression is promoted": ('verdict="regressed"', 'verdict="promoted"'),
    "a regression is only held": ('verdict="regressed"', 'verdict="held"'),
    "obstacles are found and forgotten": ("    if obstacles:\n", "    if not obstacles:\n"),
    "one obstacle is forgiven": ("    if obstacles:\n", "    if len(obstacles) > 1:\n"),
    "a veto is forgotten": ("    if vetoes:\n", "    if False:\n"),
    "a veto is not told": ('must not serve.", *vetoes)', 'must not serve.",)'),
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
    "one test query is enough": ("not queries >= gate.min_test_queries", "not queries >= 1"),
    "one test query less is enough": (
        "not queries >= gate.min_test_queries",
        "not queries >= gate.min_test_queries - 1",
    ),
    "min_test_queries are not enough": ("not queries >= gate.min_test_queries", "not queries > gate.min_test_queries"),
    "candidate and production are resampled apart": (
        "    deltas = _bootstrap(differences, gate)\n",
        "    sides = [_bootstrap({n: np.asarray(s.per_query[n], np.float64) for n in differences},"
        " gate.model_copy(update={'seed': gate.seed + i})) for i, s in enumerate((candidate, production))]\n"
        "    deltas = {n: Delta(value=sides[0][n].value - sides[1][n].value, low=sides[0][n].low - sides[1][n].high,"
        " high=sides[0][n].high - sides[1][n].low, confidence=gate.confidence) for n in differences}\n",
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
    "the lower bound is at half the confidence": (
        "low = np.quantile(means, 1 - gate.confidence,",
        "low = np.quantile(means, (1 - gate.confidence) / 2,",
    ),
    "the bounds have a confidence of their own": (
        "low = np.quantile(means, 1 - gate.confidence,",
        "low = np.quantile(means, 0.05,",
    ),
    "the upper bound is at another confidence": (
        "high = np.quantile(means, gate.confidence,",
        "high = np.quantile(means, 0.95,",
    ),
    "the bounds change places": (
        "    telling = 0.5",
        "    low, high = high, low\n    telling = 0.5",
    ),
    "a handful of queries is proof": (
        "telling = 0.5 ** np.count_nonzero(table, axis=0) <=",
        "telling = 0 * table[0] <=",
    ),
    "one query more is asked of a handful": ("<= 1 - gate.confidence", "<= (1 - gate.confidence) / 2"),
    "rounding errors are gains": (
        "value = np.round(table.mean(axis=0), _DECIMALS)",
        "value = table.mean(axis=0) + 1e-17",
    ),
    "slices are not judged": ("if part.judged and not", "if False and not"),
    "small slices are judged": ("judged=name == GOLDEN or size >=", "judged=name == GOLDEN or 1 >= 0 * size *"),
    "a slice needs one query more": ("size >= gate.min_slice_queries", "size > gate.min_slice_queries"),
    "the rise of a slice counts as a fall": ("not value >= -gate.max_slice_drop", "not value <= gate.max_slice_drop"),
    "no slice may fall at all": ("not value >= -gate.max_slice_drop", "not value >= 0"),
    "a slice may fall by less than the rule says": (
        "not value >= -gate.max_slice_drop",
        "not value > -gate.max_slice_drop",
    ),
    "a slice is everything but itself": (
        "differences[m][masks[name]].mean()",
        "differences[m][~masks[name]].mean()",
    ),
    "slices may differ between the sides": ("and np.array_equal(mask, other)", ""),
    "slices may be missing on one side": ("if candidate.slices.keys() != production.slices.keys():", "if False:"),
    "the golden slice needs thirty queries": ("judged=name == GOLDEN or size", "judged=size"),
    "the golden slice may fall a little": (
        "            if not delta.high >= 0\n",
        "            if not delta.high >= -1\n",
    ),
    "the golden slice may not fall by chance": (
        "            if not delta.high >= 0\n",
        "            if not delta.value > 0\n",
    ),
    "the golden slice is judged by Recall@10 alone": (
        "of_golden = _bootstrap({name: differences[name][golden] for name in DECISIVE}, gate)",
        "of_golden = _bootstrap({name: differences[name][golden] for name in DECISIVE[:1]}, gate)",
    ),
    "the golden slice is all queries": ("differences[name][golden] for name", "differences[name] for name"),
    "other metrics may get worse": ("if name not in DECISIVE and not delta.high >= 0:", "if False:"),
    "other metrics may not fall by chance": (
        "if name not in DECISIVE and not delta.high >= 0:",
        "if name not in DECISIVE and not delta.value >= 0:",
    ),
    "the detectable gain forgets the power": (
        "return normal.inv_cdf(confidence) + normal.inv_cdf(POWER)",
        "return normal.inv_cdf(confidence)",
    ),
    "the needed queries are those of the easier metric": (
        "return max(counts) if len(counts) == len(needed) else None",
        "return min(counts) if len(counts) == len(needed) else None",
    ),
    "a loss needs queries too": ("return max(counts) if len(counts) == len(needed) else None", "return max(counts)"),
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
