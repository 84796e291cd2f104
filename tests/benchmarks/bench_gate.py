"""How often the gate promotes, over simulated nights drawn from per-query results of real models.

`python -m tests.benchmarks.bench_gate [--quick] [--results per_query.parquet ...] [--json FILE]`

Without `--results` the real models are the bundled one fine-tuned twice with Ratchet's defaults on the demonstration's
data, on a quarter of it (production) and on half of it with another seed (tonight), scored on operations that neither
has seen. `--results` takes the `per_query.parquet` of runs instead. Beside them, values made up to differ as those of
models do that were fine-tuned on 2,000 pairs.

A night draws test queries from the results and lets the gate decide. For nights without a true difference each query
comes with its two models in either order, equally often: then neither is better, and all else is as it was. For
nights with a true gain, the same population is weighted by exp(a * difference in Recall@10 + b * difference in MRR),
with a and b such that both means are the gain (exponential tilting: the least change that has these means).
The goals: at most 1% promotions without a difference, at least 95% with 3 points at 1,000 test queries.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tasks.config import Gate
from tasks.gate import DECISIVE, Scores, decide

NIGHTS, QUICK_NIGHTS = 1_000, 50
QUERIES = (50, 200, 500, 1_000, 2_000)
GAINS = (0.0, 0.03)
GOAL_FALSE, GOAL_TRUE = 0.01, 0.95


@dataclass(frozen=True)
class Result:
    """What a number of nights came to; `deviation` is that of the paired differences in Recall@10 and MRR."""

    source: str
    queries: int
    gain: float
    nights: int
    promoted: int
    regressed: int
    deviation: tuple[float, float]
    seconds: float


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
    part = np.random.default_rng(0).integers(0, 4, len(operations))[relevant]  # an operation is in one part only
    test = np.flatnonzero(part >= 2)

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
        production = scored("production", fine_tuned(np.flatnonzero(part == 0), 1, Path(root) / "production"))
        tonight = scored("tonight", fine_tuned(np.flatnonzero(part <= 1), 2, Path(root) / "tonight"))
    yield "tonight, production", (tonight, production)
    yield "production, base", (production, base)


def simulate(source: str, population: Population, queries: int, gain: float, nights: int, rule: Gate) -> Result:
    """The verdicts of so many nights, each with its own queries and its own resamples."""
    start = time.perf_counter()
    verdicts = [population.night(queries, seed, rule.model_copy(update={"seed": seed})) for seed in range(nights)]
    return Result(
        source,
        queries,
        gain,
        nights,
        verdicts.count("promoted"),
        verdicts.count("regressed"),
        population.deviation(),
        time.perf_counter() - start,
    )


def resampling_seconds(queries: int = 5_000) -> float:
    """Seconds of one decision on 5,000 queries with 10,000 resamples, the fastest of three."""
    sides = Population.of(*made_up(), 0.0)
    seconds = []
    for seed in range(3):
        start = time.perf_counter()
        sides.night(queries, seed, Gate())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Simulate, print the tables, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_NIGHTS} nights, made-up results")
    parser.add_argument("--results", type=Path, nargs="+", help="per_query.parquet of runs, in place of the models")
    parser.add_argument("--resamples", type=int, default=2_000, help="a night has 10,000; fewer say the same sooner")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args(argv)
    nights = QUICK_NIGHTS if arguments.quick else NIGHTS
    rule = Gate(resamples=arguments.resamples)

    print(f"one decision on 5,000 queries with 10,000 resamples: {resampling_seconds():.2f} s (goal: 1 s)")
    sources = {"made up": made_up()}
    if arguments.results:
        sources |= {str(path): from_run(path) for path in arguments.results}
    elif not arguments.quick:
        sources |= dict(from_models())

    results = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(simulate, source, Population.of(*sides, gain), queries, gain, nights, rule)
            for source, sides in sources.items()
            for gain in GAINS
            for queries in QUERIES
        ]
        print(f"\n{'results of':24}{'deviations':>14}{'true gain':>11}{'queries':>9}{'promoted':>10}{'regressed':>11}")
        for job in jobs:
            r = job.result()
            results.append(r)
            deviations = f"{r.deviation[0]:.3f} {r.deviation[1]:.3f}"
            print(
                f"{Path(r.source).name:24}{deviations:>14}{100 * r.gain:>9.0f} p{r.queries:>9,}"
                f"{r.promoted / r.nights:>10.1%}{r.regressed / r.nights:>11.1%}",
                flush=True,
            )
    false = max(r.promoted / r.nights for r in results if r.gain == 0)
    print(f"\n{nights:,} nights each, {rule.resamples:,} resamples")
    print(f"promoted without a difference: at most {false:.1%} (goal: {GOAL_FALSE:.0%})")
    for r in results:
        if r.gain and r.queries == 1_000:
            rate = f"{r.promoted / r.nights:.1%} (goal: {GOAL_TRUE:.0%})"
            print(f"promoted with a true gain of 3 points at 1,000 queries, {Path(r.source).name}: {rate}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2), encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
