"""What each side of a fine-tuning is worth to a search, and what it costs: both sides, the query side, averages.

One base model, three data sets with real labels, the same pairs for all ways of a seed, and test queries that none
trained on. `old index` searches the vectors that the base model gave the documents; `rebuilt` those of the tuned model;
`half rebuilt` a random half of each, which is what a search meets while an index is renewed in place. The query side is
trained against the base model's vectors, which are encoded once for all seeds. The average of weights is the one that
dev chose. Seconds are CPU, of the training alone (without the dress rehearsal, which no way can do without), and of
encoding the documents again where that is needed. Each tuned model also searches a general set that it was not tuned
for (`--general`: claims and abstracts of SciFact, where the folder is there).

Data: search in the AWS documentation (botocore); requests and commands (`--nl2bash`, where the folder is there); and
the first sentence of a docstring -> the rest of it, in scikit-learn, SciPy and networkx as they are installed.
"""

from __future__ import annotations

import ast
import importlib.util
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from tasks.config import Training
from tasks.dataset import EvaluationSet
from tasks.encoding import BF16, Role, document_identity, encode, load, resolve_model
from tasks.ranking import metrics, relevant_ranks
from tasks.training import FROM_BASE, Documents, Start, query_side
from tasks.training.fine_tune import run as train_here
from tasks.training.job import Job
from tasks.training.processes import ALONE
from tests.benchmarks.bench_training import BESIDE, Data, aws, labelled_set, nl2bash, smaller
from tests.benchmarks.report import Clock, Result, arguments, show, summarise

PACKAGES: Final = ("sklearn", "scipy", "networkx")

_CHARS: Final = 240
"""Documents are cut to their first characters, so that encoding them all in every run stays affordable."""

_LEAST: Final = 80
"""Characters of a docstring's rest that make a document."""

_GENERAL: Final = 150
"""Queries of the general set."""

_DEV: Final = 100
"""Pairs that choose the checkpoint and the average."""

BASE: Final = "base model"
BOTH: Final = "both sides, rebuilt"
OLD: Final = "both sides, old index"
HALF: Final = "both sides, half rebuilt"
QUERY: Final = "query side, old index"
QUERY_3: Final = "query side, 3 epochs, old index"
AVERAGE: Final = "averaged, rebuilt"


@dataclass(frozen=True)
class Run:
    """One way, one seed, one data set: metrics of each test query, CPU seconds, and the share of the way kept."""

    data: str
    way: str
    recall_at_10: np.ndarray
    mrr: np.ndarray
    training: float = 0.0
    encoding: float = 0.0
    alpha: float = 1.0


# --- data --------------------------------------------------------------------------------------------------------


def docstrings(pairs: int, packages: Sequence[str] = PACKAGES) -> Data:
    """First sentences -> the rest of the docstring, each once; a third is tested on, the others train."""
    found: dict[str, str] = {}
    for package in packages:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations if spec else None) or ():
            for path in sorted(Path(root).rglob("*.py")):
                if "tests" not in path.parts:
                    found |= {query: document for query, document in _documented(path) if query not in found}
    rng = np.random.default_rng(0)
    rows = sorted(found.items())
    order = rng.permutation(len(rows))
    tested, trained = order[: len(rows) // 3], order[len(rows) // 3 :][:pairs]
    documents = [rows[n][1] for n in order]
    relevant = [np.array([place]) for place in range(len(tested))]
    return Data("docstrings", [rows[n] for n in trained], [rows[n][0] for n in tested], relevant, documents)


def _documented(path: Path) -> Iterator[tuple[str, str]]:
    """First paragraph and the rest of every public function's and class's docstring in a file."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
            if len(first.split()) >= 4 and len(rest.strip()) >= _LEAST:
                yield " ".join(first.split()), " ".join(rest.split())


def cut(data: Data, queries: int, documents: int) -> Data:
    """Fewer test queries and documents, whose beginnings alone are kept; those that become the same text go."""
    data = smaller(data, queries, max(0, documents - queries))
    texts = [document[:_CHARS] for document in data.documents]
    first = {text: place for place, text in reversed(list(enumerate(texts)))}
    kept = sorted(first.values())
    place = {texts[n]: number for number, n in enumerate(kept)}
    return replace(
        data,
        pairs=[(query, document[:_CHARS]) for query, document in data.pairs],
        relevant=[np.unique([place[texts[n]] for n in found]) for found in data.relevant],
        documents=[texts[n] for n in kept],
    )


# --- the ways ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Searched:
    """Test queries and what they search, with the base model's vectors."""

    data: Data
    queries: np.ndarray
    documents: np.ndarray

    @classmethod
    def of(cls, data: Data, base: Path) -> Searched:
        """Encode once what all seeds need."""
        return cls(data, *_both(load(base), data))

    def rank(self, way: str, queries: np.ndarray, documents: np.ndarray, **more: Any) -> Run:
        """Rank, and keep the metrics of each query."""
        found = metrics(relevant_ranks(queries, documents, self.data.relevant))
        return Run(self.data.name, way, found["recall_at_10"], found["mrr"], **more)


@dataclass(frozen=True)
class Bench:
    """One data set with the base model's vectors of everything that is searched or trained against."""

    own: Searched
    general: Searched | None
    base: Path
    known: Documents
    dev: EvaluationSet
    rows: pa.Table

    @classmethod
    def of(cls, data: Data, base: Path, general: Searched | None) -> Bench:
        """Encode once what all seeds need."""
        pairs, dev = data.pairs[_DEV:], data.pairs[:_DEV]
        texts = list(dict.fromkeys([*data.documents, *(document for _, document in data.pairs)]))
        place = {text: number for number, text in enumerate(texts)}
        chosen = EvaluationSet(
            [query for query, _ in dev], [np.array([place[document]]) for _, document in dev], [None] * len(dev),
            np.zeros(len(dev), bool), 0,
        )  # fmt: skip
        rows = pa.table(
            {
                "query": [query for query, _ in pairs],
                "document": [document for _, document in pairs],
                "negatives": pa.array([[] for _ in pairs], pa.list_(pa.string())),
                "score": pa.array([None] * len(pairs), pa.float64()),
            }
        )
        model = load(base)
        known = Documents(base, document_identity(base), texts, _encoded(model, texts, "document"))
        own = Searched(data, _encoded(model, data.queries, "query"), known.vectors[: len(data.documents)])
        if general is not None:
            general = replace(general, data=replace(general.data, name=f"general set after {data.name}"))
        return cls(own, general, base, known, chosen, rows)

    def tuned(self, seed: int, folder: Path, **settings: Any) -> tuple[Any, float]:
        """Train one candidate; returns what it says of itself, and CPU seconds."""
        training = Training(base_model=str(self.base), seed=seed, max_length=64, precision="bf16", **settings)
        against, start = None, FROM_BASE
        if training.side == "query":
            encoder = query_side.encoder_of(self.base, "document", folder.with_name(f"{folder.name}-start"))
            against, start = self.known, Start(folder=encoder)
        job = Job(self.rows, self.dev, self.known.texts, training, start, folder, None, None, time.time(), against)
        clock = Clock()
        found = train_here(ALONE, lambda *_: None, job)
        return found, clock.read()[1]

    def of_base(self) -> Iterator[Run]:
        """What the base model does."""
        for searched in filter(None, (self.own, self.general)):
            yield searched.rank(BASE, searched.queries, searched.documents)

    def seed(self, seed: int) -> Iterator[Run]:
        """All ways of one seed."""
        own, old = self.own, self.own.documents
        with TemporaryDirectory() as name:
            trained, seconds = self.tuned(seed, Path(name) / "both", average_weights=True)
            model = load(Path(name) / "both")
            clock = Clock()
            averaged = _both(model, own.data)
            taken = clock.read()[1]
            yield own.rank(AVERAGE, *averaged, training=seconds, encoding=taken, alpha=trained.alpha)
            yield from self._generally(AVERAGE, model)
            both = averaged
            if trained.alpha < 1.0:  # the tuned weights lie further on the same line
                _further(model, load(self.base), trained.alpha)
                both = _both(model, own.data)
            yield own.rank(BOTH, *both, training=seconds, encoding=taken)
            yield from self._generally(BOTH, model)
            yield own.rank(OLD, both[0], old, training=seconds)
            mixed = np.where(np.random.default_rng(seed).random(len(old))[:, None] < 0.5, both[1], old)
            yield own.rank(HALF, both[0], mixed, training=seconds, encoding=taken / 2)
            for way, epochs in ((QUERY, 1), (QUERY_3, 3)):
                _, seconds = self.tuned(seed, Path(name) / str(epochs), side="query", epochs=epochs)
                model = load(Path(name) / str(epochs))
                yield own.rank(way, _encoded(model, own.data.queries, "query"), old, training=seconds)
                yield from self._generally(way, model, documents_stay=True)

    def _generally(self, way: str, model: Any, documents_stay: bool = False) -> Iterator[Run]:
        """A tuned model on the general set."""
        if self.general is not None:
            queries = _encoded(model, self.general.data.queries, "query")
            stay = self.general.documents
            documents = stay if documents_stay else _encoded(model, self.general.data.documents, "document")
            yield self.general.rank(way, queries, documents)


def _both(model: Any, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of a set's queries, and of its documents."""
    return _encoded(model, data.queries, "query"), _encoded(model, data.documents, "document")


def _encoded(model: Any, texts: Sequence[str], role: Role) -> np.ndarray:
    """Vectors by the path that is the faster one on processors with bf16."""
    return encode(model, texts, role, path=BF16)


def _further(model: Any, base: Any, alpha: float) -> None:
    """Undo an average: the weights it was made of, from the average and the base model's."""
    before = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name] + (parameter - before[name]) / alpha)


# --- figures -----------------------------------------------------------------------------------------------------


def results(runs: Sequence[Run]) -> list[Result]:
    """Per data set and way: medians over the seeds of quality and of seconds."""
    found: list[Result] = []
    for name in dict.fromkeys(run.data for run in runs):
        ways = dict.fromkeys(run.way for run in runs if run.data == name)
        of_way = {way: [run for run in runs if (run.data, run.way) == (name, way)] for way in ways}
        for value, label in (("recall_at_10", "Recall@10"), ("mrr", "MRR")):
            figures = {way: [float(getattr(run, value).mean()) for run in some] for way, some in of_way.items()}
            found += summarise(f"{name}: {label}", figures, unit="", compared=False)
        taken = {way: [run.training + run.encoding for run in some] for way, some in of_way.items()}
        seconds = {way: some for way, some in taken.items() if any(some)}
        if seconds:
            found += summarise(f"{name}: CPU time, documents included", {BOTH: seconds.pop(BOTH), **seconds}, unit="s")
    return found


def gains(runs: Sequence[Run], way: str, than: str) -> list[str]:
    """The mean difference of two ways with a 95% interval by bootstrap over queries, per data set; the worst seed."""
    lines = []
    compared = {run.data for run in runs if run.way == way} & {run.data for run in runs if run.way == than}
    for name in sorted(compared):
        said = []
        for value, label in (("recall_at_10", "Recall@10"), ("mrr", "MRR")):
            one, other = (
                np.stack([getattr(run, value) for run in runs if (run.data, run.way) == (name, which)])
                for which in (way, than)
            )
            differences = one - other  # (seeds or 1, queries)
            mean = differences.mean(axis=0)
            drawn = np.random.default_rng(0).integers(0, len(mean), (2_000, len(mean)))
            low, high = np.percentile(mean[drawn].mean(axis=1), [2.5, 97.5])
            worst = differences.mean(axis=1).min()
            said.append(f"{label} {mean.mean():+.3f} ({low:+.3f} to {high:+.3f}; worst seed {worst:+.3f})")
        lines.append(f"{name}: {way}, less {than}: {', '.join(said)}.")
    return lines


def main(argv: Sequence[str] | None = None) -> list[Run]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=500, help=f"labelled pairs per data set, {_DEV} of them for dev")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=250, help="most test queries per data set")
    parser.add_argument("--documents", type=int, default=1_000, help="about as many documents are searched")
    parser.add_argument("--nl2bash", type=Path, default=BESIDE, help="folder of the nl2bash data, where there is one")
    parser.add_argument("--general", type=Path, default=BESIDE.with_name("scifact"), help="folder of a general set")
    parser.add_argument("--base", default=Training().base_model)
    chosen = parser.parse_args(argv)
    if chosen.quick:
        chosen.pairs, chosen.seeds, chosen.queries, chosen.documents = _DEV + 32, 1, 30, 60
    sets = [docstrings(chosen.pairs)]
    if not chosen.quick:
        sets.append(aws(chosen.pairs))
    if chosen.nl2bash.is_dir() and not chosen.quick:
        sets.append(nl2bash(chosen.nl2bash, chosen.pairs))
    base = resolve_model(chosen.base)
    general = None
    if chosen.general.is_dir() and not chosen.quick:
        general = Searched.of(cut(labelled_set(chosen.general), _GENERAL, chosen.documents), base)
    benches = [Bench.of(cut(data, chosen.queries, chosen.documents), base, general) for data in sets]
    runs = [run for bench in benches for run in bench.of_base()]
    for seed in range(chosen.seeds):
        for bench in benches:
            for run in bench.seed(seed):
                runs.append(run)
                quality = f"{run.recall_at_10.mean():.4f} {run.mrr.mean():.4f}"
                print(
                    seed, run.data, run.way, quality, f"{run.training:.1f} {run.encoding:.1f} {run.alpha}", flush=True
                )
    alphas = sorted(run.alpha for run in runs if run.way == AVERAGE and run.training)
    sizes = ", ".join(
        f"{data.name} {len(data.queries):,} queries and {len(data.documents):,} documents"
        for data in [*(bench.own.data for bench in benches), *([general.data] if general else [])]
    )
    notes = [
        f"{chosen.pairs - _DEV} training pairs and {_DEV} dev pairs per data set; searched are {sizes}, cut to "
        f"{_CHARS} characters. {chosen.seeds} seeds; {torch.get_num_threads()} threads. Intervals are of 95%, by "
        "bootstrap over test queries.",
        *gains(runs, BOTH, BASE),
        *gains(runs, QUERY, BOTH),
        *gains(runs, QUERY_3, BOTH),
        *gains(runs, QUERY_3, OLD),
        *gains(runs, HALF, BASE),
        *gains(runs, AVERAGE, BOTH),
        f"Shares of the way that dev chose: {', '.join(f'{alpha:g}' for alpha in alphas)}.",
    ]
    show("query", results(runs), chosen, packages=("torch", "sentence-transformers", "transformers"), notes=notes)
    return runs


if __name__ == "__main__":
    main()
