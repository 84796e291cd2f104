"""Embedding documents for an index beside a plain loop, on one and two workers of Ray, and a million in flat memory.

`python -m tests.benchmarks.bench_reindex [--quick] [--json FILE]`. The rates are of all-MiniLM-L6-v2 on documentation
of AWS operations, from objects in a real store (SeaweedFS) to shards in it; the plain loop is the library's
`encode_document` on texts in memory. The million are made-up documents of eight words and a static model of 64
dimensions, through every stage: read, encode, store, load into LanceDB, verify, switch. Each way is a process of its
own. The goal: ten times the documents take at most 1.3 times the memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import boto3
import numpy as np

from deployments.stack import seaweedfs
from tasks import index
from tasks.config import BUNDLED_MODEL
from tasks.encoding import load, resolve_model
from tasks.index import documents
from tasks.storage import Store
from tests.benchmarks.bench_encoding import read_texts
from tests.benchmarks.report import Clock, Result, arguments, show, summarise

_OBJECT = 100_000
"""Made-up documents of one object."""

_WORDS = "pump valve seal motor pipe tank filter gauge bolt spring lever switch cable fuse"

_PART = 100
"""Documents of a part where rates are measured: so that two workers have enough of them."""


def static_model(folder: Path) -> Path:
    """A static model with random vectors of 64 dimensions."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(BUNDLED_MODEL))
    modules = [StaticEmbedding(tokenizer, embedding_dim=64), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return folder


def made_up(count: int) -> Iterator[bytes]:
    """Objects of documents of eight words each."""
    words = np.array(_WORDS.split())
    random = np.random.default_rng(0)
    for start in range(0, count, _OBJECT):
        size = min(_OBJECT, count - start)
        chosen = words[random.integers(0, len(words), (size, 7))]
        rows = (f'{{"id":"d{start + i}","text":"{" ".join(chosen[i])} {start + i}"}}' for i in range(size))
        yield "\n".join(rows).encode()


def plain_loop(store: str, model: str) -> dict[str, float]:
    """The library alone: every text of the store's documents, in order of length, 32 at a time."""
    found = load(Path(model), "cpu")
    texts = [json.loads(line)["text"] for line in Store.open(store).get("documents/a.jsonl").body.splitlines()]
    clock = Clock()
    found.encode_document(texts, batch_size=32, show_progress_bar=False, normalize_embeddings=True)
    return _figures(clock, len(texts))


def embedding(store: str, model: str, work: str, workers: int) -> dict[str, float]:
    """Documents to shards."""
    documents.PART_ROWS = _PART
    opened = Store.open(store)
    serving = index.find_serving(opened, Path(work), model)
    clock = Clock()
    done = index.embed(opened, serving, Path(work), workers=workers)
    return _figures(clock, done.documents)


def whole(store: str, model: str, work: str) -> dict[str, float]:
    """Documents to an index that serves."""
    clock = Clock()
    opened = Store.open(store)
    serving = index.find_serving(opened, Path(work), model)
    done = index.embed(opened, serving, Path(work), workers=0)
    embedded = _peak()
    with closing(index.open_target(None, store=store, work=Path(work))) as target:
        index.load(opened, target, done.index)
        renewed = index.switch(opened, target, done.index, serving, index.Rule(), Path(work))
    assert renewed is not None
    return _figures(clock, done.documents) | {"embedded": embedded, "recall": renewed.verified.recall}


def _figures(clock: Clock, count: int) -> dict[str, float]:
    wall, cpu = clock.read()
    return {"wall": wall, "cpu": cpu, "rate": count / wall, "peak": _peak()}


def _peak() -> float:
    """Most memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(name: str, *given: str) -> dict[str, float]:
    """One way in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_reindex", "--way", name, *given],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(way: str, given: Sequence[str]) -> dict[str, float]:
    """What `child` starts."""
    if way == "loop":
        return plain_loop(*given)
    if way == "embed":
        return embedding(given[0], given[1], given[2], int(given[3]))
    return whole(*given)


def rates(work: Path, count: int) -> list[Result]:
    """Documents per second of each way."""
    texts = read_texts(count, 10).documents
    body = "\n".join(json.dumps({"id": str(i), "text": text}) for i, text in enumerate(texts)).encode()
    base = str(resolve_model(BUNDLED_MODEL))
    ways = {
        "a plain loop": ("loop",),
        "this process": ("embed", "0"),
        "one worker of Ray": ("embed", "1"),
        "two workers of Ray": ("embed", "2"),
    }
    found = {}
    for number, (way, (kind, *workers)) in enumerate(ways.items()):
        store = f"s3://bench/rates-{number}"
        Store.open(store).put("documents/a.jsonl", body)
        found[way] = child(kind, store, base, *([str(work), *workers] if workers else []))
    return [
        *summarise("documents embedded", {way: [one["rate"]] for way, one in found.items()}, unit="per s"),
        *summarise(
            "wall time on Ray",
            {way: [one["wall"]] for way, one in found.items() if "Ray" in way},
            unit="s",
        ),
    ]


def million(work: Path, count: int) -> list[Result]:
    """Memory and rate of a tenth and of all."""
    model = str(static_model(work / "static"))
    found = {}
    for part in (count // 10, count):
        store = Store.open(f"s3://bench/made-up-{part}")
        for number, body in enumerate(made_up(part)):
            store.put(f"documents/{number:03d}.jsonl", body)
        found[f"{part:,} documents"] = child("whole", store.url, model, str(work / f"work-{part}"))
    every = {"peak": "MiB", "embedded": "MiB", "rate": "documents per s", "recall": ""}
    figures = {name: {way: [one[name]] for way, one in found.items()} for name in every}
    goal = {list(found)[-1]: "≤ 1.3 of the first"}
    return [
        *summarise("peak memory of a whole reindex", figures["peak"], unit="MiB", goals=goal),
        *summarise("the same, until all is embedded", figures["embedded"], unit="MiB"),
        *summarise("whole reindex, static model", figures["rate"], unit=every["rate"], compared=False),
        *summarise("recall of the index", figures["recall"], unit="", compared=False),
    ]


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure, print the table, and write it as JSON where asked."""
    parser = arguments(__doc__)
    parser.add_argument("--way", nargs="+", help="one way alone, as this benchmark starts it")
    chosen = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if chosen.way:
        sys.stdout.write(f"\n{json.dumps(run(chosen.way[0], chosen.way[1:]))}\n")
        return []
    with TemporaryDirectory() as folder, seaweedfs.running(Path(folder) / "s3") as server:
        os.environ.update(server.environment())
        boto3.client("s3").create_bucket(Bucket="bench")
        work = Path(folder) / "work"
        work.mkdir()
        results = [
            *rates(work, 200 if chosen.quick else 3_000),
            *million(work, 5_000 if chosen.quick else 1_000_000),
        ]
    notes = [
        "The plain loop has its texts in memory and keeps its vectors there; the others read them from a store, and "
        "write them to it.",
        "On a CPU one process already computes on every core, so a second worker shares what the first one had.",
        "The time on Ray includes its start and that of each worker, which imports torch and loads the model.",
    ]
    show("reindex", results, chosen, packages=("ray", "lancedb", "torch", "sentence-transformers"), notes=notes)
    return results


if __name__ == "__main__":
    main()
