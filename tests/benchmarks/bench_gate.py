"""How often the gate promotes and regresses, over simulated nights drawn from per-query results of real models.

`python -m tests.benchmarks.bench_gate [--quick] [--results FILE] [--json FILE]`

The results are `gate_results.parquet`, which `tests.benchmarks.gate_results` makes and describes: three sets of real
labels. A night draws test queries from one of them and lets the gate decide, the candidate being what was fine-tuned
"tonight" on a tenth or a quarter more, and production what was fine-tuned before, or the base model. Two structures:

- query-wise: every test query is drawn by itself (requests to shell commands, documentation of operations);
- clustered: whole documents are drawn with all of their queries, as labels arrive topic by topic (services).

For a true difference of so many points the same population is weighted by exp(a * difference in Recall@10 + b *
difference in MRR), with a and b such that both means are that difference (exponential tilting: the least change that
has these means). So the order of the two models, and with it the shape of the differences, stays as it was observed.

A year is 365 nights on one persisting test set of 1,000 queries, on which production's luck persists as well: for each
query production has the score of one of several models that differ in their seed alone, and each night's candidate that
of another one, drawn anew. There is no true difference, so every night that regresses is a false alarm.

A night on which plain t-intervals show nothing is held without more ado: the gate's intervals are at least as wide.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.special import stdtrit

from tasks.config import DECISIVE, Gate
from tasks.gate import Scores, decide
from tests.benchmarks import control_variate
from tests.benchmarks.gate_results import RESULTS
from tests.benchmarks.report import Clock, Result, arguments, show, summarise

NIGHTS, GOAL_NIGHTS, FALSE_NIGHTS, QUICK_NIGHTS = 300, 500, 1_000, 10
"""Nights with a true difference, those of a goal, and those without a difference, where what is counted is rare."""

YEARS, QUICK_YEARS = 50, 1
QUERIES = (50, 200, 500, 1_000, 2_000)
GAINS = (0.0, 0.01, 0.03, -0.01, -0.03)
GOAL_QUERIES = 1_000
GOAL_FALSE, GOAL_YEAR, GOAL_SECONDS = "≤ 1", "≤ 0.1", "≤ 1"
"""Promotions without a true difference in per cent, false `regressed` nights a year, seconds for one decision."""


@dataclass(frozen=True)
class Source:
    """Two models on one set of labels; `goal` is of promotions at +3 points and `GOAL_QUERIES` queries."""

    name: str
    task: str
    candidate: str
    production: str
    clustered: bool = False
    goal: str = ""


SOURCES = (
    Source("commands, fine-tuned twice", "commands", "tonight", "production", goal="≥ 85"),
    Source("operations near the ceiling, fine-tuned twice", "operations", "tonight", "production", goal="≥ 95"),
    Source("services by topic, fine-tuned twice", "services", "tonight", "production", clustered=True),
    Source("commands, fine-tuned beside base", "commands", "production", "base"),
    Source("services by topic, fine-tuned beside base", "services", "production", "base", clustered=True),
)


@dataclass(frozen=True)
class Population:
    """What is drawn: units of one or more queries, with values of shape (n, 2) in Recall@10 and MRR on both sides."""

    candidate: np.ndarray
    production: np.ndarray
    unit: np.ndarray
    """Which unit each query belongs to, from 0."""
    weights: np.ndarray
    """The chance of each unit to be drawn."""

    @classmethod
    def of(cls, candidate: np.ndarray, production: np.ndarray, unit: np.ndarray, gain: float) -> Population:
        """Units weighted so that the candidate's true gain is `gain` in both metrics, the two in their order."""
        from scipy.optimize import minimize
        from scipy.special import logsumexp, softmax

        _, unit = np.unique(unit, return_inverse=True)
        excess = candidate - production - gain
        sums = np.stack([np.bincount(unit, excess[:, i]) for i in range(2)], axis=1)  # (units, 2): to have mean 0
        sums /= sums.std(axis=0)
        # the mean is the gradient of a convex function of the tilt, and 0 where that is least
        found = minimize(
            lambda tilt: (logsumexp(sums @ tilt), softmax(sums @ tilt) @ sums),
            np.zeros(2),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-50, 50)] * 2,
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        weights = softmax(sums @ found.x)
        if not np.allclose(weights @ sums, 0, atol=1e-4):
            raise ValueError(f"these results cannot be weighted to a gain of {gain}")
        return cls(candidate, production, unit, weights)

    def deviation(self) -> np.ndarray:
        """Standard deviation of the paired differences, of shape (2,)."""
        weights = self.weights[self.unit] / self.weights[self.unit].sum()
        difference = self.candidate - self.production
        return np.sqrt(weights @ difference**2 - (weights @ difference) ** 2)

    @cached_property
    def members(self) -> list[np.ndarray]:
        """Places of each unit's queries."""
        return np.split(np.argsort(self.unit, kind="stable"), np.cumsum(np.bincount(self.unit))[:-1])

    def draw(self, queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Places of so many queries, and which of them were drawn as one unit."""
        drawn = [self.members[unit] for unit in rng.choice(len(self.members), size=queries, p=self.weights)]
        sizes = np.array([len(unit) for unit in drawn])
        cluster = np.repeat(np.arange(len(drawn)), sizes)[:queries]
        return np.concatenate(drawn)[:queries], cluster


def suspicious(difference: np.ndarray, gate: Gate) -> bool:
    """Whether plain t-intervals leave it open that a night is not held; `difference` is of shape (n, 2)."""
    queries = len(difference)
    mean, error = difference.mean(axis=0), difference.std(axis=0, ddof=1) / np.sqrt(queries)
    better = mean - stdtrit(queries - 1, gate.confidence) * error
    worse = mean + stdtrit(queries - 1, 1 - (1 - gate.confidence) / 2) * error
    return bool((better > 0).all() or (worse < -gate.max_regression).any())


def verdict(candidate: np.ndarray, production: np.ndarray, clusters: np.ndarray, gate: Gate) -> str:
    """What the gate says of values of shape (n, 2)."""
    if not suspicious(candidate - production, gate):
        return "held"
    names = tuple(map(str, range(len(clusters))))
    sides = (
        Scores(model, names, {name: values[:, i] for i, name in enumerate(DECISIVE)}, clusters=clusters)
        for model, values in (("candidate", candidate), ("production", production))
    )
    return decide(*sides, gate).verdict


class Results:
    """The file of results: values by task and model."""

    def __init__(self, path: Path) -> None:
        self._table = pq.read_table(path).to_pandas()

    def has(self, task: str) -> bool:
        """Whether the file has this task."""
        return bool((self._table.task == task).any())

    def values(self, task: str, model: str) -> np.ndarray:
        """Recall@10 and MRR of each query, of shape (n, 2)."""
        rows = self._table[(self._table.task == task) & (self._table.model == model)]
        return rows[list(DECISIVE)].to_numpy(np.float64)

    def documents(self, task: str) -> np.ndarray:
        """The document of each query, of shape (n,)."""
        return self._table[(self._table.task == task) & (self._table.model == "base")].document.to_numpy()

    def population(self, source: Source, gain: float) -> Population | None:
        """What a source's nights are drawn from; None where its models differ too much to be weighted so."""
        candidate, production = (self.values(source.task, model) for model in (source.candidate, source.production))
        unit = self.documents(source.task) if source.clustered else np.arange(len(candidate))
        try:
            return Population.of(candidate, production, unit, gain)
        except ValueError:
            return None


def simulate(population: Population, queries: int, nights: int, gate: Gate) -> tuple[int, int]:
    """How many of so many nights promote, and regress."""
    verdicts = []
    for seed in range(nights):
        places, clusters = population.draw(queries, np.random.default_rng([queries, seed]))
        sides = population.candidate[places], population.production[places]
        verdicts.append(verdict(*sides, clusters, gate.model_copy(update={"seed": seed})))
    return verdicts.count("promoted"), verdicts.count("regressed")


def year(models: np.ndarray, unit: np.ndarray, seed: int, gate: Gate) -> tuple[int, int]:
    """False alarms of a year: nights that regress, and nights below zero with 99% confidence on either metric.

    `models` is of shape (models, n, 2); queries of one unit are drawn together.
    """
    rng = np.random.default_rng([7, seed])
    _, unit = np.unique(unit, return_inverse=True)
    units = int(unit.max()) + 1
    places, clusters = Population(models[0], models[0], unit, np.full(units, 1 / units)).draw(GOAL_QUERIES, rng)
    serving = rng.integers(0, len(models), len(places))
    production = models[serving, places]
    regressed = below = 0
    for night in range(365):
        other = (serving + rng.integers(1, len(models), len(places))) % len(models)
        candidate = models[other, places]
        difference = candidate - production
        error = difference.std(axis=0, ddof=1) / np.sqrt(len(places))
        below += bool((difference.mean(axis=0) < -stdtrit(len(places) - 1, gate.confidence) * error).any())
        regressed += verdict(candidate, production, clusters, gate.model_copy(update={"seed": night})) == "regressed"
    return regressed, below


def resampling(queries: int = 5_000) -> list[Result]:
    """CPU seconds of one decision on 5,000 queries with 10,000 resamples, ten slices and clusters."""
    rng = np.random.default_rng(0)
    values = rng.random((queries, 2))
    slices = {f"slice {i}": rng.random(queries) < 0.1 for i in range(8)}
    slices |= {"golden": rng.random(queries) < 0.1, "new documents": rng.random(queries) < 0.2}
    names = tuple(map(str, range(queries)))
    sides = [
        Scores(
            model, names, {name: side[:, i] for i, name in enumerate(DECISIVE)}, slices, rng.integers(0, 500, queries)
        )
        for model, side in (
            ("candidate", np.clip(values + rng.normal(0.02, 0.1, values.shape), 0, 1)),
            ("production", values),
        )
    ]
    sides[1] = Scores(sides[1].model, names, sides[1].per_query, slices, sides[0].clusters)
    decide(*sides, Gate())
    taken = []
    for _ in range(3):
        clock = Clock()
        decide(*sides, Gate())
        taken.append(clock.read()[1])
    what = f"one decision on {queries:,} queries with {Gate().resamples:,} resamples"
    return summarise(what, {"Ratchet": taken}, unit="CPU s", goals={"Ratchet": GOAL_SECONDS}, compared=False)


def shares(
    found: dict[tuple[Source, float, int], tuple[int, int]], nights: Callable[[float, int], int]
) -> list[Result]:
    """Promoted and regressed nights in per cent, by source, true gain and number of test queries."""
    results = []
    for (source, gain, queries), counts in found.items():
        true = f"{100 * gain:+.0f} point{'s' * (abs(gain) > 0.01)}" if gain else "no true difference"
        for what, count in zip(("promoted", "regressed"), counts, strict=True):
            goal = ""
            if what == "promoted":
                goal = GOAL_FALSE if gain <= 0 else source.goal if (gain, queries) == (0.03, GOAL_QUERIES) else ""
            share = 100 * count / nights(gain, queries)
            results.append(
                Result(
                    f"{what}, {true}: {source.name}",
                    f"{queries:,} queries",
                    "%",
                    share,
                    share,
                    share,
                    nights(gain, queries),
                    goal=goal,
                )
            )
    return sorted(results, key=lambda one: one.what)


def years(results: Results, count: int, gate: Gate, run: Callable[..., object]) -> list[Result]:
    """False `regressed` nights a year, beside those of the rule "below zero with 99% confidence"."""
    found = []
    for task, names, clustered in (
        ("commands", ("production", "third", "fourth"), False),
        ("services", ("production", "third"), True),
    ):
        if not results.has(task):
            continue
        models = np.stack([results.values(task, name) for name in names])
        unit = results.documents(task) if clustered else np.arange(models.shape[1])
        alarms = np.array([job.result() for job in [run(year, models, unit, seed, gate) for seed in range(count)]])  # type: ignore[attr-defined]
        for place, (way, goal) in enumerate((("Ratchet", GOAL_YEAR), ("below zero with 99% confidence", ""))):
            nights = np.sort(alarms[:, place])
            mean, most = float(nights.mean()), float(np.quantile(nights, 0.95))
            what = f"false alarms in a year without a difference: {task}"
            found.append(Result(what, way, "nights", mean, float(nights[0]), most, count, goal=goal))
    return found


def controlled(results: Results, nights: Callable[[float, int], int], run: Callable[..., object]) -> list[Result]:
    """Promotions before the first one in per cent, by plain t-intervals, without and with a control variate."""
    populations = {
        (source, gain): population
        for source in SOURCES
        if source.production == "base" and results.has(source.task)
        for gain in (0.0, 0.03)
        if (population := results.population(source, gain)) is not None
    }
    jobs = {
        (source, gain, queries): run(control_variate.promoted, population, queries, nights(gain, queries))
        for (source, gain), population in populations.items()
        for queries in QUERIES[2:4]
    }
    found = []
    for (source, gain, queries), job in jobs.items():
        counts = job.result()  # type: ignore[attr-defined]
        true = "+3 points" if gain else "no true difference"
        what = f"both gains above zero by a t-test, {true}, {queries:,} queries: {source.name}"
        count = nights(gain, queries)
        for way, share in zip(
            ("as they are", "with a control variate"), (100 * n / count for n in counts), strict=True
        ):
            found.append(Result(what, way, "%", share, share, share, count))
    return found


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Simulate, print the table, and write it as JSON where asked."""
    parser = arguments(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="a file like gate_results.parquet")
    parser.add_argument("--resamples", type=int, default=1_000, help="a night has 10,000; fewer say the same sooner")
    chosen = parser.parse_args(argv)
    length = QUICK_YEARS if chosen.quick else YEARS

    def nights(gain: float, queries: int) -> int:
        if chosen.quick:
            return QUICK_NIGHTS
        return FALSE_NIGHTS if not gain else GOAL_NIGHTS if (gain, queries) == (0.03, GOAL_QUERIES) else NIGHTS

    gate, results = Gate(resamples=chosen.resamples), Results(chosen.results)
    timed = resampling()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        populations = {
            (source, gain): results.population(source, gain)
            for source in SOURCES
            if results.has(source.task)
            for gain in GAINS
        }
        jobs = {
            (*key, queries): pool.submit(simulate, population, queries, nights(key[1], queries), gate)
            for key, population in populations.items()
            for queries in QUERIES
            if population is not None
        }
        found = {key: job.result() for key, job in jobs.items()}
        alarms = years(results, length, gate, pool.submit)
        corrected = controlled(results, nights, pool.submit)
    notes = [
        f"{nights(0.01, 50):,} nights for each share, {nights(0.03, GOAL_QUERIES):,} for a goal of promotions, "
        f"{nights(0.0, 50):,} without a true difference, and {length} years; "
        f"{gate.resamples:,} resamples a night."
    ]
    for (source, gain), population in populations.items():
        if population is None:
            notes.append(f"{source.name}: no weights give {100 * gain:+.0f} points.")
        elif not gain:
            recall, mrr = population.deviation()
            notes.append(f"{source.name}: differences deviate by {recall:.3f} in Recall@10 and {mrr:.3f} in MRR.")
    notes.append("Of the years, the highest is the 95th percentile.")
    notes.append(
        "The gate uses no control variate (the base model's scores, whose mean is known from all queries): beside "
        "the base model it would see somewhat more, but there are no clustered labels with a true difference of zero "
        "that could show that it promotes nothing wrongly."
    )
    figures = [*timed, *shares(found, nights), *alarms, *corrected]
    show("gate", figures, chosen, packages=("numpy", "scipy"), notes=notes)
    return figures


if __name__ == "__main__":
    main()
