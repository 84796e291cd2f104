"""Exact ranking beside the bare matrix product, and beside the library's evaluator, on the same vectors.

`python -m tests.benchmarks.bench_ranking [--quick] [--json FILE]`. The ways take turns, so that a busy machine slows
all of them. The goal is 1.3 times the bare product, which writes every score to memory and looks at none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tasks.ranking import metrics, relevant_ranks, summary, truncate
from tests.benchmarks.report import Clock, Result, arguments, show, summarise

GOAL = "≤ 1.3 of the first"
REPETITIONS = 9


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


def measure(what: str, ways: dict[str, Callable[[], object]], repetitions: int, *, judged: str) -> list[Result]:
    """Run every way once unmeasured, then all of them in turn, so often; the goal is said of the way `judged`."""
    wall: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repetitions + 1):
        for way, run in ways.items():
            clock = Clock()
            run()
            if turn:
                spent = clock.read()
                wall[way].append(spent[0])
                cpu[way].append(spent[1])
    goals = {judged: GOAL}
    return [
        *summarise(what, wall, unit="s", goals=goals),
        *summarise(f"{what}: CPU", cpu, unit="CPU s", goals=goals),
    ]


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure, print the table, and write it as JSON where asked."""
    import torch

    parser = arguments(__doc__)
    parser.add_argument("--dim", type=int, default=384, help="dimension of the vectors")
    chosen = parser.parse_args(argv)
    counts = (500, 5_000) if chosen.quick else (2_000, 20_000)
    queries, documents, relevant = make_case(*counts, chosen.dim)
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

    what = f"rank {counts[1]:,} documents for {counts[0]:,} queries"
    results = measure(what, ways, 3 if chosen.quick else REPETITIONS, judged="ranks")
    notes = [
        f"{chosen.dim} dimensions, {torch.get_num_threads()} threads.",
        f"Recall@10 {theirs['recall_at_10']:.4f} and NDCG@10 {theirs['ndcg_at_10']:.4f} from both.",
    ]
    show("ranking", results, chosen, packages=("torch", "numpy", "sentence-transformers"), notes=notes)
    return results


if __name__ == "__main__":
    main()
