"""Exact ranking beside the bare matrix product, and beside the library's evaluator, on the same vectors.

`python -m tests.benchmarks.bench_ranking [--quick] [--json FILE]`. The ways take turns, so that a busy machine slows
all of them. The goal is 1.3 times the bare product, which writes every score to memory and looks at none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.ranking import metrics, relevant_ranks, summary, truncate

GOAL = 1.3
REPETITIONS = 9


@dataclass(frozen=True)
class Result:
    """One way of scoring: medians over the repetitions, fastest and slowest, and the ratio to the bare product."""

    way: str
    seconds: float
    fastest: float
    slowest: float
    cpu_seconds: float
    ratio: float


def make_case(queries: int, documents: int, dim: int) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Unit vectors; each query lies near one document, so that 7 in 10 are found among the first ten.

    Returns queries (n_q, d), documents (n_d, d), and each query's one relevant document.
    """
    rng = np.random.default_rng(0)
    right = rng.normal(size=(documents, dim)).astype(np.float32)
    relevant = rng.integers(0, documents, size=queries)
    left = 0.2 * right[relevant] + rng.normal(size=(queries, dim)).astype(np.float32)
    return truncate(left, dim), truncate(right, dim), [[int(index)] for index in relevant]


def library(queries: np.ndarray, documents: np.ndarray, relevant: list[list[int]]) -> Callable[[], dict[str, float]]:
    """The library's evaluator on vectors that are encoded already; returns its means under our names."""
    import torch
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import cos_sim

    evaluator = InformationRetrievalEvaluator(
        {f"q{i}": "" for i in range(len(queries))},
        {f"d{i}": "" for i in range(len(documents))},
        {f"q{i}": {f"d{index}" for index in wanted} for i, wanted in enumerate(relevant)},
        precision_recall_at_k=[1, 5, 10, 100],
        score_functions={"cosine": cos_sim},
    )
    vectors = {"query": torch.from_numpy(queries), "document": torch.from_numpy(documents)}

    def encoded(*_: object, encode_fn_name: str, **__: object) -> torch.Tensor:
        return vectors[encode_fn_name]

    evaluator.embed_inputs = encoded  # type: ignore[method-assign, assignment] # nothing is encoded: ranking alone

    def run() -> dict[str, float]:
        found: Any = evaluator.compute_all_metrics(None)["cosine"]
        return {"recall_at_10": found["recall@k"][10], "ndcg_at_10": found["ndcg@k"][10]}

    return run


def measure(ways: dict[str, Callable[[], object]], repetitions: int) -> list[Result]:
    """Run every way once unmeasured, then all of them in turn, so often."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repetitions + 1):
        for way, run in ways.items():
            wall, process = time.perf_counter(), time.process_time()
            run()
            if turn:
                seconds[way].append(time.perf_counter() - wall)
                cpu[way].append(time.process_time() - process)
    bare = statistics.median(next(iter(seconds.values())))
    return [
        Result(
            way,
            statistics.median(seconds[way]),
            min(seconds[way]),
            max(seconds[way]),
            statistics.median(cpu[way]),
            statistics.median(seconds[way]) / bare,
        )
        for way in ways
    ]


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure, print the table, and write it as JSON where asked."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="500 queries, 5,000 documents, 3 repetitions")
    parser.add_argument("--dim", type=int, default=384, help="dimension of the vectors")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args(argv)
    counts = (500, 5_000) if arguments.quick else (2_000, 20_000)
    queries, documents, relevant = make_case(*counts, arguments.dim)
    left, right = torch.from_numpy(queries), torch.from_numpy(documents)
    room = torch.empty(counts)

    ways: dict[str, Callable[[], object]] = {
        "bare product": lambda: left @ right.T,
        "bare product into memory that is there": lambda: torch.mm(left, right.T, out=room),
        "ranks": lambda: relevant_ranks(queries, documents, relevant),
        "ranks and metrics": lambda: summary(metrics(relevant_ranks(queries, documents, relevant))),
        "the library's evaluator": library(queries, documents, relevant),
    }
    ours, theirs = ways["ranks and metrics"](), ways["the library's evaluator"]()
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    for name, value in theirs.items():
        assert abs(ours[name] - value) < 1e-9, f"{name}: {ours[name]} beside the library's {value}"

    results = measure(ways, 3 if arguments.quick else REPETITIONS)
    print(
        f"{counts[0]:,} queries, {counts[1]:,} documents, {arguments.dim} dimensions, {torch.get_num_threads()} threads"
    )
    print(f"Recall@10 {theirs['recall_at_10']:.4f} and NDCG@10 {theirs['ndcg_at_10']:.4f} from both\n")
    print(f"{'way':40}{'median s':>10}{'fastest':>10}{'slowest':>10}{'CPU s':>10}{'ratio':>8}")
    for r in results:
        print(f"{r.way:40}{r.seconds:10.3f}{r.fastest:10.3f}{r.slowest:10.3f}{r.cpu_seconds:10.3f}{r.ratio:8.2f}")
    print(f"\ngoal: ranks at most {GOAL} times the bare product; measured {results[2].ratio:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2), encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
