"""The training of a night, on one machine or on several."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tasks import runs
from tasks.config import Training
from tasks.night.reading import dataset_of, model_folder, vectors
from tasks.night.rehearsing import rehearse
from tasks.records import Candidate, Estimate, Plan, Started
from tasks.runs import Run
from tasks.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.encoding import Progress

_PUBLISHING: Final = 600.0
"""Seconds within which the node that leads a training has saved and published what came of it."""


def train(
    store: Store,
    run_id: str,
    commit: int,
    training: Training,
    work: Path,
    on_progress: Progress | None = None,
    *,
    production: str | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
) -> Candidate:
    """Fine-tune on the commit's train side and publish the candidate: its version and how the training went.

    `production` is the version that served when the run began. With several nodes each calls this, as long as the run
    has no result: the one whose process leads publishes, the others wait for what it writes.
    """
    from tasks import encoding, registry
    from tasks import training as trainer
    from tasks.scoring import serving
    from tasks.training import Checkpoints, Rendezvous

    run = Run(store, run_id)

    def trained() -> Candidate:
        data = dataset_of(store, commit)
        base = encoding.fingerprint(encoding.resolve_model(training.base_model))
        plan, rows = _plan(run, commit, production, base, data.train, training)
        rehearse(run, production, plan, training, data, work)
        went_on = plan.start != trainer.BASE
        start = trainer.Start(plan.start, model_folder(store, plan.start, "", work)) if went_on else trainer.FROM_BASE
        against = None
        if plan.side == "query":
            serves = model_folder(store, production, training.base_model, work)
            against = trainer.known_documents(serves, data.documents, rows, vectors(store, work))
        with TemporaryDirectory(dir=work) as temporary:
            folder = Path(temporary) / "candidate"
            result = trainer.train(
                rows,
                data.dev,
                data.documents,
                training.model_copy(update={"side": plan.side}),
                folder,
                start=start,
                against=against,
                commit=commit,
                on_progress=on_progress and (lambda step, steps, _loss: on_progress(step, steps)),
                on_estimate=on_estimate,
                checkpoints=Checkpoints(store, run.key(runs.CHECKPOINTS)),
                rendezvous=Rendezvous.from_environment(training.nodes, run_id),
            )
            if not folder.exists():
                return _awaited(run, runs.CANDIDATE, _PUBLISHING)
            version = registry.publish(store, folder, serving.describe(folder, result.dims[1:]))
            return Candidate(version=version, commit=commit, base=base, started_why=plan.why, **vars(result))

    return run.once(runs.CANDIDATE, trained)


def join(store: Store, run_id: str, work: Path, *, seconds: float) -> Candidate:
    """Take part in the training of a run on another machine: the same call, with what that wrote when it began.

    Needs RATCHET_RENDEZVOUS as it is set there. Raises TimeoutError when the run has not begun to train in time.
    """
    started = _awaited(Run(store, run_id), runs.STARTED, seconds)
    return train(store, run_id, started.commit, started.training, work, production=started.production)


def _plan(
    run: Run, commit: int, production: str | None, base: str, train: pa.Table, training: Training
) -> tuple[Plan, pa.Table]:
    """Where to start and on which rows; decided once, and kept with all that a further node has to know."""
    from tasks.training import plan

    def decided() -> Started:
        chosen = plan.choose(run.store, run.run_id, production, base, train, training)
        return Started(commit, production, training, chosen)

    started = run.once(runs.STARTED, decided)
    return started.plan, plan.rows(train, started.plan, training)


def _awaited(run: Run, file: runs.File[runs.T], seconds: float) -> runs.T:
    """What another machine writes into a file of the run; TimeoutError when it has not in time."""
    last = time.monotonic() + seconds
    while (found := run.find(file)) is None:
        if time.monotonic() > last:
            where = run.store.uri(run.key(file.name))
            raise TimeoutError(f"{where} has not been written in {seconds:g} s by the machine that should")
        time.sleep(1)
    return found
