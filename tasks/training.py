"""Labelled rows -> a fine-tuned sentence-transformers folder.

One loop in plain PyTorch: every batch is one loss over all its texts, encoded in length buckets (`buckets.py`), packed
where the model allows (`packed.py`), without dropout, in the precision that the machine is fast at (`hardware.py`).
What is saved is the best of the checkpoints that dev scored, as data: safetensors, JSON and text, nothing to unpickle.
The same rows, settings and seed give the same weights on the same machine and number of threads.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tasks import hardware, losses, mining, model_card, packed
from tasks.batches import Batch, Examples, order
from tasks.buckets import Embedder, Precision, Texts
from tasks.checkpoints import Checkpoint, Checkpoints
from tasks.config import Training
from tasks.dev import MIN_QUERIES, Dev, Score
from tasks.encoding import ModelError, encode, fingerprint, load, resolve_model
from tasks.processes import ALONE, Group, launch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from tasks.dataset import EvaluationSet

Progress = Callable[[int, int, float], None]
"""Called with (steps done, planned steps, loss) after each step."""

MAX_GRADIENT_NORM: Final = 1.0
DEV_EVALUATIONS: Final = 4
"""Dev evaluations in a run of one epoch; longer runs have two more per further epoch."""

PATIENCE: Final = 3
"""Dev evaluations in a row without a better MRR after which training stops."""

_DEV_SHARE: Final = 0.3
"""Texts encoded for dev / texts trained on. A training text costs three times as much (forward and twice that
backward), so dev costs about a tenth of the training."""

_SAVED: Final = frozenset({".safetensors", ".json", ".txt", ".md", ".model"})
"""Kinds of file a saved model may consist of (.model: a SentencePiece vocabulary)."""


_NOT_COMPUTED: Final = frozenset(
    {"base_model", "max_minutes", "max_cost", "price_per_hour", "checkpoint_minutes", "processes"}
)
"""Settings that change nothing about a run's steps (the base model counts by its weights)."""


_PROBE: Final = 16
"""Pairs on which the duration is measured beforehand."""


class TrainingError(Exception):
    """Training cannot start, or came to nothing; the message says which setting or input is wrong."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take, measured before it on one of its batches."""

    seconds: float
    dollars: float


@dataclass(frozen=True)
class Trained:
    """What a fine-tuning run did.

    Attributes:
        steps, planned_steps: optimiser steps done, and those of the full run.
        pairs: rows that went through, repeats over epochs counted.
        rows: rows of the train side, by the loss that they train.
        mined: hard negatives that were added to the rows.
        losses: loss of each step (the sum over Matryoshka dimensions).
        dev: dev scores, the first those of the model started from; empty without enough dev queries.
        best_step: the step whose weights were saved.
        resumed: the step of the checkpoint from which it went on; 0 if it began at the beginning.
        stopped: why it ended before `planned_steps`; None if it did not.
        dims: Matryoshka dimensions trained, the full one first.
        precision, packed, bucket_tokens, cached: how it was computed.
        tokens, padded_tokens: tokens encoded, and computed for them with padding.
        estimate: what it was expected to take; seconds, dollars: what it took.
        peak_memory: bytes.
    """

    steps: int
    planned_steps: int
    pairs: int
    rows: dict[str, int]
    mined: int
    losses: tuple[float, ...]
    dev: tuple[Score, ...]
    best_step: int
    resumed: int
    stopped: str | None
    dims: tuple[int, ...]
    precision: Precision
    packed: bool
    bucket_tokens: int
    cached: bool
    tokens: int
    padded_tokens: int
    estimate: Estimate
    seconds: float
    dollars: float
    peak_memory: int


def train(
    train: pa.Table,
    dev: EvaluationSet | None,
    documents: Sequence[str],
    training: Training,
    folder: Path,
    *,
    commit: int | None = None,
    on_progress: Progress | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Fine-tune `training.base_model` on the rows of the train side and save it into `folder`.

    Args:
        train: columns query, document, negatives (list of texts) and score (null for pairs and triplets).
        dev: picks the best checkpoint and stops early; None, or fewer than 8 queries: the last step is taken.
        documents: the corpus that `dev.relevant` refers to.
        training: the settings.
        folder: must not exist, or be empty.
        commit: the data commit, for the model card.
        on_progress: called after each step.
        on_estimate: called once before the first step with the expected duration and cost.
        checkpoints: where the state is kept every `training.checkpoint_minutes`, and looked for first.

    Raises:
        TrainingError: before anything is computed, for an unusable base model, settings that contradict each other
            or the model, and rows that cannot be trained on; later, when the loss is no number.
    """
    start = time.perf_counter()
    examples = _examples(train, training)
    if folder.exists() and any(folder.iterdir()):
        raise TrainingError(f"{folder} is not empty")

    def report(what: str, *values: Any) -> None:
        if what == "step" and on_progress is not None:
            on_progress(*values)
        if what == "estimate" and on_estimate is not None:
            on_estimate(Estimate(*values))

    mined = 0
    if training.hard_negatives:
        train, mined = _mined(train, examples, training)
        examples = Examples(train, triplets=training.loss == "triplet")
    arguments = (examples, mined, dev, documents, training, folder, commit, checkpoints, start)
    if training.processes == 1:
        return _run(ALONE, report, *arguments)
    _dims(_base_model(training), training)  # what is wrong with these is said here, not in each process
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        outcome = launch(training.processes, _outcome, *arguments, on_line=report)
    except ChildFailedError as error:
        raise TrainingError(f"the {training.processes} processes failed: {error}") from error
    if isinstance(outcome, TrainingError):
        raise outcome
    return outcome


def _outcome(group: Group, report: Callable[..., None], *arguments: Any) -> Trained | TrainingError:
    """`_run`, with an error that all processes share as its result: starting them again would not help."""
    try:
        return _run(group, report, *arguments)
    except TrainingError as error:
        return error


def _run(
    group: Group,
    report: Callable[..., None],
    examples: Examples,
    mined: int,
    dev: EvaluationSet | None,
    documents: Sequence[str],
    training: Training,
    folder: Path,
    commit: int | None,
    checkpoints: Checkpoints | None,
    start: float,
) -> Trained:
    """Train in this process, one of a group or alone; the leader saves."""
    model = _base_model(training)
    run = _Run(model, examples, training, _dims(model, training), start, group)
    if checkpoints is not None:
        run.resume(checkpoints)
    run.estimate(report)
    run.fit(dev, documents, report, checkpoints)
    trained = run.outcome(mined)
    if group.leads:
        _save(model, run.base, folder, model_card.text(run.base, training, trained, commit))
    return trained


class _Run:
    """One fine-tuning run: the model, its optimiser, and what has happened so far."""

    def __init__(
        self,
        model: SentenceTransformer,
        examples: Examples,
        training: Training,
        dims: tuple[int, ...],
        start: float,
        group: Group,
    ) -> None:
        self.model = model
        self.group = group
        self.examples = examples
        self.training = training
        self.dims = dims
        self.start = start
        self.base = resolve_model(training.base_model)
        self.losses: list[float] = []
        self.scores: list[Score] = []
        self.pairs = 0
        self.best: dict[str, Tensor] | None = None
        self.best_step = 0
        self.resumed = 0
        self.stopped: str | None = None
        self.cached = False
        self.planned = training.epochs * examples.steps(training.batch_size)
        self.expected = Estimate(0.0, 0.0)

        _seed(training.seed)
        self._serving_length = model.max_seq_length
        if model.max_seq_length is not None:
            model.max_seq_length = min(training.max_length, model.max_seq_length)
        self.queries = Texts(model, examples.queries, "query")
        self.documents = Texts(model, examples.documents, "document")
        self.embedder = _embedder(model, self.documents, training, group)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=training.learning_rate, weight_decay=0.0)

    # --- the run -----------------------------------------------------------------------------------------

    def estimate(self, report: Callable[..., None]) -> None:
        """Measure the loss and gradients of a few pairs, without a step, and say what the whole run will take."""
        counted = self.embedder.tokens, self.embedder.padded_tokens
        batch = next(iter(order(1, min(_PROBE, self.training.batch_size), self.training.seed, self.examples)))
        begun = time.perf_counter()
        self._gradients(batch)
        per_pair = (time.perf_counter() - begun) / batch.pairs
        self.optimizer.zero_grad()
        self.embedder.tokens, self.embedder.padded_tokens = counted
        left = self.training.epochs * len(self.examples) * (1 - len(self.losses) / self.planned)
        seconds = self._seconds() + per_pair * left * (1 + _DEV_SHARE / 3)
        self.expected = Estimate(seconds, self._dollars(seconds))
        report("estimate", self.expected.seconds, self.expected.dollars)

    def fit(
        self,
        dev: EvaluationSet | None,
        documents: Sequence[str],
        report: Callable[..., None],
        checkpoints: Checkpoints | None,
    ) -> None:
        """Take the steps; afterwards the model holds the best weights and its serving settings."""
        scored = self._dev(dev, documents)
        when = set(_evaluation_steps(self.planned, self.training.epochs)) if scored else set()
        if scored and not self.scores:
            self.scores.append(self._score(scored, 0))
        batches = order(self.training.epochs, self.training.batch_size, self.training.seed, self.examples)
        saved = time.perf_counter()
        done = len(self.losses)
        for step, batch in enumerate(islice(batches, done, self.planned), start=done + 1):
            self.stopped = self._reason_to_stop()
            if self.stopped is not None:
                break
            self._step(step, batch)
            report("step", step, self.planned, self.losses[-1])
            if scored and (step in when or self._late()):
                self._take_score(self._score(scored, step))
            due = time.perf_counter() - saved >= self.training.checkpoint_minutes * 60
            if checkpoints is not None and self.group.leads and due:
                checkpoints.save(step, self.checkpoint())
                saved = time.perf_counter()
        if self.best is None:
            self.best_step = len(self.losses)
        elif self.best_step < len(self.losses):
            self.model.load_state_dict(self.best)
        self.model.max_seq_length = self._serving_length

    def _score(self, dev: Dev, step: int) -> Score:
        try:
            return dev.score(self.embedder, step)
        except ValueError as error:
            raise TrainingError(f"after step {step} the model's vectors cannot be ranked: {error}") from error

    def _take_score(self, score: Score) -> None:
        """Note a dev score; the weights of the best so far (of equals the latest) are kept."""
        self.scores.append(score)
        if self.best is None or score.mrr >= max(former.mrr for former in self.scores[1:]):
            self.best_step = score.step
            self.best = _copied(self.model.state_dict())

    def _late(self) -> bool:
        """Whether a limit has been reached, by the leader's clock."""
        return bool(self.group.agree(self._limit() is not None))

    def _limit(self) -> str | None:
        """The limit of time or money that has been reached, if one has."""
        settings, seconds = self.training, self._seconds()
        if settings.max_minutes is not None and seconds >= settings.max_minutes * 60:
            return f"max_minutes ({settings.max_minutes:g}) reached"
        if settings.max_cost is not None and self._dollars(seconds) >= settings.max_cost:
            return f"max_cost ({settings.max_cost:g}) reached"
        return None

    def _reason_to_stop(self) -> str | None:
        """Why no further step should be taken, if so; the first always is."""
        if self.losses and self._late():
            return self._limit() or "the limit of time or cost reached"
        if self.best is not None and sum(score.step > self.best_step for score in self.scores) >= PATIENCE:
            return f"no better dev MRR in {PATIENCE} evaluations"
        return None

    def _step(self, step: int, batch: Batch) -> None:
        rate = self.training.learning_rate * _schedule(step, self.planned, self.training.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients(batch)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {step}: lower the learning rate ({rate:.1g} there)")
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.losses.append(loss)
        self.pairs += batch.pairs

    def _gradients(self, batch: Batch) -> float:
        """Leave the gradients of one batch's loss in the parameters; when memory runs out, with smaller buckets."""
        while True:
            self.optimizer.zero_grad()
            try:
                loss = self._cached_gradients(batch) if self.cached else self._plain_gradients(batch)
            except (RuntimeError, MemoryError) as error:
                exhausted = self.cached and self.embedder.chunk_tokens < 2
                if exhausted or self.group.size > 1 or not hardware.out_of_memory(error):
                    raise  # one of several processes cannot go back alone
            else:
                self.group.sum_gradients(self.parameters)
                return loss
            if self.cached:
                self.embedder.chunk_tokens //= 2
            self.cached = True

    def _plain_gradients(self, batch: Batch) -> float:
        queries, documents = self.embedder.embed((self.queries, batch.queries), (self.documents, batch.documents))
        loss = batch_loss(batch, queries, documents, self.dims)
        torch.autograd.backward([loss])
        return loss.item()

    def _cached_gradients(self, batch: Batch) -> float:
        """The same loss and gradients with one chunk's activations at a time, for one more forward (Gao 2021)."""
        columns = ((self.queries, batch.queries), (self.documents, batch.documents))
        with torch.no_grad():
            vectors = self.embedder.embed(*columns)
        leaves = [column.requires_grad_() for column in vectors]
        loss = batch_loss(batch, leaves[0], leaves[1], self.dims)
        gradients = torch.autograd.grad(loss, leaves)
        for (texts, numbers), gradient in zip(columns, gradients, strict=True):
            self.embedder.backward(texts, numbers, gradient)
        return loss.item()

    # --- checkpoints -------------------------------------------------------------------------------------

    @cached_property
    def identity(self) -> str:
        """Hash of what a run computes: a checkpoint of other rows, settings or weights is none of this run's."""
        settings = self.training.model_dump(mode="json", exclude=set(_NOT_COMPUTED))
        found = [settings, fingerprint(self.base), self.examples.fingerprint, torch.__version__]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def checkpoint(self) -> Checkpoint:
        """Everything needed to go on after the steps taken so far; the order of batches follows from the seed."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in (self.best or {}).items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        state = {
            "identity": self.identity,
            "losses": self.losses,
            "scores": [asdict(score) for score in self.scores],
            "best_step": self.best_step,
            "pairs": self.pairs,
            "cached": self.cached,
            "precision": self.embedder.precision,
            "chunk_tokens": self.embedder.chunk_tokens,
            "tokens": self.embedder.tokens,
            "padded_tokens": self.embedder.padded_tokens,
            "seconds": self._seconds(),
        }
        return Checkpoint(_copied(tensors) | {"random": torch.get_rng_state()}, state)

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go on from the newest checkpoint of this run, if there is one."""
        found = checkpoints.latest(self.identity)
        if found is None:
            return
        tensors = found.tensors
        self.model.load_state_dict(_under("model.", tensors))
        self.best = _under("best.", tensors) or None
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            number, _, what = name.partition(".")
            moments.setdefault(int(number), {})[what] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        torch.set_rng_state(tensors["random"])
        self.losses = list(found.state["losses"])
        self.scores = [Score(**score) for score in found.state["scores"]]
        self.best_step, self.pairs = found.state["best_step"], found.state["pairs"]
        self.cached, self.embedder.precision = found.state["cached"], found.state["precision"]
        self.embedder.chunk_tokens = found.state["chunk_tokens"]
        self.embedder.tokens, self.embedder.padded_tokens = found.state["tokens"], found.state["padded_tokens"]
        self.resumed = len(self.losses)
        self.start = min(self.start, time.perf_counter() - found.state["seconds"])

    # --- dev ---------------------------------------------------------------------------------------------

    def _dev(self, dev: EvaluationSet | None, documents: Sequence[str]) -> Dev | None:
        if dev is None or len(dev.queries) < MIN_QUERIES:
            return None
        evaluations = 1 + len(_evaluation_steps(self.planned, self.training.epochs))
        texts = int(_DEV_SHARE * 2 * len(self.examples) * self.training.epochs / evaluations)
        return Dev(self.model, dev, documents, texts, self.training.seed)

    # --- the account -------------------------------------------------------------------------------------

    def outcome(self, mined: int) -> Trained:
        """Everything there is to say about the run so far."""
        seconds = self._seconds()
        return Trained(
            steps=len(self.losses),
            planned_steps=self.planned,
            pairs=self.pairs,
            rows={str(kind): count for kind, count in self.examples.counts.items()},
            mined=mined,
            losses=tuple(self.losses),
            dev=tuple(self.scores),
            best_step=self.best_step,
            resumed=self.resumed,
            stopped=self.stopped,
            dims=self.dims,
            precision=self.embedder.precision,
            packed=self.embedder.packed,
            bucket_tokens=self.embedder.chunk_tokens,
            cached=self.cached,
            tokens=self.group.total(self.embedder.tokens),
            padded_tokens=self.group.total(self.embedder.padded_tokens),
            estimate=self.expected,
            seconds=seconds,
            dollars=self._dollars(seconds),
            peak_memory=hardware.peak_memory(),
        )

    def _seconds(self) -> float:
        """Duration so far, that of a killed predecessor up to its checkpoint included."""
        return time.perf_counter() - self.start

    def _dollars(self, seconds: float) -> float:
        return seconds / 3600 * self.training.price_per_hour


def batch_loss(batch: Batch, queries: Tensor, documents: Tensor, dims: Sequence[int]) -> Tensor:
    """The loss of one batch, summed over the dimensions.

    Args:
        batch: which loss, and who is whose positive.
        queries: vectors of `batch.queries`, shape (n, d).
        documents: vectors of `batch.documents`, shape (m, d).
        dims: what the vectors are cut to.
    """
    device = queries.device

    def ranking(dim: int) -> Tensor:
        positives = torch.from_numpy(batch.positives).to(device)
        masked = torch.from_numpy(batch.masked).to(device) if batch.masked.any() else None
        return losses.ranking_loss(queries[:, :dim], documents[:, :dim], positives, masked)

    def triplet(dim: int) -> Tensor:
        positives, negatives = documents[:, :dim].chunk(2)
        return losses.triplet_loss(queries[:, :dim], positives, negatives)

    def cosent(dim: int) -> Tensor:
        return losses.cosent_loss(queries[:, :dim], documents[:, :dim], torch.from_numpy(batch.scores).to(device))

    return losses.matryoshka({"ranking": ranking, "triplet": triplet, "cosent": cosent}[batch.kind], dims)


# --- before the run ----------------------------------------------------------------------------------------------


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


def _base_model(training: Training) -> SentenceTransformer:
    """Load the base model in fp32 with the attention kernel that is fast in training, dropout off."""
    where = hardware.device()
    try:
        model = load(resolve_model(training.base_model), device=str(where))
    except ModelError as error:
        raise TrainingError(f"base model {training.base_model!r}: {error}") from error
    except Exception as error:  # the library raises whatever a broken file leads to
        raise TrainingError(f"base model {training.base_model!r} cannot be loaded: {error}") from error
    _set_attention(model, hardware.attention(where))
    if training.quick:
        _freeze_lower_half(model)
    return model.eval()  # as opposed to train(): the only difference is dropout


def _freeze_lower_half(model: SentenceTransformer) -> None:
    """Leave the embeddings and the first half of the layers as they are: no gradient has to reach them."""
    inner = model.transformers_model
    stacks = [] if inner is None else [module for module in inner.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = max(stacks, key=len, default=torch.nn.ModuleList())
    if inner is None or len(layers) < 2:
        raise TrainingError("quick needs a model with two or more layers, of which the upper half can be trained")
    trained = next(layers[len(layers) // 2].parameters())
    for parameter in inner.parameters():  # in order of registration: embeddings, layers, what follows them
        if parameter is trained:
            break
        parameter.requires_grad_(False)


def _mined(train: pa.Table, examples: Examples, training: Training) -> tuple[pa.Table, int]:
    """Add hard negatives, found with the model that training starts from."""
    model = _base_model(training)
    queries, documents = encode(model, examples.queries, "query"), encode(model, examples.documents, "document")
    return mining.mine(train, examples, queries, documents, training.hard_negatives)


def _dims(model: SentenceTransformer, training: Training) -> tuple[int, ...]:
    """The full dimension, then the smaller Matryoshka dimensions."""
    full = model.get_embedding_dimension()
    if full is None:
        raise TrainingError(f"base model {training.base_model!r} does not say how long its vectors are")
    above = [dim for dim in training.matryoshka_dims if dim > full]
    if above:
        raise TrainingError(f"matryoshka_dims {above} are above the base model's dimension {full}")
    return (full, *(dim for dim in training.matryoshka_dims if dim < full))


def _set_attention(model: SentenceTransformer, kernel: str) -> None:
    inner = model.transformers_model
    if inner is not None:
        inner.set_attn_implementation(kernel)


def _embedder(model: SentenceTransformer, texts: Texts, training: Training, group: Group) -> Embedder:
    """Choose packed or padded by comparing their vectors, and the precision by measurement."""
    plain = Embedder(model)
    if texts.tokenised and model.device.type == "cpu":
        kernel = hardware.attention(model.device)
        offset = packed.position_offset(model)
        candidate = Embedder(model, packed=True, position_offset=offset)
        shortest_to_longest = np.argsort(texts.lengths, kind="stable")
        probe = shortest_to_longest[np.linspace(0, len(shortest_to_longest) - 1, 8).astype(int)]
        with torch.no_grad():
            expected = plain.embed((texts, probe))[0]
        packed.register()
        _set_attention(model, packed.ATTENTION)
        if packed.agrees(lambda: expected, lambda: candidate.embed((texts, probe))[0]):
            plain = candidate
        else:
            _set_attention(model, kernel)
    if training.precision == "bf16" or (training.precision == "auto" and group.agree(hardware.bf16_pays(model.device))):
        plain.precision = "bf16"
    plain.group = group
    plain.tokens = plain.padded_tokens = 0
    return plain


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _seed(seed: int) -> None:
    """Seed every generator that a model may draw from (with dropout off, normally none is)."""
    torch.manual_seed(seed)


def _schedule(step: int, steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at a step (from 1): linearly up over the warmup, then down to 0 after the end."""
    warmup = math.ceil(steps * warmup_share)
    if step <= warmup:
        return step / warmup
    return (steps - step + 1) / (steps - warmup + 1)


def _evaluation_steps(steps: int, epochs: int) -> list[int]:
    """After which steps dev is scored: evenly spaced, the last always among them."""
    wanted = min(steps, DEV_EVALUATIONS + 2 * (epochs - 1))
    return sorted({round(steps * (place + 1) / wanted) for place in range(wanted)})


# --- after the run -----------------------------------------------------------------------------------------------


def _save(model: SentenceTransformer, base: Path, folder: Path, card: str) -> None:
    """Save as a plain sentence-transformers folder, and nothing in it that is code or a pickle."""
    inner = model.transformers_model
    if inner is not None:
        inner.set_attn_implementation("sdpa" if inner._supports_sdpa else "eager")
    tokenizer: Any = getattr(model, "tokenizer", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # what the last call truncated and padded to is no property of the model
        backend.no_truncation()
        backend.no_padding()
    model.save(str(folder), create_model_card=False, safe_serialization=True)
    (folder / "README.md").write_text(card, encoding="utf-8")
    foreign = [path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in _SAVED]
    if foreign:
        shutil.rmtree(folder)
        raise TrainingError(f"the model from {base} saves files of an unexpected kind: {', '.join(sorted(foreign))}")
