"""Cost of the data checks: CPU seconds and peak memory, beside plain pandas masks over the same rows.

`python -m tests.benchmarks.bench_checks [--quick] [--json FILE]`. Every measurement is a process of its own, since
peak memory never falls. The masks answer the same questions about rows as the suite, without its report, its
languages and its measures of the night: they are the floor, not an alternative.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.report import Clock, Result, arguments, show, summarise

ROWS, QUICK_ROWS = 1_000_000, 50_000
GOAL_SECONDS, GOAL_MEGABYTES = "≤ 10", "≤ 1,536"
"""For a million rows."""


def make_rows(n: int) -> pa.Table:
    """`n` new pairs: distinct queries of 8 words, documents of 45 words in three rows each, some negatives."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"), dtype=object)
    words = np.array(
        ["".join(letters[rng.integers(0, 26, size)]) for size in rng.integers(2, 10, 20_000)], dtype=object
    )
    documents = np.array([" ".join(words[row]) for row in rng.integers(0, len(words), (n // 3 + 1, 45))], dtype=object)
    queries = [" ".join(row) for row in words[rng.integers(0, len(words), (n, 8))]]
    right = rng.integers(0, len(documents), n)
    wrong = documents[(right + 1) % len(documents)]
    negatives = [[text] if i % 5 == 0 else [] for i, text in enumerate(wrong)]
    return pa.table(
        {
            "query": pa.array(queries, pa.string()),
            "document": pa.array(documents[right], pa.string()),
            "negatives": pa.array(negatives, pa.list_(pa.string())),
            "score": pa.nulls(n, pa.float64()),
            "slice": pa.nulls(n, pa.string()),
            "kind": pa.array(["pair"] * n, pa.string()),
            "object": pa.array([f"pairs/{i // 100_000}.jsonl" for i in range(n)], pa.string()),
            "line": pa.array(np.arange(n) % 100_000 + 1),
            "commit": pa.array(np.arange(n) // (n // 2 + 1) + 1),
        }
    )


def with_suite(rows: pa.Table) -> None:
    """The checks of a night, to the page that people read."""
    from data_checks.data_docs import render
    from data_checks.run import run_checks
    from tasks.config import Checks

    result = run_checks(rows, rejected=10, rule=Checks(), since=1, supported={"en"})
    if result.verdict != "ok":
        raise RuntimeError(f"the rows are sound, yet: {result.reasons}")
    render(result)


def with_masks(rows: pa.Table) -> None:
    """The questions about rows as pandas masks."""
    frame = rows.to_pandas()
    query, document = frame["query"], frame["document"]
    bad = query.isna() | document.isna()
    for texts, longest in ((query, 4_000), (document, 100_000)):
        bad |= (texts.str.strip().str.len() == 0) | (texts.str.len() > longest)
    bad |= (query == document) | (frame["score"] < 0) | (frame["score"] > 1)
    repeated = frame.duplicated(["query", "document"])
    exploded = frame[["query", "document", "negatives"]].explode("negatives").dropna()
    negatives = exploded["negatives"]
    wrong = (negatives.str.strip().str.len() == 0) | (negatives == exploded["document"])
    contradicted = frame.merge(
        exploded[["query", "negatives"]], left_on=["query", "document"], right_on=["query", "negatives"]
    )
    if bad.any() or wrong.any() or repeated.mean() > 0.2 or len(contradicted) > 0.05 * len(frame):
        raise RuntimeError("the rows are sound, yet a mask found something")


WAYS = {"pandas masks": with_masks, "suite": with_suite}


def measure(way: str, file: Path) -> dict[str, float]:
    """One run in this process: CPU seconds without imports, and the peak memory of the whole process."""
    for module in ("great_expectations", "pandas"):
        importlib.import_module(module)
    rows = pq.read_table(file)
    read = _peak_megabytes()
    clock = Clock()
    WAYS[way](rows)
    seconds = clock.read()[1]
    return {"seconds": seconds, "read": read, "peak": _peak_megabytes()}


def _peak_megabytes() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(file: Path, n: int, repetitions: int) -> list[Result]:
    """Every way, each time in a process of its own; they take turns, so that a busy machine slows all of them."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(repetitions):
        for way, runs in found.items():
            command = [sys.executable, "-m", "tests.benchmarks.bench_checks", "--child", way, str(file)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))

    def figures(name: str) -> dict[str, list[float]]:
        return {way: [run[name] for run in runs] for way, runs in found.items()}

    what, ours = f"check {n:,} new rows", list(WAYS)[-1]
    goals = (GOAL_SECONDS, GOAL_MEGABYTES) if n >= ROWS else ("", "")
    return [
        *summarise(what, figures("seconds"), unit="CPU s", goals={ours: goals[0]}),
        *summarise(f"{what}: peak memory", figures("peak"), unit="MB", goals={ours: goals[1]}),
        *summarise(f"{what}: of that, rows read and imports", figures("read"), unit="MB"),
    ]


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure, print the table, and write JSON where asked."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, help=f"another number of rows than {ROWS:,}, or {QUICK_ROWS:,} when quick")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.child:
        print(json.dumps(measure(chosen.child[0], Path(chosen.child[1]))))
        return []
    n = chosen.rows or (QUICK_ROWS if chosen.quick else ROWS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        rows = make_rows(n)
        pq.write_table(rows, file)
        size = rows.nbytes / 2**20
        del rows
        results = run(file, n, chosen.repetitions)
    notes = [f"The rows take {size:,.0f} MB in memory."]
    show("checks", results, chosen, packages=("great-expectations", "pandas", "pyarrow"), notes=notes)
    return results


if __name__ == "__main__":
    main()
