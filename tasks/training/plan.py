"""Where a night's fine-tuning starts: from the base model on everything, or from production on what is new to it.

Training on and on from production is fast, and drifts: what each night forgets a little is never learned again. So
every `full_retrain_every`-th fine-tuning starts from base, counted over the runs in the store, and production is only
gone on from when it came from the same base model. Queries that are trained alone always start from what serves, whose
documents they are trained against; the full fine-tuning that is due after a while trains both sides.

The decision is kept in the run's folder: another attempt of the
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
        if found.side == "query":
            why = f"No row is new to version {production}: its queries anew, from the weights of its document encoder."
            return Plan(BASE, 0, why, "query")
        return Plan(BASE, 0, f"No row is new to version {production}: started from the base model.")
    return found


def _by_history(store: Store, run_id: str, production: str | None, base: str, training: Training) -> Plan:
    """The plan before the rows are looked at."""
    alone = training.side == "query"
    if training.start_from == BASE and not alone:
        return Plan(BASE, 0, "The settings say to start from the base model.")
    if production is None and not alone:
        return Plan(BASE, 0, "Nothing was in production: started from the base model.")
    earlier = _earlier(store, run_id)
    recent = list(islice(earlier, training.full_retrain_every - 1))
    if len(recent) == training.full_retrain_every - 1 and not any(trained.full for trained in recent):
        what = "were of the query side alone" if alone else "did not start from the base model"
        return Plan(BASE, 0, f"A full retrain was due after {len(recent)} that {what}.")
    made = next((trained for trained in chain(recent, earlier) if trained.version == production), None)
    return _queries(production, made, training) if alone else _both(str(production), made, base)


def _queries(production: str | None, made: Origin | None, training: Training) -> Plan:
    """The plan of a training of the query side alone, against the documents of what serves."""
    if production is None:
        return Plan(BASE, 0, "Nothing was in production: queries against the documents of the base model.", "query")
    why = f"Queries alone, against the documents of version {production}"
    if training.start_from == BASE or made is None:
        return Plan(BASE, 0, f"{why}, from the weights of its document encoder.", "query")
    return Plan(production, made.commit, f"{why}: went on from its queries, which knew commit {made.commit}.", "query")


def _both(production: str, made: Origin | None, base: str) -> Plan:
    """The plan of a training of both sides that may go on from what serves."""
    if made is None:
        return Plan(BASE, 0, f"No run says how version {production} was trained: started from the base model.")
    if made.base != base:
        return Plan(BASE, 0, f"Version {production} came from another base model: started from the base model.")
    if made.side == "query":
        return Plan(BASE, 0, f"Version {production} has a query encoder of its own: started from the base model.")
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
