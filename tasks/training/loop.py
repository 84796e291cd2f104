"""The loop of a fine-tuning run in one process: steps, dev scores, limits, checkpoints, and the account of it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from tasks.config import NOT_COMPUTED, Training
from tasks.encoding import fingerprint
from tasks.records import DevScore, Estimate, Trained
from tasks.storage import StoreError
from tasks.training import averaging, hardware, losses
from tasks.training.checkpoints import Checkpoint, Checkpoints
from tasks.training.corpus import Corpus
from tasks.training.dev import MIN_QUERIES, Dev
from tasks.training.embedder import Column, Texts, probes
from tasks.training.examples import Batch, Examples, order
from tasks.training.memory import measure
from tasks.training.processes import Group
from tasks.training.result import TrainingError
from tasks.training.start import Start, choose_kernel, dimensions, distance, embedder, recompute_layers, shorten

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from tasks.dataset import EvaluationSet

_LOG: Final = logging.getLogger(__name__)

MAX_GRADIENT_NORM: Final = 1.0
DEV_EVALUATIONS: Final = 4
"""Dev evaluations in a run of one epoch; longer runs have two more per further epoch."""

PATIENCE: Final = 3
"""Dev evaluations in a row without a better MRR after which training stops."""

MISSED_CHECKPOINTS: Final = 3
"""Checkpoints in a row that the store did not take, after which training stops."""

_DEV_SHARE: Final = 0.3
"""Texts encoded for dev / texts trained on. A training text costs three times as much (forward and twice that
backward), so dev costs about a tenth of the training."""

_FIRST_SCALE: Final = 2.0**12
"""What the loss is multiplied by in fp16, at first: halved where a gradient overflows, doubled after 200 steps."""

_MORE: Final = 1.25
"""Tokens of the largest batches / those of the one that is looked at."""

_MARGIN: Final = 0.8
"""Share of the GPU's memory that is planned with: the rest is fragments, workspaces and the loss."""

_PROBE: Final = (4, 16)
"""Fewest and most pairs on which the duration is measured beforehand: about a fiftieth of the run in between."""


class Loop:
    """One fine-tuning run: the model, its optimiser, and what has happened so far.

    Args:
        model: from `start_model.open_start`; trained in place.
        start: where the model came from.
        examples: the training rows, numbered.
        training: the settings.
        began: `time.perf_counter()` when the run began, loading included.
        group: this process's place among those that train together.
        corpus: the documents that queries are trained against, where these are trained alone; `model` encodes queries.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        start: Start,
        examples: Examples,
        training: Training,
        began: float,
        group: Group,
        corpus: Corpus | None = None,
    ) -> None:
        self.model = model
        self.corpus = corpus
        self.group = group
        self.examples = examples
        self.training = training
        self.dims = dimensions(model, training)
        self.start = start
        self.began = began
        self.losses: list[float] = []
        self.scores: list[DevScore] = []
        self.pairs = 0
        self.best: dict[str, Tensor] | None = None
        self.best_step = 0
        self.averaged: dict[float, float] = {}  # share of the way to the tuned weights -> dev MRR
        self.resumed = 0
        self.stopped: str | None = None
        self.cached = False
        self.planned = training.epochs * examples.steps(training.batch_size)
        self.expected = Estimate(0.0, 0.0)
        self._missed = 0  # checkpoints in a row
        self._between_steps = True  # otherwise some weights have taken a step that others have not

        torch.manual_seed(training.seed)  # with dropout off, normally nothing is drawn from it
        self._restore_length = shorten(model, training.max_length)
        self.texts = [Texts(model, examples.queries, "query")]
        if corpus is None:
            self.texts.append(Texts(model, examples.documents, "document"))
        self.embedder = embedder(model, self.texts, training, group)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training.learning_rate, weight_decay=0.0, fused=model.device.type in ("cpu", "cuda")
        )  # fused: each tensor is read once per step, not once per operation
        self.scaler = torch.amp.GradScaler(
            model.device.type, _FIRST_SCALE, growth_interval=200, enabled=self.embedder.precision == "fp16"
        )
        if training.gradient_checkpointing:
            recompute_layers(model)

    # --- the run -----------------------------------------------------------------------------------------

    def estimate(self, report: Callable[..., None]) -> None:
        """Measure the loss and gradients of some pairs, without a step, and say what the whole run will take.

        On a CPU a few pairs are enough. On a GPU a whole batch is measured, a second time: the first one loads every
        kernel, and fewer pairs would only measure launches.
        """
        counted = self.embedder.tokens, self.embedder.padded_tokens
        on_gpu = self.model.device.type != "cpu"
        few = min(max(len(self.examples) * self.training.epochs // 50, _PROBE[0]), _PROBE[1])
        pairs = self.training.batch_size if on_gpu else min(few, self.training.batch_size)
        batch = next(iter(order(1, pairs, self.training.seed, self.examples)))
        memory = self._make_room(batch)
        for _ in range(2 if on_gpu else 1):
            begun = time.perf_counter()
            self._gradients(batch)
            hardware.wait(self.model.device)
            per_pair = (time.perf_counter() - begun) / batch.pairs
        self.optimizer.zero_grad()
        self.embedder.tokens, self.embedder.padded_tokens = counted
        left = self.training.epochs * len(self.examples) * (1 - len(self.losses) / self.planned)
        seconds = self._seconds() + per_pair * left * (1 + _DEV_SHARE / 3)
        self.expected = Estimate(seconds, self._dollars(seconds), memory)
        report("estimate", self.expected.seconds, self.expected.dollars, self.expected.memory)

    def _make_room(self, batch: Batch) -> int:
        """Bytes that a step will take; where that is more than the GPU has, activations are kept for less at a time.

        Raises TrainingError where not even the weights and the optimiser's state fit.
        """
        columns = self._columns(batch)
        probed = probes(self.embedder, columns)
        try:
            needed = measure(self.model, probed, recomputed=self.training.gradient_checkpointing)
        except (RuntimeError, MemoryError) as error:  # what a step takes shows as soon as one is tried
            self._shrink(error, halve=False)
            self.cached = True
            return 0
        share = self.training.batch_size / batch.pairs / self.group.size
        tokens = _MORE * share * sum(int(texts.lengths[numbers].sum()) for texts, numbers in columns)
        free = hardware.free_memory(self.model.device)
        if free is None or needed.of(tokens) <= free + _held(self.parameters):
            return needed.of(tokens)
        room = needed.tokens_within(int(_MARGIN * (free + _held(self.parameters))))
        if room < 1:
            raise TrainingError(
                f"training takes {needed.fixed / 2**30:.1f} GiB for weights, gradients and optimiser, "
                f"the GPU has {free / 2**30:.1f} GiB left: use a smaller base model, quick, or a larger GPU"
            )
        self.cached = True
        self.embedder.chunk_tokens = min(self.embedder.chunk_tokens, room)
        _LOG.info("a step would take %.1f GiB: going on in chunks of %d tokens", needed.of(tokens) / 2**30, room)
        return needed.of(min(tokens, self.embedder.chunk_tokens))

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
            self._step_or_keep(step, batch, checkpoints)
            report("step", step, self.planned, self.losses[-1])
            if scored and (step in when or self._late()):
                self._take_score(self._score(scored, step))
            due = time.perf_counter() - saved >= self.training.checkpoint_minutes * 60
            if checkpoints is not None and self.group.leads and due:
                self._keep(checkpoints, step)
                saved = time.perf_counter()
        if self.best is None:
            self.best_step = len(self.losses)
        elif self.best_step < len(self.losses):
            self.model.load_state_dict(self.best)
        if scored and self.training.average_weights:
            self._average(scored)
        self._restore_length()

    def _average(self, dev: Dev) -> None:
        """Let the model hold the average of its weights and those it started from that is best on dev."""
        tuned = _on_cpu(self.model.state_dict())
        started = averaging.weights(self.start.path(self.training), tuned)

        def score(alpha: float) -> float:
            self.model.load_state_dict(averaging.average(started, tuned, alpha))
            return self._score(dev, self.best_step).mrr

        self.averaged = {alpha: score(alpha) for alpha in averaging.ALPHAS}
        self.model.load_state_dict(averaging.average(started, tuned, self._alpha))

    @property
    def _alpha(self) -> float:
        """The share of the way that is best on dev; of equals the largest."""
        return max(self.averaged, key=lambda alpha: (self.averaged[alpha], alpha), default=1.0)

    def _step_or_keep(self, step: int, batch: Batch, checkpoints: Checkpoints | None) -> None:
        """Take a step; asked to end (SIGTERM under Prefect, Ctrl-C), keep what was done before it."""
        try:
            self._step(step, batch)
        except Exception:
            raise
        except BaseException:
            if checkpoints is not None and self.group.leads and self.losses and self._between_steps:
                with suppress(StoreError):
                    self._keep(checkpoints, step - 1)
            raise

    def _keep(self, checkpoints: Checkpoints, step: int) -> None:
        """Save a checkpoint; one that is missed costs nothing, several in a row end the run (StoreError).

        A store that takes no checkpoint for that long will not take the model either.
        """
        try:
            checkpoints.save(step, self.checkpoint())
        except StoreError as error:
            self._missed += 1
            _LOG.warning("no checkpoint after step %d: %s", step, error)
            if self._missed >= MISSED_CHECKPOINTS:
                raise StoreError(f"{self._missed} checkpoints in a row could not be stored: {error}") from error
        else:
            self._missed = 0

    def _score(self, dev: Dev, step: int) -> DevScore:
        while True:
            try:
                return dev.score(self.embedder, step)
            except ValueError as error:
                raise TrainingError(f"after step {step} the model's vectors cannot be ranked: {error}") from error
            except (RuntimeError, MemoryError) as error:
                self._shrink(error, halve=True)
            hardware.release()

    def _take_score(self, score: DevScore) -> None:
        """Note a dev score; the weights of the best so far (of equals the latest) are kept."""
        self.scores.append(score)
        if self.best is None or score.mrr >= max(former.mrr for former in self.scores[1:]):
            self.best_step = score.step
            self.best = _on_cpu(self.model.state_dict())

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
        while not self._try_step(step, batch, rate):
            pass

    def _try_step(self, step: int, batch: Batch, rate: float) -> bool:
        """Take one step; in fp16 False where a gradient overflowed: nothing was changed but the scale of the loss."""
        loss = self._gradients(batch)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {step}: lower the learning rate ({rate:.1g} there)")
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        scale = self.scaler.get_scale()
        self._between_steps = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < scale:
            self._between_steps = True
            if scale <= 1:
                raise TrainingError(f"gradients overflow in fp16 at step {step}: set precision to fp32")
            return False
        self.losses.append(loss)
        self.pairs += batch.pairs
        self._between_steps = True
        return True

    def _gradients(self, batch: Batch) -> float:
        """Leave the gradients of one batch's loss in the parameters; when memory runs out, with smaller chunks."""
        while True:
            self.optimizer.zero_grad()
            try:
                loss = self._cached_gradients(batch) if self.cached else self._plain_gradients(batch)
            except (RuntimeError, MemoryError) as error:
                self._shrink(error, halve=self.cached)
                self.cached = True
            else:
                self.group.sum_gradients(self.parameters)
                return loss
            self.optimizer.zero_grad()
            hardware.release()

    def _shrink(self, error: Exception, *, halve: bool) -> None:
        """After an error that says that memory ran out: the activations of one chunk at a time, or smaller chunks.

        Any other error is raised again, as is this one where nothing is left to be made smaller.
        """
        exhausted = halve and self.embedder.chunk_tokens < 2
        if exhausted or self.group.size > 1 or not hardware.out_of_memory(error):
            raise error  # one of several processes cannot go back alone
        if halve:
            self.embedder.chunk_tokens //= 2
        _LOG.warning(
            "memory ran out: going on with the activations of one chunk at a time, of at most %d tokens",
            self.embedder.chunk_tokens,
        )

    def _columns(self, batch: Batch) -> list[Column]:
        """What of a batch is encoded: queries and documents, or queries alone."""
        return list(zip(self.texts, (batch.queries, batch.documents), strict=False))

    def _loss(self, batch: Batch, vectors: Sequence[Tensor]) -> Tensor:
        """The loss of a batch whose columns have these vectors."""
        if self.corpus is None:
            return batch_loss(batch, vectors[0], vectors[1], self.dims)
        if batch.kind == "ranking":
            return self.corpus.loss(batch, vectors[0], len(self.losses))
        return batch_loss(batch, vectors[0], self.corpus.vectors(batch.documents).to(vectors[0]), self.dims)

    def _plain_gradients(self, batch: Batch) -> float:
        loss = self._loss(batch, self.embedder.embed(*self._columns(batch)))
        torch.autograd.backward([self.scaler.scale(loss)])
        return loss.item()

    def _cached_gradients(self, batch: Batch) -> float:
        """The same loss and gradients with one chunk's activations at a time, for one more forward (Gao 2021)."""
        columns = self._columns(batch)
        with torch.no_grad():
            vectors = self.embedder.embed(*columns)
        leaves = [column.requires_grad_() for column in vectors]
        loss = self._loss(batch, leaves)
        gradients = torch.autograd.grad(self.scaler.scale(loss), leaves)
        self.embedder.backward(columns, gradients)
        return loss.item()

    # --- checkpoints -------------------------------------------------------------------------------------

    @cached_property
    def identity(self) -> str:
        """Hash of what a run computes: a checkpoint of other rows, settings or weights is none of this run's."""
        settings = self.training.model_dump(mode="json", exclude=set(NOT_COMPUTED))
        start = fingerprint(self.start.path(self.training))
        found = [settings, start, self.examples.fingerprint, torch.__version__, self.model.device.type]
        found += [self.corpus.fingerprint] if self.corpus else []
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def checkpoint(self) -> Checkpoint:
        """Everything needed to continue after the steps taken so far; the order of batches follows from the seed."""
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
            "packed": self.embedder.packed,
            "scaler": self.scaler.state_dict(),
            "chunk_tokens": self.embedder.chunk_tokens,
            "tokens": self.embedder.tokens,
            "padded_tokens": self.embedder.padded_tokens,
            "seconds": self._seconds(),
        }
        return Checkpoint(_on_cpu(tensors) | {"random": torch.get_rng_state()}, state)

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
        self.scores = [DevScore(**score) for score in found.state["scores"]]
        self.best_step, self.pairs = found.state["best_step"], found.state["pairs"]
        self.cached = found.state["cached"]
        if hardware.computes(found.state["precision"], self.model.device):  # otherwise this machine's choice stays
            self.embedder.precision = found.state["precision"]
            choose_kernel(self.embedder, packed=found.state["packed"] and self.embedder.packed)
            self.scaler.load_state_dict(found.state["scaler"])
        self.embedder.chunk_tokens = found.state["chunk_tokens"]
        self.embedder.tokens, self.embedder.padded_tokens = found.state["tokens"], found.state["padded_tokens"]
        self.resumed = len(self.losses)
        self.began = min(self.began, time.perf_counter() - found.state["seconds"])

    # --- dev ---------------------------------------------------------------------------------------------

    def _dev(self, dev: EvaluationSet | None, documents: Sequence[str]) -> Dev | None:
        if dev is None or len(dev.queries) < MIN_QUERIES:
            return None
        evaluations = 1 + len(_evaluation_steps(self.planned, self.training.epochs))
        texts = int(_DEV_SHARE * 2 * len(self.examples) * self.training.epochs / evaluations)
        vectors = self.corpus.known if self.corpus else None
        return Dev(self.model, dev, documents, texts, self.training.seed, vectors)

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
            started_from=self.start.name,
            distance_from_base=distance(self.model, self.training, self.start),
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
            device=hardware.describe(self.model.device),
            side=self.training.side,
            alpha=self._alpha,
            averaged={f"{alpha:g}": mrr for alpha, mrr in self.averaged.items()},
        )

    def _seconds(self) -> float:
        """Duration so far, that of a killed predecessor up to its checkpoint included."""
        return time.perf_counter() - self.began

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
    positives, masked, scores = (
        hardware.moved(torch.from_numpy(values), queries.device)
        for values in (batch.positives, batch.masked, batch.scores)
    )
    collides = bool(batch.masked.any())

    def ranking(dim: int) -> Tensor:
        return losses.ranking_loss(queries[:, :dim], documents[:, :dim], positives, masked if collides else None)

    def triplet(dim: int) -> Tensor:
        positives, negatives = documents[:, :dim].chunk(2)
        return losses.triplet_loss(queries[:, :dim], positives, negatives)

    def cosent(dim: int) -> Tensor:
        return losses.cosent_loss(queries[:, :dim], documents[:, :dim], scores)

    return losses.matryoshka({"ranking": ranking, "triplet": triplet, "cosent": cosent}[batch.kind], dims)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that take no memory of a GPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def _held(parameters: Sequence[torch.nn.Parameter]) -> int:
    """Bytes of the weights themselves, which are no longer free."""
    return sum(parameter.nbytes for parameter in parameters)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


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
