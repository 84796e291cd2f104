"""How often the gate promotes, over simulated nights drawn from per-query results of real models.

`python -m tests.benchmarks.bench_gate [--quick] [--results per_query.parquet ...] [--json FILE]`

Without `--results` the real models are the bundled one fine-tuned twice with Ratchet's defaults on the demonstration's
data, on half of it (production) and on a quarter more with another seed (tonight, as after a large delivery),
scored on the operations that neither has seen. `--results` takes the `per_query.parquet` of runs instead. Beside
them, values made up to differ as those of models do that were fine-tuned on 2,000 pairs.

A night draws test queries from the results and lets the gate decide. For nights without a true difference each query
comes with its two models in either order, equally often: then neither is better, and all else is as it was. For
nights with a true gain, the same population is weighted by exp(a * difference in Recall@10 + b * difference in MRR),
with a and b such that both means are the gain (exponential tilting: the least change that has these means).
The goals: at most 1% promotions without a difference, at least 95% with 3 points at 1,000 test queries.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.config import DECISIVE, Gate
from tasks.gate import Scores, decide
from tests.benchmarks.report import Result, arguments, seconds, show, summarise

NIGHTS, QUICK_NIGHTS = 1_000, 50
QUERIES = (50, 200, 500, 1_000, 2_000)
GAINS = (0.0, 0.03)
GOAL_FALSE, GOAL_TRUE, GOAL_SECONDS = "≤ 1", "≥ 95", "≤ 1"
"""Of promotions in per cent: without a difference; with one, at `GOAL_QUERIES`. Of seconds for one decision."""
GOAL_QUERIES = 1_000


@dataclass(frozen=True)
class Nights:
    """What a number of nights came to; `deviation` is that of the paired differences in Recall@10 and MRR."""

    source: str
    queries: int
    gain: float
    nights: int
    promoted: int
    regressed: int
    deviation: tuple[float, float]


@dataclass(frozen=True)
class Population:
    """Queries to draw from: (n, 2) values of each side in Recall@10 and MRR, and the chance of each to be drawn."""

    candidate: np.ndarray
    production: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, candidate: np.ndarray, production: np.ndarray, gain: float) -> Population:
        """Both orders of each query, weighted so that the candidate's true gain is `gain` in both metrics."""
        both = np.concatenate([candidate, production]), np.concatenate([production, candidate])
        difference = both[0] - both[1]
        tilt = np.zeros(2)
        for _ in range(50):  # Newton's method on the means, which are the gradient of a convex function
            weights = np.exp(difference @ tilt)
            weights /= weights.sum()
            mean = weights @ difference
            tilt += np.linalg.solve((weights[:, None] * difference).T @ difference - np.outer(mean, mean), gain - mean)
        if not np.allclose(mean, gain, atol=1e-9):
            raise ValueError(f"these results cannot be weighted to a gain of {gain}")
        return cls(*both, weights)

    def deviation(self) -> tuple[float, float]:
        """Standard deviation of the paired differences."""
        difference = self.candidate - self.production
        variance = self.weights @ difference**2 - (self.weights @ difference) ** 2
        recall, mrr = np.sqrt(variance)
        return float(recall), float(mrr)

    def night(self, queries: int, seed: int, rule: Gate) -> str:
        """The verdict on so many queries drawn at random."""
        drawn = np.random.default_rng(seed).choice(len(self.weights), size=queries, p=self.weights)
        names = tuple(str(i) for i in range(queries))
        sides = (
            Scores(model, names, {name: values[drawn, i] for i, name in enumerate(DECISIVE)})
            for model, values in (("candidate", self.candidate), ("production", self.production))
        )
        return decide(*sides, rule).verdict


def made_up(queries: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Values that differ as those measured between models fine-tuned on 2,000 pairs: Recall@10 by .19, MRR by .20.

    One relevant document a query: Recall@10 changes where it enters or leaves the first ten, MRR with its rank.
    """
    rng = np.random.default_rng(0)
    strength = rng.normal(3.0, 2.0, queries)  # how far the best other documents leave the relevant one behind
    ranks = [np.ceil(10 * np.exp(-strength - rng.normal(0, 0.53, queries))) for _ in range(2)]
    columns = [np.stack([(rank <= 10).astype(np.float64), 1 / rank], axis=1) for rank in ranks]
    return columns[0], columns[1]


def from_run(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' values from a run's `per_query.parquet`."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    candidate, production = (
        np.stack([table[f"{side}_{name}"].to_numpy() for name in DECISIVE], axis=1)
        for side in ("candidate", "production")
    )
    return candidate, production


def from_models() -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Results of real models on the demonstration's data: two fine-tuned ones, and one of them beside its base."""
    from tempfile import TemporaryDirectory

    import pyarrow as pa

    from deployments.demo import build
    from tasks.config import BUNDLED_MODEL, Training
    from tasks.encoding import encode, load, resolve_model
    from tasks.ranking import metrics, relevant_ranks
    from tasks.training import train

    data = build()
    pairs = [json.loads(line) for line in data.pairs.splitlines()]
    others = [json.loads(line)["text"] for line in data.corpus.splitlines()]
    operations = list(dict.fromkeys(pair["document"] for pair in pairs))
    documents = operations + others
    place = {text: i for i, text in enumerate(documents)}
    relevant = np.array([place[pair["document"]] for pair in pairs])
    part = np.random.default_rng(0).integers(0, 8, len(operations))[relevant]  # an operation is in one part only
    test = np.flatnonzero(part >= 5)

    def fine_tuned(rows: np.ndarray, seed: int, folder: Path) -> Path:
        table = pa.table(
            {
                "query": pa.array([pairs[i]["query"] for i in rows], pa.string()),
                "document": pa.array([pairs[i]["document"] for i in rows], pa.string()),
                "negatives": pa.array([[]] * len(rows), pa.list_(pa.string())),
                "score": pa.nulls(len(rows), pa.float64()),
            }
        )
        train(table, None, [], Training(seed=seed), folder)
        return folder

    def scored(name: str, folder: Path) -> np.ndarray:
        model = load(folder)
        queries = encode(model, [pairs[i]["query"] for i in test], "query")
        values = metrics(
            relevant_ranks(queries, encode(model, documents, "document"), [[int(relevant[i])] for i in test])
        )
        found = np.stack([values[metric] for metric in DECISIVE], axis=1)
        print(f"{name}: Recall@10 {found[:, 0].mean():.4f}, MRR {found[:, 1].mean():.4f} on {len(test):,} queries")
        return found

    with TemporaryDirectory() as root:
        base = scored("base", resolve_model(BUNDLED_MODEL))
        production = scored("production", fine_tuned(np.flatnonzero(part <= 3), 1, Path(root) / "production"))
        tonight = scored("tonight", fine_tuned(np.flatnonzero(part <= 4), 2, Path(root) / "tonight"))
    yield "tonight, production", (tonight, production)
    yield "production, base", (production, base)


def simulate(source: str, population: Population, queries: int, gain: float, nights: int, rule: Gate) -> Nights:
    """The verdicts of so many nights, each with its own queries and its own resamples."""
    verdicts = [population.night(queries, seed, rule.model_copy(update={"seed": seed})) for seed in range(nights)]
    counts = verdicts.count("promoted"), verdicts.count("regressed")
    return Nights(source, queries, gain, nights, *counts, population.deviation())


def resampling(queries: int = 5_000) -> list[Result]:
    """Seconds of one decision on 5,000 queries with 10,000 resamples."""
    sides = Population.of(*made_up(), 0.0)
    taken = [seconds(lambda seed=seed: sides.night(queries, seed, Gate())) for seed in range(3)]  # type: ignore[misc]
    what = f"one decision on {queries:,} queries with {Gate().resamples:,} resamples"
    return summarise(what, {"Ratchet": taken}, unit="s", goals={"Ratchet": GOAL_SECONDS}, compared=False)


def shares(found: Sequence[Nights]) -> list[Result]:
    """Promoted and regressed nights in per cent, by source, true gain and number of test queries."""
    results = []
    for source, gain in dict.fromkeys((one.source, one.gain) for one in found):
        rows = [one for one in found if (one.source, one.gain) == (source, gain)]
        true = f"a true gain of {100 * gain:.0f} points" if gain else "no true difference"
        for verdict in ("promoted", "regressed"):
            for one in rows:
                goal = ""
                if verdict == "promoted":
                    goal = GOAL_FALSE if not gain else GOAL_TRUE if one.queries == GOAL_QUERIES else ""
                share = 100 * getattr(one, verdict) / one.nights
                what, way = f"{verdict} with {true}: {Path(source).name}", f"{one.queries:,} queries"
                results.append(Result(what, way, "%", share, share, share, one.nights, goal=goal))
    return results


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Simulate, print the table, and write it as JSON where asked."""
    parser = arguments(__doc__)
    parser.add_argument("--results", type=Path, nargs="+", help="per_query.parquet of runs, in place of the models")
    parser.add_argument("--resamples", type=int, default=2_000, help="a night has 10,000; fewer say the same sooner")
    chosen = parser.parse_args(argv)
    nights = QUICK_NIGHTS if chosen.quick else NIGHTS
    rule = Gate(resamples=chosen.resamples)

    results = resampling()
    sources = {"made up": made_up()}
    if chosen.results:
        sources |= {str(path): from_run(path) for path in chosen.results}
    elif not chosen.quick:
        sources |= dict(from_models())
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(simulate, source, Population.of(*sides, gain), queries, gain, nights, rule)
            for source, sides in sources.items()
            for gain in GAINS
            for queries in QUERIES
        ]
        found = [job.result() for job in jobs]
    results += shares(found)
    notes = [f"{nights:,} nights for each number of queries, {rule.resamples:,} resamples a night."]
    for one in found:
        if not one.gain and one.queries == QUERIES[0]:
            recall, mrr = one.deviation
            notes.append(
                f"{Path(one.source).name}: paired differences deviate by {recall:.3f} in Recall@10, {mrr:.3f} in MRR."
            )
    show("gate", results, chosen, packages=("numpy", "sentence-transformers"), notes=notes)
    return results


if __name__ == "__main__":
    main()
