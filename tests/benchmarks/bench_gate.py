"""How often the gate promotes, over simulated nights drawn from per-query results of real models.

`python -m tests.benchmarks.bench_gate [--quick] [--results per_query.parquet ...] [--json FILE]`

Without `--results` the real models are the bundled one and two adapters of it, each fitted to one half of the
demonstration's training data, scored on operations that neither has seen: two nights of one recipe. `--results` takes
the `per_query.parquet` of runs instead. Beside them, differences made up to vary as those of fully fine-tuned models.

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
    """Differences that vary as those measured between fully fine-tuned models: Recall@10 by .19, MRR by .20.

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
    """Results of real models on the demonstration's data: two adapters beside each other, and one beside the base."""
    import torch

    from deployments.demo import build
    from tasks.config import BUNDLED_MODEL
    from tasks.encoding import encode, load, resolve_model
    from tasks.ranking import metrics, relevant_ranks

    data = build()
    pairs = [json.loads(line) for line in data.pairs.splitlines()]
    texts = [pair["document"] for pair in pairs] + [json.loads(line)["text"] for line in data.corpus.splitlines()]
    documents = list(dict.fromkeys(texts))
    place = {text: i for i, text in enumerate(documents)}
    relevant = np.array([place[pair["document"]] for pair in pairs])
    model = load(resolve_model(BUNDLED_MODEL))
    asked, searched = encode(model, [pair["query"] for pair in pairs], "query"), encode(model, documents, "document")

    part = np.random.default_rng(0).integers(0, 4, len(documents))[relevant]  # an operation is in one part only

    def adapter(rows: np.ndarray) -> np.ndarray:
        """A linear map of both sides' vectors, fitted so that queries find their documents among all of the batch."""
        torch.manual_seed(0)
        left, right = torch.from_numpy(asked[rows]), torch.from_numpy(searched[relevant[rows]])
        same = torch.from_numpy(relevant[rows][:, None] == relevant[rows][None, :])
        weight = torch.eye(left.shape[1], requires_grad=True)
        optimiser = torch.optim.Adam([weight], lr=1e-3)
        for _ in range(100):
            q, d = (torch.nn.functional.normalize(side @ weight) for side in (left, right))
            scores = (20 * q @ d.T).masked_fill(same & ~torch.eye(len(rows), dtype=torch.bool), -torch.inf)
            loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(rows)))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch's
            optimiser.step()
        return weight.detach().numpy()

    def scored(weight: np.ndarray) -> np.ndarray:
        test = np.flatnonzero(part >= 2)
        ranks = relevant_ranks(asked[test] @ weight, searched @ weight, [[int(i)] for i in relevant[test]])
        values = metrics(ranks)
        return np.stack([values[name] for name in DECISIVE], axis=1)

    first, second = (scored(adapter(np.flatnonzero(part == i))) for i in (0, 1))
    base = scored(np.eye(asked.shape[1], dtype=np.float32))
    for name, values in (("base", base), ("first adapter", first), ("second adapter", second)):
        print(f"{name}: Recall@10 {values[:, 0].mean():.4f}, MRR {values[:, 1].mean():.4f} on {len(values)} queries")
    yield "two adapters", (second, first)
    yield "adapter and base", (first, base)


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
    true = min(r.promoted / r.nights for r in results if r.gain == GAINS[1] and r.queries == 1_000)
    print(f"\n{nights:,} nights each, {rule.resamples:,} resamples")
    print(f"promoted without a difference: at most {false:.1%} (goal: {GOAL_FALSE:.0%})")
    print(f"promoted with a true gain of 3 points at 1,000 queries: at least {true:.1%} (goal: {GOAL_TRUE:.0%})")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2), encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
