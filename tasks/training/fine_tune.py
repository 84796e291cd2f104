"""Labelled rows -> a fine-tuned sentence-transformers folder.

One loop in plain PyTorch: every batch is one loss over all its texts, encoded in length buckets (`embedder.py`), on a
GPU packed where the model allows (`packed.py`), without dropout, in the precision that the machine is fast at
(`hardware.py`).
What is saved is the best of the checkpoints that dev scored, as data: safetensors, JSON and text, nothing to unpickle.
The same rows, settings and seed give the same weights on the same CPU and number of threads; not on a GPU, which
adds in no fixed order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from pydantic import TypeAdapter

from tasks.config import Training
from tasks.encoding import Role, encode
from tasks.records import Estimate, Trained
from tasks.training import cuts, hardware, mining, model_card, query_side, saving
from tasks.training.checkpoints import Checkpoints
from tasks.training.corpus import Corpus, Documents
from tasks.training.examples import Examples
from tasks.training.job import Job
from tasks.training.launch import ProcessesFailedError, launch
from tasks.training.loop import Loop
from tasks.training.mining import Vectors
from tasks.training.plan import BASE
from tasks.training.processes import ALONE, Group
from tasks.training.rehearsal import rehearse, rehearse_forward, rehearse_joined
from tasks.training.rendezvous import Rendezvous, RendezvousError
from tasks.training.result import TrainingError
from tasks.training.start import FROM_BASE, Start, dimensions, open_start, restore_attention

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from tasks.dataset import EvaluationSet

__all__ = ["BASE", "FROM_BASE", "Estimate", "Start", "Trained", "TrainingError", "train"]

Progress = Callable[[int, int, float], None]
"""Called with (steps done, planned steps, loss) after each step."""


def train(  # noqa: PLR0913 # half of them are hooks with defaults, for the steps of a night
    train: pa.Table,
    dev: EvaluationSet | None,
    documents: Sequence[str],
    training: Training,
    folder: Path,
    *,
    start: Start = FROM_BASE,
    against: Documents | None = None,
    commit: int | None = None,
    on_progress: Progress | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
    checkpoints: Checkpoints | None = None,
    rendezvous: Rendezvous | None = None,
) -> Trained:
    """Fine-tune `training.base_model`, or what was trained from it, on rows of the train side; save it into `folder`.

    Args:
        train: columns query, document, negatives (list of texts) and score (null for pairs and triplets).
        dev: picks the best checkpoint and stops early; None, or fewer than 8 queries: the last step is taken.
        documents: the corpus that `dev.relevant` refers to.
        training: the settings.
        folder: must not exist, or be empty. Of several nodes only the one whose process leads saves there.
        start: the model to start from, where that is not the base model.
        against: what the query side is trained against, and whose encoder of documents is kept; None: the base model's
            documents. A query encoder that starts from `BASE` begins as the encoder of documents, another as the
            queries' encoder of what the documents are of.
        commit: the data commit, for the model card.
        on_progress: called after each step.
        on_estimate: called once before the first step with the expected duration and cost.
        checkpoints: where the state is kept every `training.checkpoint_minutes`, and looked for first.
        rendezvous: where the nodes meet; needed when `training.nodes` is above 1.

    Raises:
        TrainingError: before anything is computed, for an unusable base model, settings that contradict each other
            or the model, and rows that cannot be trained on; later, when the loss is not a number.
        ModelError: likewise, where the query side of a model cannot be trained alone.
    """
    began = time.time()
    _examples(train, training)
    if folder.exists() and any(folder.iterdir()):
        raise TrainingError(f"{folder} is not empty")

    def report(what: str, *values: Any) -> None:
        if what == "step" and on_progress is not None:
            on_progress(*values)
        if what == "estimate" and on_estimate is not None:
            on_estimate(Estimate(*values))

    if training.nodes > 1 and rendezvous is None:
        raise TrainingError(
            f"nodes is {training.nodes}, but RATCHET_RENDEZVOUS (host:port), where they meet, is not set"
        )
    gpus = hardware.gpus()
    if gpus and training.processes > gpus:
        raise TrainingError(
            f"processes is {training.processes}, but this machine has {gpus} GPU(s), one for each process at most: "
            "lower training.processes"
        )
    alone = training.processes == training.nodes == 1
    device = None if alone else "cpu"
    with TemporaryDirectory(prefix="ratchet-queries-") as scratch:
        if training.side == "query":
            against = against or query_side.known_documents(start.path(training), documents, train)
            role: Role = "document" if start.name == BASE else "query"
            start = Start(start.name, query_side.encoder_of(against.folder, role, Path(scratch) / "queries"))
        rehearse(training, start, device, next(parent for parent in folder.absolute().parents if parent.is_dir()))
        if against is not None and start.folder is not None:
            rehearse_joined(start.folder, against.folder, start.described(training), device)
        job = Job(train, dev, documents, training, start, folder, commit, checkpoints, began, against)
        if alone:
            return run(ALONE, report, job)
        dimensions(open_start(training, start, "cpu"), training)  # what is wrong with these is said once, here
        return _launched(job, report, rendezvous)


def _launched(job: Job, report: Callable[..., None], rendezvous: Rendezvous | None) -> Trained:
    """Train in processes of their own."""
    try:
        with TemporaryDirectory(prefix="ratchet-train-") as name:
            job.write(Path(name))
            result = launch(Path(name), job.training.processes, on_line=report, rendezvous=rendezvous)
    except ProcessesFailedError as error:
        raise TrainingError(str(error)) from error
    except RendezvousError as error:
        where = rendezvous.endpoint if rendezvous else "this machine"
        raise TrainingError(f"the {job.training.nodes} nodes did not meet at {where}: {error}") from error
    if "error" in result:
        raise TrainingError(result["error"])
    return TypeAdapter(Trained).validate_python(result["trained"])


def run(group: Group, report: Callable[..., None], job: Job) -> Trained:
    """Train in this process, one of a group or alone; the leader saves.

    `report` is called in every process, with "estimate" and the seconds and dollars expected, then with "step" and the
    arguments of `Progress`.
    """
    began = time.perf_counter() - (time.time() - job.began)
    training = job.training
    model = open_start(training, job.start)
    examples, mined = _examples(job.rows, training), 0
    if training.hard_negatives:
        rows, mined = _mined(job, examples, model, group)
        examples = Examples(rows, triplets=training.loss == "triplet")
    corpus = cut = None
    if job.against is None:
        documents = list(dict.fromkeys([*job.documents, *examples.documents]))
        cut = cuts.measure(model, documents, training.max_length)
    else:
        corpus = Corpus(job.against, examples, dimensions(model, training), training.seed)
    loop = Loop(model, job.start, examples, training, began, group, corpus)
    columns = list(zip(loop.texts, (examples.queries, examples.documents), strict=False))
    rehearse_forward(loop.embedder, columns, job.start.described(training))
    if job.checkpoints is not None:
        loop.resume(job.checkpoints)
    loop.estimate(report)
    loop.fit(job.dev, job.documents, report, job.checkpoints)
    trained = replace(loop.outcome(mined), cuts=cut)
    if group.leads:
        restore_attention(model)
        card = model_card.text(FROM_BASE.path(training), training, trained, job.commit)
        _save(model, job, card)
    return trained


def _save(model: SentenceTransformer, job: Job, card: str) -> None:
    """The model as a folder; a query encoder beside the documents that it was trained against."""
    described = job.start.described(job.training)
    if job.against is None:
        saving.save(model, job.folder, card, described)
        return
    with TemporaryDirectory(prefix="ratchet-queries-") as scratch:
        saving.save(model, Path(scratch) / "queries", card, described)
        query_side.join(Path(scratch) / "queries", job.against.folder, job.folder)
    (job.folder / "README.md").write_text(card, encoding="utf-8")


def _examples(train: pa.Table, training: Training) -> Examples:
    """Number the texts, and refuse rows from which the wanted loss could learn nothing."""
    missing = {"query", "document", "negatives", "score"} - set(train.column_names)
    if missing:
        raise TrainingError(f"the training rows lack the columns {sorted(missing)}")
    if train.num_rows == 0:
        raise TrainingError("there are no rows on the train side")
    examples = Examples(train, triplets=training.loss == "triplet")
    if training.loss == "triplet" and "triplet" not in examples.counts and not training.hard_negatives:
        raise TrainingError("loss is 'triplet', but no row on the train side has a negative")
    if set(examples.counts) == {"ranking"} and examples.distinct_documents < 2:
        raise TrainingError("all rows on the train side have the same document: there is nothing to rank it above")
    return examples


def _mined(job: Job, examples: Examples, model: SentenceTransformer, group: Group) -> tuple[pa.Table, int]:
    """Add hard negatives, found with the model that training starts from.

    Each process encodes its share. The leader alone ranks: on another processor a near-tie may end differently, and
    then the processes would train different batches.
    """
    queries = _vectors(model, examples.queries, "query", group)
    known = job.against
    documents = known.of(examples.documents) if known else _vectors(model, examples.documents, "document", group)
    count = job.training.hard_negatives
    found = torch.full((job.rows.num_rows, count), -1, dtype=torch.int64)
    if group.leads:
        found = torch.from_numpy(mining.find(job.rows, examples, queries, documents, count))
    return mining.add(job.rows, examples, group.share(found).numpy())


def _vectors(model: SentenceTransformer, texts: Sequence[str], role: Role, group: Group) -> Vectors:
    """Vectors of all texts, of which each process encodes its share."""
    own = torch.from_numpy(encode(model, texts[group.rank :: group.size], role))
    return group.gather(own.to(model.device), len(texts)).cpu().numpy()
