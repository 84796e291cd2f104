"""Scoring two models at five dimensions, first and second night, beside the library's evaluator.

`python -m tests.benchmarks.bench_encoding [--quick] [--json FILE]`. Both ways load the same models, read the same texts
(AWS operations' documentation, and worked examples as queries) and report the same metrics. Ours keeps vectors in a
real store (SeaweedFS) and starts each night with an empty disk; on the second night 2% of the documents are new and the
candidate is another one. The library's evaluator is run per model and dimension, encoding everything each time; since
its time hardly depends on the dimension, `--evaluations` of them are run and their mean stands for the others. A night
at one dimension is a night at five until the first is ranked: its time is read there.
The goals: 1/35 of the library's time on the second night, 1/6 at one dimension.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import numpy as np

from deployments import demo
from deployments.stack import seaweedfs
from tasks import encoding
from tasks.config import BUNDLED_MODEL
from tasks.encoding import CachedEncoder, ModelEncoder, NumericPath, VectorCache
from tasks.ranking import metrics, relevant_ranks, summary, truncate
from tasks.storage import Store
from tests.benchmarks.report import Clock, Result, arguments, show, summarise

DIMS = (384, 256, 128, 64, 32)
NEW_SHARE = 0.02
"""Share of the documents that arrive between the two nights."""

GOALS = {5: "≤ 1/35 of the first", 1: "≤ 1/6 of the first"}
"""On the second night, by the number of dimensions."""


@dataclass(frozen=True)
class Texts:
    """Documents, and queries with the index of the one document that each is about."""

    documents: list[str]
    queries: list[str]
    relevant: list[list[int]]


def read_texts(documents: int, queries: int) -> Texts:
    """Documentation of AWS operations (then of parameters, up to the number), examples (then operations' names).

    Every query's document is among the documents, whatever their number. The same botocore gives the same texts.
    """
    spec = importlib.util.find_spec("botocore")
    assert spec is not None
    assert spec.origin is not None
    about: dict[str, str] = {}
    named: dict[str, str] = {}
    found: dict[str, None] = {}
    filling: dict[str, None] = {}
    for service in sorted(path for path in (Path(spec.origin).parent / "data").iterdir() if path.is_dir()):
        version = max(service.glob("*/service-2.json.gz"), default=None)
        if version is None:
            continue
        api = _read(version)
        described = {name: demo.plain_text(one.get("documentation", "")) for name, one in api["operations"].items()}
        found |= dict.fromkeys(text for text in described.values() if text)
        for operation, query in _examples(service):
            if described.get(operation) and query:
                about.setdefault(query, described[operation])
        for name, text in described.items():
            if text:
                named.setdefault(" ".join([service.name, *re.findall("[A-Z]+[a-z0-9]*", name)]), text)
        if len(filling) < documents:
            shapes = (demo.plain_text(shape.get("documentation", "")) for shape in api["shapes"].values())
            filling |= dict.fromkeys(text for text in shapes if len(text) > 80)
    order = np.random.default_rng(0).permutation(len(about))
    examples = list(about.items())
    asked = [*(examples[place] for place in order), *named.items()][:queries]
    texts = list(dict.fromkeys([*(text for _, text in asked), *found, *filling]))[:documents]
    place = {text: number for number, text in enumerate(texts)}
    return Texts(texts, [query for query, _ in asked], [[place[text]] for _, text in asked])


def _examples(service: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(service.glob("*/examples-1.json*")):
        for operation, examples in sorted(_read(path).get("examples", {}).items()):
            for example in examples:
                yield operation, demo.plain_text(f"{example.get('title', '')} {example.get('description', '')}")


def _read(path: Path) -> dict[str, Any]:
    body = path.read_bytes()
    return dict(json.loads(gzip.decompress(body) if path.suffix == ".gz" else body))


def make_candidate(base: Path, folder: Path, seed: int) -> Path:
    """A model of its own: the base model with a little noise on every weight."""
    import torch

    model = encoding.load(base, "cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=1e-3 * float(weight.std(correction=0)))
    model.save(str(folder), create_model_card=False)
    return folder


def library(folder: Path, texts: Texts, dim: int) -> tuple[float, float, float]:
    """The library's evaluator, once: (wall, CPU, Recall@10), the loading of the model included."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    clock = Clock()
    model = SentenceTransformer(str(folder), local_files_only=True)
    evaluator = InformationRetrievalEvaluator(
        {f"q{number}": query for number, query in enumerate(texts.queries)},
        {f"d{number}": document for number, document in enumerate(texts.documents)},
        {f"q{number}": {f"d{index}" for index in wanted} for number, wanted in enumerate(texts.relevant)},
        precision_recall_at_k=[1, 5, 10, 100],
        truncate_dim=dim,
        write_csv=False,
    )
    found = evaluator(model)
    (recall,) = [value for name, value in found.items() if name.endswith("cosine_recall@10")]
    return *clock.read(), float(recall)


@dataclass(frozen=True)
class Night:
    """Both models scored by Ratchet: (wall, CPU) by the number of dimensions, the last model's Recall@10, the path."""

    seconds: dict[int, tuple[float, float]]
    recall_at_10: float
    path: NumericPath


def night(folders: Sequence[Path], texts: Texts, cache: VectorCache) -> Night:
    """Choose the path, encode, and rank at the full dimension first, then at the others."""
    clock = Clock()
    models = [encoding.load(folder) for folder in folders]
    path = encoding.choose_path(models, texts.documents)
    vectors = []
    for folder, model in zip(folders, models, strict=True):
        encoder = CachedEncoder(ModelEncoder(model, encoding.fingerprint(folder), path), cache)
        vectors.append((encoder.encode(texts.queries, "query"), encoder.encode(texts.documents, "document")))

    def recall(dim: int) -> float:
        for queries, documents in vectors:
            ranks = relevant_ranks(truncate(queries, dim), truncate(documents, dim), texts.relevant)
            found = summary(metrics(ranks))
        return found["recall_at_10"]

    full = recall(DIMS[0])
    seconds = {1: clock.read()}
    for dim in DIMS[1:]:
        recall(dim)
    return Night(seconds | {len(DIMS): clock.read()}, full, path)


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure, print the table, and write it as JSON where asked."""
    import torch

    parser = arguments(__doc__)
    parser.add_argument(
        "--evaluations", type=int, default=1, help="runs of the library's evaluator; the rest is the mean"
    )
    chosen = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    texts = read_texts(*((400, 40) if chosen.quick else (20_000, 2_000)))
    known = max(1 + max(max(wanted) for wanted in texts.relevant), int(len(texts.documents) * (1 - NEW_SHARE)))
    before = Texts(texts.documents[:known], texts.queries, texts.relevant)
    with TemporaryDirectory() as work, seaweedfs.running(Path(work) / "s3") as server:
        os.environ.update(server.environment())
        boto3.client("s3").create_bucket(Bucket="bench")
        base = encoding.resolve_model(BUNDLED_MODEL)
        first, second = (make_candidate(base, Path(work) / f"candidate-{seed}", seed) for seed in (1, 2))
        runs = [library(base, texts, DIMS[number % len(DIMS)]) for number in range(chosen.evaluations)]
        store = Store.open("s3://bench/store")
        nights = {
            number: night([candidate, base], seen, VectorCache(Path(work) / f"vectors-{number}", store))
            for number, (candidate, seen) in enumerate(((first, before), (second, texts)), 1)
        }

    results: list[Result] = []
    for count in GOALS:
        # the library reads everything for each model and dimension anew, and takes about as long for each
        theirs = [[2 * count * run[clock] for run in runs] for clock in (0, 1)]
        for clock, unit in enumerate(("s", "CPU s")):
            figures = {"the library's evaluator": theirs[clock]}
            for number, way in ((1, "Ratchet, first night"), (2, "Ratchet, second night")):
                figures[way] = [nights[number].seconds[count][clock]]
            what = f"score two models at {count} dimension{'s' * (count > 1)}{': CPU' * clock}"
            results += summarise(what, figures, unit=unit, goals={"Ratchet, second night": GOALS[count]})
    notes = [
        f"{len(texts.documents):,} documents, {len(texts.queries):,} queries, {torch.get_num_threads()} threads, "
        f"numeric path {nights[2].path.name}.",
        f"Of the library's evaluator {len(runs)} runs were measured, times two models and the dimensions.",
        f"Recall@10 of the base model: {runs[0][2]:.4f} from the library, {nights[2].recall_at_10:.4f} from Ratchet.",
    ]
    show("encoding", results, chosen, packages=("torch", "sentence-transformers", "transformers"), notes=notes)
    return results


if __name__ == "__main__":
    main()
