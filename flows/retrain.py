"""The night: take in what is new, check it, fine-tune, compare, and move production only forward."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger

from flows.context import ThisRun, store_url, this_run
from flows.fine_tune import fine_tune
from flows.handover import fine_tune_elsewhere
from tasks import steps
from tasks.config import Checks, Gate, Limits, Outcome, Reason, Training, Verdict
from tasks.runs import now

_TRAINING, _GATE, _CHECKS, _LIMITS = Training(), Gate(), Checks(), Limits()


class Night:
    """One run as it unfolds: what is known so far, and the seconds of every step."""

    def __init__(self, store: str, run: ThisRun, reason: str) -> None:
        self.store, self.run, self.reason = store, run, reason
        self._facts: dict[str, Any] = {"run_id": run.run_id, "reason": reason, "commit": 0, "started_at": now()}
        self._seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step, and say in one line that it is done and how long it took."""
        begun = time.monotonic()
        yield
        self._seconds[name] = round(time.monotonic() - begun, 2)
        get_run_logger().info("%s: done in %.1f s", name, self._seconds[name])

    def learn(self, **facts: Any) -> None:
        """Add to what the outcome will say; counts are added to those known already."""
        counts = {**self._facts.get("counts", {}), **facts.pop("counts", {})}
        self._facts |= {**facts, "counts": counts}

    def end(self, verdict: Verdict, reasons: Sequence[str]) -> Outcome:
        """Write the outcome and the report, tell people, and hand the outcome back."""
        outcome = Outcome(
            verdict=verdict, reasons=list(reasons), seconds=self._seconds, finished_at=now(), **self._facts
        )
        return steps.conclude(self.store, outcome)


@flow(name="retrain")
def retrain(
    reason: Reason = "manual",
    force: bool = False,
    store: str | None = None,
    fine_tune_deployment: str | None = None,
    training: Training = _TRAINING,
    gate: Gate = _GATE,
    checks: Checks = _CHECKS,
    limits: Limits = _LIMITS,
) -> Outcome:
    """Fine-tune on everything up to tonight's new pairs, and promote the result only if it is surely better.

    Production is left exactly as it is unless Recall@10 and MRR both improve on the same held-out queries.

    Args:
        reason: Why this run is started, in 1 to 500 characters; it goes into the outcome, the report and the ledger.
        force: Fine-tune even though no new pairs have arrived since the last night.
        store: Where data, models and runs are: s3://bucket/prefix. None: what the worker's RATCHET_STORE names.
        fine_tune_deployment: Deployment that trains and scores, such as fine-tune/gpu. None: the process of this run.
        training: How a candidate is fine-tuned. The defaults are a recipe that was measured.
        gate: When a candidate may replace production.
        checks: What the data must be like: a critical finding blocks the night, a warning is only shown.
        limits: What one uploaded object may be; what is beyond goes to quarantine.

    Returns:
        The outcome, which is also `runs/<run_id>/outcome.json`.
    """
    night = Night(store_url(store), this_run(), reason)
    try:
        return _until_verdict(night, training, gate, checks, limits, fine_tune_deployment, force=force)
    except Exception as error:
        get_run_logger().exception("the run broke off; production is as it was")
        # when the store is what failed, this fails too; then Prefect's own state is what tells people
        with suppress(Exception):
            night.end("failed", [f"{type(error).__name__}: {error}"])
        raise


def _until_verdict(
    night: Night,
    training: Training,
    gate: Gate,
    checks: Checks,
    limits: Limits,
    deployment: str | None,
    *,
    force: bool,
) -> Outcome:
    store, run_id = night.store, night.run.run_id
    with night.step("begin"):
        groups = {"training": training, "gate": gate, "checks": checks, "limits": limits}
        begun = steps.begin(store, run_id, {name: group.model_dump(mode="json") for name, group in groups.items()})
        night.learn(production_before=begun["version"], production_after=begun["version"])

    with night.step("intake"):
        intake = steps.take_in(store, run_id, begun["last_commit"], limits)
        night.learn(commit=intake["commit"], counts=intake["counts"])
    if begun["last_run"] and not intake["new"] and not force:
        return night.end("skipped", [f"No new pairs have arrived since run {begun['last_run']}."])

    with night.step("checks"):
        checked = steps.check(store, run_id, intake["commit"], begun["last_commit"], training.base_model, checks)
        night.learn(counts=checked["sides"], guidance=checked["result"]["guidance"])
    if checked["result"]["verdict"] != "ok":
        return night.end(checked["result"]["verdict"], checked["result"]["reasons"])

    for side in ("train", "test"):
        if not checked["sides"][side]:
            return night.end("blocked", [f"The split leaves nothing for {side}: too few different queries."])

    with night.step("fine-tuning and scoring"):
        work = {
            "run_id": run_id,
            "commit": intake["commit"],
            "production": begun["version"],
            "store": store,
            "training": training.model_dump(mode="json"),
            "gate": gate.model_dump(mode="json"),
            "checks": checks.model_dump(mode="json"),
        }
        if deployment is None:
            fine_tune(**work)
        else:
            fine_tune_elsewhere(deployment, work)

    with night.step("verdict"):
        judged = steps.judge(store, run_id, gate, checks)
        night.learn(**judged["facts"])
    if judged["verdict"] != "promoted":
        return night.end(judged["verdict"], judged["reasons"])

    with night.step("promotion"):
        serves, why = steps.promote(
            store, run_id, judged["facts"]["candidate"], begun["etag"], who=night.run.who, reason=night.reason
        )
    if serves is None:
        return night.end("held", [why, *judged["reasons"]])
    night.learn(production_after=serves)
    return night.end("promoted", [*judged["reasons"], why])
