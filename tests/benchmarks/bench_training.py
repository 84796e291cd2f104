"""Fine-tuning side by side: the seed recipe, the library's own Trainer with bf16, and Ratchet.

All three start from the same base model, train on the same real pairs and are scored by the same code on queries that
none trained on. `--pairs` makes the run smaller than a night's 2,000 pairs, so that it ends in minutes; the factor is
printed. Times are of everything from loading the base model to the saved folder.

Data: search in the AWS documentation (`deployments.demo`; test queries are about operations that no training pair is
about), and, given `--nl2bash FOLDER` (corpus, queries, qrels and pairs as gzipped JSON lines), requests and commands.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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

NIGHT = 2_000
"""Training pairs of the run that the facts of the README were measured on."""

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "nl2bash"
"""Where the nl2bash data lies when it lies beside the checkout."""

DIMS = (256, 128, 64, 32)


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
    recall_at_10_small: float
    """At 32 dimensions."""


# --- data --------------------------------------------------------------------------------------------------------


def aws(pairs: int, distractors: int) -> Data:
    """The demo's pairs, split by operation: a third of the operations is tested on, the others train."""
    built = demo.build()
    rows = [json.loads(line) for line in built.pairs.splitlines()]
    rng = np.random.default_rng(0)
    operations = sorted({row["document"] for row in rows})
    tested = set(np.array(operations, dtype=object)[rng.permutation(len(operations))[: len(operations) // 3]])
    trained = [(row["query"], row["document"]) for row in rows if row["document"] not in tested]
    trained = [trained[place] for place in rng.permutation(len(trained))[:pairs]]
    corpus = [json.loads(line)["text"] for line in built.corpus.splitlines()]
    documents = operations + [corpus[place] for place in rng.permutation(len(corpus))[:distractors]]
    place = {document: number for number, document in enumerate(documents)}
    asked = [row for row in rows if row["document"] in tested]
    relevant = [np.array([place[row["document"]]]) for row in asked]
    return Data("aws", trained, [row["query"] for row in asked], relevant, documents)


def nl2bash(folder: Path, pairs: int) -> Data:
    """Requests -> commands; its own train side, its whole corpus and test side."""

    def lines(name: str) -> list[dict[str, Any]]:
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    corpus = lines("corpus.jsonl.gz")
    place = {document["_id"]: number for number, document in enumerate(corpus)}
    texts = {query["_id"]: query["text"] for query in lines("queries.jsonl.gz")}
    relevant: dict[str, list[int]] = {}
    for line in (folder / "qrels_test.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score) > 0:
            relevant.setdefault(query, []).append(place[document])
    trained = [(row["query"], row["document"]) for row in lines("pairs.jsonl.gz") if row["split"] == "train"]
    order = np.random.default_rng(0).permutation(len(trained))[:pairs]
    documents = [f"{document['title']} {document['text']}".strip() for document in corpus]
    indices = [np.array(sorted(found)) for found in relevant.values()]
    return Data("nl2bash", [trained[n] for n in order], [texts[query] for query in relevant], indices, documents)


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
        epochs=3,
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


def ratchet_padded(data: Data, base: str, seed: int, folder: Path) -> None:
    """Ratchet without the packed path: what a model of any architecture gets."""
    from tasks import packed

    agrees = packed.agrees
    packed.agrees = lambda *_: False
    try:
        ratchet(data, base, seed, folder)
    finally:
        packed.agrees = agrees


RECIPES: dict[str, Callable[[Data, str, int, Path], None]] = {
    "seed recipe": seed_recipe,
    "Trainer, bf16, batch 64, 1 epoch": library_trainer,
    "Ratchet, padded": ratchet_padded,
    "Ratchet": ratchet,
}


# --- measurement -------------------------------------------------------------------------------------------------


def score(data: Data, folder: Path) -> tuple[float, float, float]:
    """Recall@10 and MRR on the test side, and Recall@10 at 32 dimensions, as the model would be served."""
    model = load(folder)
    queries, documents = encode(model, data.queries, "query"), encode(model, data.documents, "document")
    full = summary(metrics(relevant_ranks(queries, documents, data.relevant)))
    small = summary(metrics(relevant_ranks(queries[:, :32].copy(), documents[:, :32].copy(), data.relevant)))
    return full["recall_at_10"], full["mrr"], small["recall_at_10"]


def measure(data: Data, recipe: str, base: str, seed: int, length: int | None) -> Run:
    """Train one contestant with one seed, and score what it saved."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        wall, cpu = time.perf_counter(), time.process_time()
        RECIPES[recipe](data, base, seed, folder)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if length is not None:
            _serve_at(folder, length)
        return Run(data.name, recipe, seed, len(data.pairs), wall, cpu, *score(data, folder))


def _serve_at(folder: Path, length: int) -> None:
    """Set the length at which a saved model serves."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))


def table(runs: Sequence[Run]) -> str:
    """Medians over seeds with their spread, and ratios to the first recipe of each data set."""
    lines = ["| data | recipe | wall s | CPU s | wall ratio | CPU ratio | Recall@10 | MRR | Recall@10, 32 dims |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in dict.fromkeys(run.data for run in runs):
        first: list[Run] = []
        for recipe in dict.fromkeys(run.recipe for run in runs if run.data == name):
            found = [run for run in runs if (run.data, run.recipe) == (name, recipe)]
            first = first or found

            def cell(value: str, form: str, runs: Sequence[Run] = found) -> str:
                values = [getattr(run, value) for run in runs]
                spread = f" ± {(max(values) - min(values)) / 2:{form}}" if len(values) > 1 else ""
                return f"{statistics.median(values):{form}}{spread}"

            def ratio(value: str, runs: Sequence[Run] = found, first: Sequence[Run] = first) -> str:
                ours, theirs = (statistics.median(getattr(run, value) for run in r) for r in (runs, first))
                return f"{theirs / ours:.1f}" if ours else "-"

            cells = [cell("wall", ".1f"), cell("cpu", ".1f"), ratio("wall"), ratio("cpu")]
            cells += [cell("recall_at_10", ".3f"), cell("mrr", ".3f"), cell("recall_at_10_small", ".3f")]
            lines.append(" | ".join([f"| {name}", recipe, *cells]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> list[Run]:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400, help="training pairs per data set (a night has 2,000)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--distractors", type=int, default=2_000, help="further AWS operations in the corpus")
    parser.add_argument("--nl2bash", type=Path, default=BESIDE, help="folder of the nl2bash data, where there is one")
    parser.add_argument("--only", nargs="*", default=list(RECIPES), help="recipes to run")
    parser.add_argument("--data", nargs="*", default=["aws", "nl2bash"])
    parser.add_argument("--base", default=Training().base_model)
    parser.add_argument("--serve-length", type=int, help="score all models at this many tokens")
    parser.add_argument("--quick", action="store_true", help="32 pairs, one seed: only to see that it runs")
    parser.add_argument("--json", type=Path, help="write all runs here")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.pairs, arguments.seeds, arguments.distractors = 32, 1, 100
    sets = [aws(arguments.pairs, arguments.distractors)] if "aws" in arguments.data else []
    if arguments.nl2bash.is_dir() and "nl2bash" in arguments.data:
        sets.append(nl2bash(arguments.nl2bash, arguments.pairs))
    runs = [Run(data.name, "base model", 0, 0, 0.0, 0.0, *score(data, resolve_model(arguments.base))) for data in sets]
    for data in sets:
        for recipe in arguments.only:
            for seed in range(arguments.seeds):
                runs.append(measure(data, recipe, arguments.base, seed, arguments.serve_length))
                print(runs[-1], flush=True)
    contest = [run for run in runs if run.recipe != "base model"]
    print(
        f"\n{_machine()}; {arguments.pairs} pairs, 1/{NIGHT / arguments.pairs:g} of a night; {arguments.seeds} seeds\n"
    )
    print(table(contest))
    print("\nzero-shot: " + ", ".join(f"{r.data} {r.recall_at_10:.3f} / {r.mrr:.3f}" for r in runs if r not in contest))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))
    return runs


def _machine() -> str:
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    main()
