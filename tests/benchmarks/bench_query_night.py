"""A whole night of the query side: CPU seconds of all processes, from the intake to the verdict, with documents cached.

Search in the AWS documentation (botocore): 2,000 labelled pairs and further documents up to 20,000, whose vectors by
the base model are encoded before, as an earlier night leaves them. Nothing is in production, so its documents
are what queries are trained against. The store is a real S3 server, whose own CPU does not count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import boto3
import pyarrow as pa

from deployments import demo
from deployments.stack import seaweedfs
from tasks import night
from tasks.config import Checks, Gate, Training
from tasks.encoding import VectorCache, resolve_model
from tasks.storage import Store
from tasks.training import known_documents
from tests.benchmarks.report import arguments, show, summarise

_RUN = "20260101T000000Z-00000000"
_CHARS = 240


def fill(store: Store, pairs: int, documents: int) -> list[str]:
    """Put a night's pairs and further documents into a store; returns all texts of documents."""
    built = demo.build()
    rows = [json.loads(line) for line in built.pairs.splitlines()]
    rows = [{**row, "document": row["document"][:_CHARS]} for row in rows[:: max(1, len(rows) // pairs)]][:pairs]
    texts = dict.fromkeys(row["document"] for row in rows)
    further = [text for line in built.corpus.splitlines() if (text := json.loads(line)["text"][:_CHARS]) not in texts]
    number = 0
    while len(further) < documents - len(texts):  # beginnings of what is there, under another number
        further.append(f"{further[number]} (note {number})"[-_CHARS:])
        number += 1
    further = further[: documents - len(texts)]
    store.put("pairs/a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    store.put("corpus/a.jsonl", b"".join(json.dumps({"text": text}).encode() + b"\n" for text in further))
    return [*texts, *further]


def seconds_of_all() -> float:
    """CPU seconds of this process and of the children that have ended."""
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system


def whole_night(store: Store, training: Training, work: Path) -> tuple[str, dict[str, float]]:
    """Every step of a night; returns the verdict, and CPU seconds by step."""
    spent: dict[str, float] = {}
    begun = seconds_of_all()

    def took(step: str) -> None:
        nonlocal begun
        spent[step], begun = seconds_of_all() - begun, seconds_of_all()

    began = night.begin(store, _RUN)
    taken = night.take_in(store, _RUN, began.last_commit)
    took("intake")
    night.check(store, _RUN, taken.commit, 0, training.base_model, Checks())
    night.check_leaks(store, _RUN, taken.commit, Checks())
    took("checks")
    candidate = night.train(store, _RUN, taken.commit, training, work)
    took("training")
    night.score(store, _RUN, taken.commit, candidate.version, None, training, Gate(), work)
    took("scoring")
    judged = night.judge(store, _RUN, Gate(), Checks())
    took("verdict")
    return f"{judged.verdict}: {' '.join(judged.reasons[:2])}", spent


def main(argv: Sequence[str] | None = None) -> float:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=2_000)
    parser.add_argument("--documents", type=int, default=20_000)
    chosen = parser.parse_args(argv)
    if chosen.quick:
        chosen.pairs, chosen.documents = 200, 400
    training = Training(side="query", max_length=64)
    with TemporaryDirectory() as name, seaweedfs.running(Path(name) / "s3") as server:
        os.environ |= server.environment()
        boto3.client("s3").create_bucket(Bucket="bench")
        store, work = Store.open("s3://bench/query"), Path(name) / "work"
        texts = fill(store, chosen.pairs, chosen.documents)
        before = seconds_of_all()
        none = pa.table({"document": pa.array([], pa.string()), "negatives": pa.array([], pa.list_(pa.string()))})
        base = resolve_model(training.base_model)
        known_documents(base, texts, none, VectorCache(work / "vectors", store))
        cached = seconds_of_all() - before
        verdict, spent = whole_night(store, training, work)
    goals = {"query side": "≤ 60"}
    found = summarise(
        "whole night: CPU time", {"query side": [sum(spent.values())]}, unit="s", goals=goals, compared=False
    )
    steps = ", ".join(f"{step} {taken:.1f} s" for step, taken in spent.items())
    notes = [
        f"{chosen.pairs:,} pairs, {len(texts):,} documents cut to {_CHARS} characters. By step: {steps}. {verdict}",
        f"Encoding all documents before took {cached:.0f} s: what a night that moves the index needs once more.",
    ]
    show("query_night", found, chosen, packages=("torch", "sentence-transformers", "transformers"), notes=notes)
    return sum(spent.values())


if __name__ == "__main__":
    main()
