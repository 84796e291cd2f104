"""What a night notices beside its verdict: suspicious labels, and vectors that drift."""

from __future__ import annotations

from pathlib import Path

from tasks import runs
from tasks.config import Training
from tasks.night.reading import cached, model_folder
from tasks.records import Audited, Drift
from tasks.runs import Run
from tasks.storage import Store


def audit(
    store: Store, run_id: str, commit: int, candidate: str, production: str | None, training: Training, work: Path
) -> Audited:
    """Look for wrong labels, with the models and the numeric path of the scores, and keep what is suspicious."""
    from tasks import audit as labels
    from tasks import dataset, encoding, intake, scoring, splits

    run = Run(store, run_id)

    def audited() -> Audited:
        rows = intake.read_rows(store, commit)
        scored, trained, good = run.read(runs.SCORED), run.read(runs.CANDIDATE), runs.last_good(store, run_id)
        path = encoding.PATHS[scored.numeric_path]
        versions = {scoring.CANDIDATE: candidate, scoring.PRODUCTION: production, scoring.BASE: None}
        folders = {side: model_folder(store, versions[side], training.base_model, work) for side in scored.sides}
        encoders = {
            side: cached(store, encoding.ModelEncoder.open(folder, path), work) for side, folder in folders.items()
        }
        data = dataset.build(rows, splits.load_split(store))
        since = good.commit if good is not None and good.commit < commit else 0
        found, suspects = labels.look(
            labels.Night(rows, data, encoders, since, training.hard_negatives, trained.started_from, training.seed)
        )
        run.put(runs.SUSPECTS, suspects)
        return found

    return run.once(runs.AUDITED, audited)


def audit_failed(store: Store, run_id: str, why: str) -> None:
    """Note that a night has no audit of its labels, so that its report says so."""
    Run(store, run_id).once(runs.AUDITED, lambda: Audited(failed=why))


def canary(store: Store, run_id: str, production: str | None, training: Training, work: Path) -> Drift:
    """Encode the canary's texts with what serves, or the base model, and compare them with its first vectors."""
    from tasks import encoding
    from tasks.audit import canary as bird

    run = Run(store, run_id)

    def drift() -> Drift:
        model = encoding.load(model_folder(store, production, training.base_model, work))
        return bird.check(store, run_id, model, run.read(runs.SCORED).production.fingerprint, production)

    return run.once(runs.DRIFT, drift)


def canary_failed(store: Store, run_id: str, why: str) -> None:
    """Note that the canary was not asked, so that the report says so."""
    Run(store, run_id).once(runs.DRIFT, lambda: Drift(failed=why))
