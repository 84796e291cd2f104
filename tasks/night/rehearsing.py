"""What a night needs after its training, tried before it: what cannot be had then would cost the whole training.

The candidate's own rehearsal (`tasks/training/rehearsal.py`) knows neither what it is compared with nor the store.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tasks.config import Training
from tasks.night.measuring import promoted_with
from tasks.night.reading import model_folder
from tasks.records import Plan
from tasks.runs import Run
from tasks.storage import Store

if TYPE_CHECKING:
    from tasks.dataset import Dataset

_FEW: Final = 8
"""Texts of the night that each model encodes, from the shortest to the longest."""


class UnreadyError(Exception):
    """A training would come to nothing; the message says why, and what to do."""


def rehearse(run: Run, production: str | None, plan: Plan, training: Training, data: Dataset, work: Path) -> None:
    """Try what scoring, publishing and promoting need; the model that training starts from is tried by training itself.

    Args:
        run: The night's run.
        production: The version that serves; None: the base model.
        plan: What training starts from.
        training: Names the base model.
        data: What will be scored on.
        work: Where versions are kept on this machine.

    Raises UnreadyError; RayError; LedgerError or LogError where what production was trained on cannot be read.
    """
    from tasks import intake
    from tasks import training as trainer

    _check_writing(run.store, run.run_id)
    if training.scoring_workers:
        from tasks.index import on_ray

        on_ray.check()
    if production is None:
        return
    if (commit := promoted_with(run.store, production)) is not None:
        intake.read_rows(run.store, commit)
    texts = sorted({*data.test.queries, *data.documents}, key=lambda text: (len(text), text))
    few = [texts[int(place)] for place in np.linspace(0, len(texts) - 1, _FEW)]
    tried = set() if plan.side == "query" else {None if plan.start == trainer.BASE else plan.start}
    for version in sorted({production, None} - tried, key=str):
        _check_side(run.store, version, training, few, work)


def _check_writing(store: Store, run_id: str) -> None:
    """Refuse a store in which a candidate could not be published, or could not be promoted safely."""
    if problems := store.probe():
        raise UnreadyError(f"no candidate could be promoted in {store.url}: {'; '.join(problems)}")
    if not store.may_write(f"models/{run_id}"):
        raise UnreadyError(
            f"no candidate could be published: the credentials of this machine may not write {store.uri('models/')}; "
            "they need the rights of iam/trainer.json"
        )


def _check_side(store: Store, version: str | None, training: Training, texts: list[str], work: Path) -> None:
    """Refuse a model beside which no candidate could be scored; several processes get the GPUs to themselves."""
    from tasks.encoding import ModelError
    from tasks.encoding.probes import check_encodes
    from tasks.registry import VersionError

    name = training.base_model
    described = f"base model {name!r}" if version is None else f"version {version}, which serves"
    device = None if training.processes == training.nodes == 1 else "cpu"
    try:
        check_encodes(model_folder(store, version, name, work), texts, "it", device)
    except (ModelError, VersionError) as error:
        remedy = "put back another (`ratchet rollback --to VERSION`), or the base model (`--to base`)"
        if version is None:
            remedy = "every night scores it too, so name one that can be used"
        raise UnreadyError(f"no candidate could be compared with {described}: {error}; {remedy}") from error
