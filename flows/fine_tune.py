"""Train a candidate and score it beside production: the part of a night that wants a GPU."""

from __future__ import annotations

from contextlib import suppress

from prefect import flow

from flows.context import store_url, work_folder
from tasks import steps
from tasks.config import Checks, Gate, Training
from tasks.records import Checked, Scored

_TRAINING, _GATE, _CHECKS = Training(), Gate(), Checks()


@flow(name="fine-tune", flow_run_name="fine-tune-{run_id}")
def fine_tune(
    run_id: str,
    commit: int,
    production: str | None = None,
    store: str | None = None,
    training: Training = _TRAINING,
    gate: Gate = _GATE,
    checks: Checks = _CHECKS,
) -> Scored | Checked:
    """Train on one commit, publish the candidate, score it and production on the same test set.

    The night's flow starts this on the GPU pool; everything but these small parameters goes through the store.
    Each step writes its result under `runs/<run_id>/`, so another attempt continues where this one stopped.

    Args:
        run_id: The night's run; its folder in the store takes all results.
        commit: Number of the intake commit that fixes the data.
        production: Version to compare with, and to start from if so set. None: the base model.
        store: Where data and models are: s3://bucket/prefix. None: what the worker's RATCHET_STORE names.
        training: How a candidate is fine-tuned.
        gate: Of this, how much slower than production the candidate may encode.
        checks: Of this, how many test queries may nearly repeat a training query.

    Returns:
        The content of `runs/<run_id>/scores.json`; of `leaks.json` where that blocks the night.
    """
    url, work = store_url(store), str(work_folder())
    leaks = steps.check_leaks(url, run_id, commit, checks)
    if leaks.result.verdict != "ok":
        return leaks
    candidate = steps.train(url, run_id, commit, production, training, work)
    scored = steps.score(url, run_id, commit, candidate.version, production, training, gate, work)
    with suppress(Exception):  # logged by Prefect: what is said of the labels decides nothing
        steps.audit(url, run_id, commit, candidate.version, production, training, work)
    with suppress(Exception):
        steps.canary(url, run_id, production, training, work)
    return scored
