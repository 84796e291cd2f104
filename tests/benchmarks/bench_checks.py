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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS, QUICK_ROWS = 1_000_000, 50_000
GOAL_SECONDS, GOAL_MEGABYTES = 10.0, 1536.0


@dataclass(frozen=True)
class Result:
    """One way of checking: medians over the repetitions, and the fastest and slowest of the seconds."""

    way: str
    rows: int
    data_megabytes: float
    cpu_seconds: float
    fastest: float
    slowest: float
    ratio: float
    """CPU seconds by those of the first way."""
    read_megabytes: float
    """Peak memory before the checks: imports, and reading the rows from Parquet."""
    peak_megabytes: float


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
    started = time.process_time()
    WAYS[way](rows)
    seconds = time.process_time() - started
    return {"seconds": seconds, "read": read, "peak": _peak_megabytes(), "data": rows.nbytes / 2**20}


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
    medians = {
        way: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for way, runs in found.items()
    }
    floor = next(iter(medians.values()))["seconds"]
    return [
        Result(
            way=way,
            rows=n,
            data_megabytes=median["data"],
            cpu_seconds=median["seconds"],
            fastest=min(run["seconds"] for run in found[way]),
            slowest=max(run["seconds"] for run in found[way]),
            ratio=median["seconds"] / floor,
            read_megabytes=median["read"],
            peak_megabytes=median["peak"],
        )
        for way, median in medians.items()
    ]


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure, print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows instead of {ROWS:,}")
    parser.add_argument("--rows", type=int, help="another number of rows")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        print(json.dumps(measure(options.child[0], Path(options.child[1]))))
        return []
    n = options.rows or (QUICK_ROWS if options.quick else ROWS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        pq.write_table(make_rows(n), file)
        results = run(file, n, options.repetitions)
    print(f"Checking {n:,} new rows ({results[0].data_megabytes:,.0f} MB in memory)")
    print(f"Goal for a million: {GOAL_SECONDS:g} CPU s, {GOAL_MEGABYTES:,.0f} MB")
    print(f"{'way':14} {'CPU s':>7} {'fastest':>8} {'slowest':>8} {'ratio':>6} {'peak MB':>8} {'after reading':>14}")
    for r in results:
        seconds = f"{r.cpu_seconds:7.2f} {r.fastest:8.2f} {r.slowest:8.2f} {r.ratio:6.1f}"
        print(f"{r.way:14} {seconds} {r.peak_megabytes:8,.0f} {r.read_megabytes:14,.0f}")
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1))
    return results


if __name__ == "__main__":
    main()
