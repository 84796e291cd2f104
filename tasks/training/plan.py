"""Where a night's fine-tuning starts: from the base model on everything, or from production on what is new to it.

Training on and on from production is fast, and drifts: what each night forgets a little is never learned again. So
every `full_retrain_every`-th fine-tuning starts from base, counted over the runs in the store, and production is only
gone on from when it came from the same base model. The decision is kept in the run's folder: another attempt of the
run, or another node, does the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks import runs
from tasks.config import Training
from tasks.records import Origin, Plan
from tasks.storage import Store

BASE: Final = "base"
"""What a run that starts from `Training.base_model` says it started from."""


def choose(store: Store, run_id: str, production: str | None, base: str, train: pa.Table, training: Training) -> Plan:
    """Decide from the settings, what served when the run began, and the runs before this one.

    Args:
        store: where the runs are.
        run_id: this run; only earlier ones are looked at.
        production: the version that served when it began, None when there was none.
        base: fingerprint of the base model that the settings name.
        train: all rows of the train side, with their `commit`.
        training: the settings.
    """
    found = _by_history(store, run_id, production, base, training)
    if found.start != BASE and not _new(train, found.since).any():
        return Plan(BASE, 0, f"No row is new to version {production}: started from the base model.")
    return found


def _by_history(store: Store, run_id: str, production: str | None, base: str, training: Training) -> Plan:
    """The plan before the rows are looked at."""
    if training.start_from == BASE:
        return Plan(BASE, 0, "The settings say to start from the base model.")
    if production is None:
        return Plan(BASE, 0, "Nothing was in production: started from the base model.")
    earlier = _earlier(store, run_id)
    recent = list(islice(earlier, training.full_retrain_every - 1))
    if len(recent) == training.full_retrain_every - 1 and all(trained.started_from != BASE for trained in recent):
        return Plan(BASE, 0, f"A full retrain was due after {len(recent)} that did not start from the base model.")
    made = next((trained for trained in chain(recent, earlier) if trained.version == production), None)
    if made is None:
        return Plan(BASE, 0, f"No run says how version {production} was trained: started from the base model.")
    if made.base != base:
        return Plan(BASE, 0, f"Version {production} came from another base model: started from the base model.")
    return Plan(production, made.commit, f"Went on from version {production}, which knew commit {made.commit}.")


def _earlier(store: Store, run_id: str) -> Iterator[Origin]:
    """What the trainings of earlier runs came to, the latest first."""
    for run in runs.backwards(store, before=run_id):
        if (trained := run.find(runs.File(runs.CANDIDATE.name, Origin))) is not None:
            yield trained


def rows(train: pa.Table, plan: Plan, training: Training) -> pa.Table:
    """The rows to train on: from base all, else the new ones and some old ones, in the order in which they arrived.

    Old rows are drawn with the seed: `replay_share` of the result, as far as there are so many, but enough to fill a
    batch, since a handful of rows would be each other's only negatives.

    Args:
        train: rows of the train side with their `commit`.
        plan: where the training starts.
        training: replay_share, batch_size and seed.
    """
    if plan.start == BASE:
        return train
    kept = _new(train, plan.since)
    count, share = int(kept.sum()), training.replay_share
    wanted = max(round(count * share / (1 - share)), training.batch_size - count)
    kept[np.random.default_rng([training.seed, 2]).permutation(np.flatnonzero(~kept))[:wanted]] = True
    return train.filter(pa.array(kept))


def _new(train: pa.Table, since: int) -> npt.NDArray[np.bool_]:
    """Which rows belong to commits after `since`."""
    new: npt.NDArray[np.bool_] = train.column("commit").to_numpy() > since
    return new
