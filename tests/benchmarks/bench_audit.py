"""How often a night names the upload with shuffled labels, and how often an innocent one.

`python -m tests.benchmarks.bench_audit [--quick] [--json FILE]`

Real labels, and the vectors of all-MiniLM-L6-v2, which are kept in `.cache/` once they are made:

- `AWS examples`: the demonstration's data, a worked example to the documentation of the operation that it calls;
  uploads are random pairs, or *by topic*: one service after the other, so that most uploads have one or two;
- `shell commands`: nl2bash (MIT, github.com/TellinaTool/nl2bash, in BEIR layout), 3,000 pairs, where it is
  there.

A night has several new uploads of one size, and up to 300 earlier pairs. In one of them a share of the labels is
shuffled: each of these queries gets the document of another one. Nights are seeded by their number. What decides is
`tasks.audit.blame`, as in a night; the nights' fine-tuning and verdict take no part.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.audit import blame
from tests.benchmarks.bench_training import BESIDE
from tests.benchmarks.report import Clock, Result, arguments, show

ROOT = Path(__file__).parents[2]
NIGHTS, QUICK_NIGHTS = 100, 3
NAMED, INNOCENT = "≥ 95", "≤ 5"
EARLIER = 300


@dataclass(frozen=True)
class Set:
    """Labelled pairs as vectors, and the topic of each pair."""

    name: str
    queries: np.ndarray
    documents: np.ndarray
    document: np.ndarray
    topics: np.ndarray


@dataclass(frozen=True)
class Case:
    """Nights of one kind."""

    pairs: int
    uploads: int
    share: float
    by_topic: bool = False


def aws() -> Set:
    """The demonstration's pairs, by service."""
    from tests.benchmarks.gate_results import examples

    pairs, _ = examples()
    return _encoded("AWS examples", *(([pair[name] for pair in pairs]) for name in ("query", "document", "slice")))


def commands(folder: Path) -> Set:
    """3,000 pairs of nl2bash."""
    from tests.benchmarks import gate_results

    task = gate_results.commands(folder)
    rows = np.unique(np.concatenate([chosen for chosen, _ in task.models.values()]))
    rows = np.random.default_rng(0).permutation(rows)[:3_000]
    documents = [task.documents[task.relevant[i]] for i in rows]
    return _encoded("shell commands", [task.queries[i] for i in rows], documents, [""] * len(rows))


def _encoded(name: str, queries: list[str], texts: list[str], topics: list[str]) -> Set:
    """Vectors of a set, from the cache where they are there."""
    from tasks.config import BUNDLED_MODEL
    from tasks.encoding import encode, load, resolve_model

    documents, document = np.unique(texts, return_inverse=True)
    path = ROOT / ".cache" / f"audit-{name.replace(' ', '-')}-{len(queries)}.npz"
    if not path.exists():
        model = load(resolve_model(BUNDLED_MODEL))
        path.parent.mkdir(exist_ok=True)
        vectors = {"queries": encode(model, queries, "query"), "documents": encode(model, list(documents), "document")}
        np.savez(path, **vectors)  # type: ignore[arg-type]
    with np.load(path, allow_pickle=False) as found:
        return Set(name, found["queries"], found["documents"], document, np.array(topics))


def night(pairs: Set, case: Case, seed: int) -> tuple[blame.Labels, list[np.ndarray], int]:
    """The labels of one night, the rows of its uploads, and which of these is the bad one."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pairs.queries))
    if case.by_topic:
        place = {topic: number for number, topic in enumerate(rng.permutation(np.unique(pairs.topics)))}
        order = order[np.argsort([place[topic] for topic in pairs.topics[order]], kind="stable")]
    order = order[: case.pairs * case.uploads + EARLIER]
    groups = list(np.arange(case.pairs * case.uploads).reshape(case.uploads, case.pairs))
    bad = int(rng.integers(case.uploads))
    document = pairs.document[order]
    chosen = rng.permutation(groups[bad])[: round(case.share * case.pairs)]
    document[chosen] = document[np.roll(chosen, 1)] if len(chosen) else document[chosen]
    used, own = np.unique(document, return_inverse=True)
    ids = np.arange(len(order))
    answers = np.sort(ids * len(used) + own)
    return blame.Labels(pairs.queries[order], pairs.documents[used], own, ids, answers), groups, bad


def measure(pairs: Set, case: Case, nights: int) -> Iterator[Result]:
    """Nights that name the bad upload, nights that name another one, and the CPU time of one."""
    named = accused = 0
    clock = Clock()
    for seed in range(nights):
        labels, groups, bad = night(pairs, case, seed)
        found = blame.judge(labels, groups, seed)
        named += found[bad].named and case.share > 0
        accused += any(one.named for number, one in enumerate(found) if number != bad or not case.share)
    milliseconds = 1000 * clock.read()[1] / nights
    topic = " by topic" if case.by_topic else ""
    size = f"{case.uploads} uploads of {case.pairs}"
    share = f"{case.share:.0%} shuffled" if case.share else "nothing shuffled"

    def result(what: str, unit: str, figure: float, goal: str = "") -> Result:
        return Result(f"{what}: {pairs.name}{topic}, {share}", size, unit, figure, figure, figure, nights, goal=goal)

    if case.share:
        yield result("nights that name the upload", "%", 100 * named / nights, NAMED)
    yield result("nights that name an innocent upload", "%", 100 * accused / nights, INNOCENT)
    yield result("time of one night", "CPU ms", milliseconds)


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Simulate, print the table, and write it as JSON where asked."""
    parser: argparse.ArgumentParser = arguments(__doc__)
    parser.add_argument("--nl2bash", type=Path, default=BESIDE, help="folder of the nl2bash data, where there is one")
    chosen = parser.parse_args(argv)
    nights = QUICK_NIGHTS if chosen.quick else NIGHTS
    sets = [(aws(), (False, True))]
    if chosen.nl2bash.is_dir() and not chosen.quick:
        sets.append((commands(chosen.nl2bash), (False,)))
    sizes = ((100, 5),) if chosen.quick else ((50, 5), (100, 5), (100, 10))
    results = [
        result
        for pairs, kinds in sets
        for by_topic in kinds
        for share in (0.2, 1.0, 0.0)
        for size, uploads in sizes
        for result in measure(pairs, Case(size, uploads, share, by_topic), nights)
    ]
    results.sort(key=lambda one: one.what)
    notes = [f"{nights} seeded nights each; {len(pairs.queries):,} pairs of {pairs.name}." for pairs, _ in sets]
    notes.append(f"Uploads of fewer than {blame.LEAST} pairs are not judged.")
    show("audit", results, chosen, packages=("numpy", "scipy"), notes=notes)
    return results


if __name__ == "__main__":
    main()
