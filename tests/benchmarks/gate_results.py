"""Makes `gate_results.parquet`: what real models score per query, from which the gate's benchmark draws its nights.

`python -m tests.benchmarks.gate_results --nl2bash FOLDER`, two minutes of CPU; only figures are kept. The models are
all-MiniLM-L6-v2, and linear adapters that are fine-tuned on its vectors (one matrix for both sides, with the in-batch
ranking loss of the nights and several seeds): on a processor that is minutes of training less, and what counts here is
how two fine-tuned models differ from query to query. Three sets of real labels:

- `commands`: nl2bash (MIT, github.com/TellinaTool/nl2bash, in BEIR layout): a request to a shell command. 1.2 test
  queries for a document, so queries are independent.
- `operations`: the demonstration's data: a worked example to the documentation of the AWS operation that it calls, on
  operations that no model was trained on, among few others. Near the ceiling.
- `services`: the same examples to the description of their whole service, among those of all services: 42 documents
  for 705 queries, all of which were trained on. Queries are clustered.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import BUNDLED_MODEL, DECISIVE

RESULTS: Final = Path(__file__).with_name("gate_results.parquet")
PAIRS: Final = 3_000
"""Pairs of nl2bash that a model is trained on; the one of "tonight" gets a tenth more."""

EPOCHS: Final = 5


@dataclass(frozen=True)
class Task:
    """Labels to train and to test on: `models` maps a model to the pairs that it is trained on and its seed."""

    name: str
    queries: Sequence[str]
    documents: Sequence[str]
    relevant: np.ndarray
    """The document of each query."""
    test: np.ndarray
    models: dict[str, tuple[np.ndarray, int]]


def commands(folder: Path) -> Task:
    """nl2bash: its own test queries; each model on its own draw of the training pairs."""

    def lines(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in gzip.open(folder / name)]

    corpus, queries = lines("corpus.jsonl.gz"), lines("queries.jsonl.gz")
    document = {row["_id"]: place for place, row in enumerate(corpus)}
    query = {row["_id"]: place for place, row in enumerate(queries)}
    relevant = np.full(len(queries), -1)
    sides = {}
    for side in ("train", "test"):
        rows = [line.split("\t") for line in (folder / f"qrels_{side}.tsv").read_text().splitlines()]
        labels = [(query[row[0]], document[row[-2]]) for row in rows if row[0] in query]
        for asked, answer in reversed(labels):  # the first label counts
            relevant[asked] = answer
        sides[side] = np.unique([asked for asked, _ in labels])
    rng = np.random.default_rng(0)
    order = rng.permutation(sides["train"])
    models = {
        "production": (order[:PAIRS], 1),
        "tonight": (order[: PAIRS + PAIRS // 10], 2),
        "third": (order[:PAIRS], 3),
        "fourth": (order[:PAIRS], 4),
    }
    texts = [row["text"] for row in queries]
    return Task("commands", texts, [row["text"] for row in corpus], relevant, sides["test"], models)


def examples() -> tuple[list[dict[str, str]], list[str]]:
    """The demonstration's pairs, and its further documents."""
    from deployments.demo import build

    data = build()
    pairs = [json.loads(line) for line in data.pairs.splitlines()]
    return pairs, [json.loads(line)["text"] for line in data.corpus.splitlines()]


def operations() -> Task:
    """An operation is in one part only: production on half, tonight on a quarter more, as after a large delivery."""
    pairs, others = examples()
    labelled = list(dict.fromkeys(pair["document"] for pair in pairs))
    place = {text: number for number, text in enumerate(labelled)}
    relevant = np.array([place[pair["document"]] for pair in pairs])
    part = np.random.default_rng(0).integers(0, 8, len(labelled))[relevant]
    models = {"production": (np.flatnonzero(part <= 3), 1), "tonight": (np.flatnonzero(part <= 4), 2)}
    documents = labelled + others[:2_000]
    return Task("operations", [pair["query"] for pair in pairs], documents, relevant, np.flatnonzero(part >= 5), models)


def services() -> Task:
    """The description of every service of AWS is searched; half of the examples are tested on."""
    from deployments.demo.data import _botocore_data, _read, plain_text

    described = {
        folder.name: plain_text(_read(max(folder.glob("*/service-2.json*"))).get("documentation", ""))
        for folder in sorted(_botocore_data().iterdir())
        if list(folder.glob("*/service-2.json*"))
    }
    documents = list(dict.fromkeys(text for text in described.values() if text))
    place = {text: number for number, text in enumerate(documents)}
    pairs = [pair for pair in examples()[0] if described[pair["slice"]]]
    relevant = np.array([place[described[pair["slice"]]] for pair in pairs])
    part = np.random.default_rng(0).integers(0, 10, len(pairs))
    models = {
        "production": (np.flatnonzero(part <= 3), 1),
        "tonight": (np.flatnonzero(part <= 4), 2),
        "third": (np.flatnonzero(part <= 3), 3),
    }
    return Task("services", [pair["query"] for pair in pairs], documents, relevant, np.flatnonzero(part >= 5), models)


def adapter(asked: np.ndarray, found: np.ndarray, seed: int) -> np.ndarray:
    """A matrix for the vectors of both sides, fine-tuned on pairs: `asked[i]` is answered by `found[i]`."""
    import torch

    torch.manual_seed(seed)
    matrix = torch.eye(asked.shape[1]).requires_grad_()
    optimizer = torch.optim.AdamW([matrix], lr=1e-3, weight_decay=0.0)
    queries, documents = torch.from_numpy(asked), torch.from_numpy(found)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(queries)).split(64):
            left, right = (
                torch.nn.functional.normalize(torch.nn.functional.dropout(side[rows], 0.1) @ matrix)
                for side in (queries, documents)
            )
            loss = torch.nn.functional.cross_entropy(20 * left @ right.T, torch.arange(len(rows)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return matrix.detach().numpy()


def score(task: Task) -> pa.Table:
    """Fine-tune and score every model of a task, and its base model: one row per model and test query."""
    from data_checks.leaks import nearest_training_query
    from tasks.encoding import encode, load, resolve_model
    from tasks.ranking import metrics, relevant_ranks

    model = load(resolve_model(BUNDLED_MODEL))
    wanted = np.unique(np.concatenate([task.test, *(rows for rows, _ in task.models.values())]))
    queries = np.zeros((len(task.queries), 384), np.float32)
    queries[wanted] = encode(model, [task.queries[i] for i in wanted], "query")
    documents = encode(model, task.documents, "document")
    matrices = {"base": np.eye(384, dtype=np.float32)}
    for name, (rows, seed) in task.models.items():
        matrices[name] = adapter(queries[rows], documents[task.relevant[rows]], seed)
    trained = [task.queries[i] for i in task.models["production"][0]]
    nearest = nearest_training_query([task.queries[i] for i in task.test], trained)
    found = []
    for name, matrix in matrices.items():
        relevant = [[int(task.relevant[i])] for i in task.test]
        scored = metrics(relevant_ranks(queries[task.test] @ matrix, documents @ matrix, relevant))
        print(task.name, name, {metric: round(float(scored[metric].mean()), 4) for metric in DECISIVE}, flush=True)
        columns = {
            "task": pa.array([task.name] * len(task.test)),
            "model": pa.array([name] * len(task.test)),
            "document": pa.array(task.relevant[task.test], pa.int32()),
            "similarity": pa.array(nearest, pa.float32()),
            **{metric: pa.array(scored[metric].astype(np.float32)) for metric in DECISIVE},
        }
        found.append(pa.table(columns))
    return pa.concat_tables(found)


def main() -> None:
    """Make the file anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nl2bash", type=Path, required=True, metavar="FOLDER", help="nl2bash in BEIR layout")
    chosen = parser.parse_args()
    tables = []
    for task in (services(), operations(), commands(chosen.nl2bash)):
        tables.append(score(task))
        pq.write_table(pa.concat_tables(tables), RESULTS, compression="zstd")


if __name__ == "__main__":
    main()
