"""What a fine-tuning run hands back, before it and after it."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.training.dev import Score
from tasks.training.embedder import Precision


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
        started_from: "base", or the version whose weights it went on from.
        distance_from_base: relative L2 distance of the saved weights from the base model's (`start_model.distance`).
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
    started_from: str
    distance_from_base: float
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
