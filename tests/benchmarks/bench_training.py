"""Fine-tuning side by side: the seed recipe, the library's own Trainer with bf16, and Ratchet.

All start from the same base model, train on the same real pairs and are scored by the same code on queries that none
trained on. `--pairs` makes the run smaller than a night's 2,000 pairs, so that it ends in minutes; the factor is
printed. Times are of everything from loading the base model to the saved folder; imports are done before. The two
baselines are slow and run with one seed, Ratchet with several, with its defaults and in quick mode (the upper half of
the layers alone). In Ratchet's runs there are no dev queries: neither baseline has any.

Data: search in the AWS documentation (`deployments/demo`; test queries are about operations that no training pair is
about), and, where its folder is there (`--nl2bash`: corpus, queries, qrels and pairs as gzipped JSON lines), requests
and commands, of which the whole train side (3,000 pairs) is also trained on and scored at 128 tokens.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from deployments import demo
from tasks.config import Training
from tasks.encoding import encode, load, resolve_model
from tasks.ranking import metrics, relevant_ranks, summary
from tasks.training import train
from tests.benchmarks.report import Clock, Result, arguments, show, summarise

NIGHT = 2_000
"""Training pairs of the run that the facts of the README were measured on."""

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "nl2bash"
"""Where the nl2bash data lies when it lies beside the checkout."""

DIMS = (256, 128, 64, 32)

SEED_EPOCHS = 3
"""Passes of the seed recipe over the pairs; all others make one."""

WHOLE = 3_000
"""Training pairs of nl2bash, and what a plain fine-tune on them reaches on its test side at 128 tokens."""
PLAIN_RECALL, PLAIN_MRR = 0.784, 0.619


@dataclass(frozen=True)
class Data:
    """Training pairs, and test queries with the indices of their relevant documents."""

    name: str
    pairs: list[tuple[str, str]]
    queries: list[str]
    relevant: list[np.ndarray]
    documents: list[str]


@dataclass(frozen=True)
class Run:
    """One contestant, one seed, one data set."""

    data: str
    recipe: str
    seed: int
    pairs: int
    wall: float
    cpu: float
    recall_at_10: float
    mrr: float
    small: float
    """Recall@10 at 32 dimensions."""


# --- data --------------------------------------------------------------------------------------------------------


def aws(pairs: int) -> Data:
    """The demo's pairs, split by operation: a third of the operations is tested on, the others train."""
    built = demo.build()
    rows = [json.loads(line) for line in built.pairs.splitlines()]
    rng = np.random.default_rng(0)
    operations = sorted({row["document"] for row in rows})
    tested = set(np.array(operations, dtype=object)[rng.permutation(len(operations))[: len(operations) // 3]])
    trained = [(row["query"], row["document"]) for row in rows if row["document"] not in tested]
    trained = [trained[place] for place in rng.permutation(len(trained))[:pairs]]
    corpus = [json.loads(line)["text"] for line in built.corpus.splitlines()]
    documents = operations + corpus
    place = {document: number for number, document in enumerate(documents)}
    asked = [row for row in rows if row["document"] in tested]
    relevant = [np.array([place[row["document"]]]) for row in asked]
    return Data("aws", trained, [row["query"] for row in asked], relevant, documents)


def nl2bash(folder: Path, pairs: int) -> Data:
    """Requests -> commands; its own train side, its whole corpus and test side."""
    trained = [(row["query"], row["document"]) for row in _lines(folder / "pairs.jsonl.gz") if row["split"] == "train"]
    order = np.random.default_rng(0).permutation(len(trained))[:pairs]
    return replace(labelled_set(folder), pairs=[trained[n] for n in order])


def labelled_set(folder: Path) -> Data:
    """The whole corpus and test side of a set that lies beside the checkout; nothing to train on."""
    corpus = _lines(folder / "corpus.jsonl.gz")
    place = {document["_id"]: number for number, document in enumerate(corpus)}
    texts = {query["_id"]: query["text"] for query in _lines(folder / "queries.jsonl.gz")}
    relevant: dict[str, list[int]] = {}
    for line in (folder / "qrels_test.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score) > 0:
            relevant.setdefault(query, []).append(place[document])
    documents = [f"{document['title']} {document['text']}".strip() for document in corpus]
    indices = [np.array(sorted(found)) for found in relevant.values()]
    return Data(folder.name, [], [texts[query] for query in relevant], indices, documents)


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def smaller(data: Data, queries: int, distractors: int) -> Data:
    """At most so many test queries, and of the documents that answer none of them at most so many; drawn once."""
    rng = np.random.default_rng(1)
    asked = np.sort(rng.permutation(len(data.queries))[:queries])
    relevant = np.unique(np.concatenate([data.relevant[number] for number in asked]))
    others = np.setdiff1d(np.arange(len(data.documents)), relevant)
    kept = np.sort(np.concatenate([relevant, rng.permutation(others)[:distractors]]))
    return replace(
        data,
        queries=[data.queries[number] for number in asked],
        relevant=[np.searchsorted(kept, data.relevant[number]) for number in asked],
        documents=[data.documents[number] for number in kept],
    )


# --- contestants -------------------------------------------------------------------------------------------------


def seed_recipe(data: Data, base: str, seed: int, folder: Path) -> None:
    """`model.fit`: batch 16, ranking loss under Matryoshka [256, 128, 64, 32], 3 epochs, warmup 100, 2e-5, fp32."""
    from sentence_transformers import InputExample
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
    from torch.utils.data import DataLoader

    torch.manual_seed(seed)
    model = load(resolve_model(base))
    examples = [InputExample(texts=[query, document]) for query, document in data.pairs]
    loader = DataLoader(examples, batch_size=16, shuffle=True)  # type: ignore[var-annotated,arg-type]
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), list(DIMS))
    model.fit(
        [(loader, loss)],
        epochs=SEED_EPOCHS,
        warmup_steps=100,
        optimizer_params={"lr": 2e-5},
        show_progress_bar=False,
        checkpoint_path=str(folder.parent / "checkpoints"),  # its default is the current folder
    )
    model.save(str(folder), create_model_card=False)


def library_trainer(data: Data, base: str, seed: int, folder: Path) -> None:
    """The library's Trainer, bf16, batch 64, 1 epoch, the same loss and learning rate 1e-4."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    model = load(resolve_model(base))
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [384, *DIMS])
    queries, documents = zip(*data.pairs, strict=True)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "out"),
        num_train_epochs=1,
        per_device_train_batch_size=64,
        learning_rate=1e-4,
        warmup_steps=0.1,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    rows = Dataset.from_dict({"anchor": list(queries), "positive": list(documents)})
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss).train()
    model.save(str(folder), create_model_card=False)


def ratchet(data: Data, base: str, seed: int, folder: Path, **changes: Any) -> None:
    """Ratchet with its defaults."""
    queries, documents = (pa.array(column, pa.string()) for column in zip(*data.pairs, strict=True))
    rows = pa.table(
        {
            "query": queries,
            "document": documents,
            "negatives": pa.array([[]] * len(queries), pa.list_(pa.string())),
            "score": pa.nulls(len(queries), pa.float64()),
        }
    )
    train(rows, None, [], Training(base_model=base, seed=seed, **changes), folder)


SEED, TRAINER, OWN, QUICK = (
    "seed recipe",
    "Trainer, bf16, batch 64, 1 epoch",
    "Ratchet, any model",
    "Ratchet, any model, quick",
)

OURS: dict[str, Callable[[Data, str, int, Path], None]] = {OWN: ratchet, QUICK: partial(ratchet, quick=True)}

RECIPES: dict[str, Callable[[Data, str, int, Path], None]] = {SEED: seed_recipe, TRAINER: library_trainer, **OURS}

_FASTER = dict.fromkeys((OWN, QUICK), "≤ 1/20 of the first")


# --- measurement -------------------------------------------------------------------------------------------------


def score(data: Data, folder: Path) -> tuple[float, float, float]:
    """Recall@10 and MRR on the test side, and Recall@10 at 32 dimensions, as the model would be served."""
    model = load(folder)
    queries, documents = encode(model, data.queries, "query"), encode(model, data.documents, "document")
    full = summary(metrics(relevant_ranks(queries, documents, data.relevant)))
    small = summary(metrics(relevant_ranks(queries[:, :32].copy(), documents[:, :32].copy(), data.relevant)))
    return full["recall_at_10"], full["mrr"], small["recall_at_10"]


def measure(data: Data, recipe: str, base: str, seed: int) -> Run:
    """Train one contestant with one seed, and score what it saved."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        clock = Clock()
        RECIPES[recipe](data, base, seed, folder)
        return Run(data.name, recipe, seed, len(data.pairs), *clock.read(), *score(data, folder))


def whole_nl2bash(folder: Path, base: str) -> list[Result]:
    """The recipe's quality on the whole train side of nl2bash, served at 128 tokens."""
    data = nl2bash(folder, WHOLE)
    with TemporaryDirectory() as temporary:
        saved = Path(temporary) / "model"
        ratchet(data, base, Training().seed, saved)
        _serve_at(saved, 128)
        model = load(saved)
        queries, documents = encode(model, data.queries, "query"), encode(model, data.documents, "document")
        ranks = relevant_ranks(queries, documents, data.relevant)
    recall = summary(metrics(ranks))["recall_at_10"]
    mrr = float(np.mean([1 / found[0] if found[0] <= 10 else 0.0 for found in ranks]))
    results: list[Result] = []
    for name, plain, reached in (("Recall@10", PLAIN_RECALL, recall), ("MRR@10", PLAIN_MRR, mrr)):
        what = f"nl2bash, {len(data.pairs):,} pairs, 128 tokens: {name}"
        figures = {"plain fine-tune": [plain], OWN: [reached]}
        results += summarise(what, figures, unit="", goals={OWN: f"≥ {plain}"}, compared=False)
    return results


def _serve_at(folder: Path, length: int) -> None:
    """Set the length at which a saved model serves."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))


def results(runs: Sequence[Run]) -> list[Result]:
    """Per data set: seconds, seconds per pair and epoch, and quality, each beside the seed recipe's."""
    found: list[Result] = []
    for name in dict.fromkeys(run.data for run in runs):
        by_way: dict[str, list[Run]] = {}
        for run in runs:
            if run.data == name:
                by_way.setdefault(run.recipe, []).append(run)
        for clock in ("wall", "cpu"):
            whole = {way: [getattr(run, clock) for run in of_way] for way, of_way in by_way.items()}
            each = {
                way: [1000 * second / by_way[way][0].pairs / (SEED_EPOCHS if way == SEED else 1) for second in seconds]
                for way, seconds in whole.items()
            }
            found += summarise(f"{name}: {clock} time", whole, unit="s", goals=_FASTER if SEED in whole else None)
            goals = dict.fromkeys((OWN, QUICK), "≤ 1/8 of the first") if SEED in whole else None
            found += summarise(f"{name}: {clock} time per pair and epoch", each, unit="ms", goals=goals)
        for value, label in (("recall_at_10", "Recall@10"), ("mrr", "MRR"), ("small", "Recall@10 at 32 dimensions")):
            figures = {way: [getattr(run, value) for run in of_way] for way, of_way in by_way.items()}
            goals = None
            if SEED in figures and value != "small":
                goals = dict.fromkeys(OURS, f"≥ {figures[SEED][0]:.4f}")
            found += summarise(f"{name}: {label}", figures, unit="", goals=goals)
    return found


def main(argv: Sequence[str] | None = None) -> list[Run]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=400, help=f"training pairs per data set (a night has {NIGHT:,})")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of Ratchet's runs; the baselines have one")
    parser.add_argument("--queries", type=int, default=1_000, help="most test queries per data set")
    parser.add_argument("--distractors", type=int, default=1_000, help="documents that answer none of them")
    parser.add_argument("--nl2bash", type=Path, default=BESIDE, help="folder of the nl2bash data, where there is one")
    parser.add_argument("--only", nargs="*", default=list(RECIPES), choices=list(RECIPES), help="recipes to run")
    parser.add_argument("--data", nargs="*", default=["aws", "nl2bash", "whole"], help="aws, nl2bash, whole (nl2bash)")
    parser.add_argument("--base", default=Training().base_model)
    chosen = parser.parse_args(argv)
    if chosen.quick:
        chosen.pairs, chosen.seeds, chosen.queries, chosen.distractors, chosen.data = 32, 1, 50, 100, ["aws"]
    there = chosen.nl2bash.is_dir()
    sets = [aws(chosen.pairs)] if "aws" in chosen.data else []
    sets += [nl2bash(chosen.nl2bash, chosen.pairs)] if there and "nl2bash" in chosen.data else []
    sets = [smaller(data, chosen.queries, chosen.distractors) for data in sets]
    import sentence_transformers.sentence_transformer.losses  # noqa: F401 - before anything is timed

    runs: list[Run] = []
    for seed in range(chosen.seeds):
        for data in sets:
            for recipe in chosen.only:
                if seed == 0 or recipe in OURS:
                    runs.append(measure(data, recipe, chosen.base, seed))
                    print(runs[-1], flush=True)
    found = results(runs)
    if there and "whole" in chosen.data:
        found += whole_nl2bash(chosen.nl2bash, chosen.base)
    notes = [
        f"{chosen.pairs} training pairs per data set, 1/{NIGHT / chosen.pairs:g} of a night; "
        f"{torch.get_num_threads()} threads. The seed recipe makes {SEED_EPOCHS} epochs, all others one."
    ]
    for data in sets:
        recall, mrr, _ = score(data, resolve_model(chosen.base))
        notes.append(
            f"{data.name}: {len(data.queries):,} queries, {len(data.documents):,} documents; without fine-tuning "
            f"Recall@10 {recall:.3f}, MRR {mrr:.3f}."
        )
    show("training", found, chosen, packages=("torch", "sentence-transformers", "transformers"), notes=notes)
    return runs


if __name__ == "__main__":
    main()
