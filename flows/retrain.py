"""The night: take in what is new, check it, fine-tune, compare, and move production only forward."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from prefect import flow
from prefect.logging import get_run_logger
from pydantic import JsonValue

from flows.approval import wait_for_approval
from flows.context import ThisRun, publish_what_serves, store_url, this_run, work_folder
from flows.fine_tune import fine_tune
from flows.handover import fine_tune_elsewhere
from tasks import steps
from tasks.config import Checks, Gate, Limits, Outcome, Reason, Training, Verdict
from tasks.records import Settings
from tasks.runs import now

_TRAINING, _GATE, _CHECKS, _LIMITS = Training(), Gate(), Checks(), Limits()


class Night:
    """One run as it unfolds: what its outcome would say now, and the seconds of every step."""

    def __init__(self, store: str, run: ThisRun, reason: str) -> None:
        self.store, self.run = store, run
        self.remarks: Sequence[str] = ()
        self._outcome = Outcome(
            run_id=run.run_id, verdict="failed", reasons=[], commit=0, reason=reason, started_at=now()
        )

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step, and log one line when it is done."""
        begun = time.monotonic()
        yield
        seconds = round(time.monotonic() - begun, 2)
        self._outcome.seconds[name] = seconds
        get_run_logger().info("%s: done in %.1f s", name, seconds)

    def learn(self, counts: Mapping[str, int] | None = None, **facts: object) -> None:
        """Add to what the outcome says; counts are added to those known already."""
        merged = {**self._outcome.counts, **(counts or {})}
        self._outcome = self._outcome.model_copy(update={**facts, "counts": merged})

    @property
    def outcome(self) -> Outcome:
        """What it came to, or would if it ended now."""
        return self._outcome

    @property
    def reasons(self) -> list[str]:
        """What the outcome says so far of a verdict; empty before there is one."""
        return self._outcome.reasons

    @property
    def reason(self) -> str:
        """Why the run was started."""
        return self._outcome.reason

    @property
    def promoted(self) -> bool:
        """Whether this run has promoted its candidate, as far as it knows itself."""
        return self._outcome.verdict == "promoted"

    @property
    def begun(self) -> bool:
        """Whether it is known what served when the run began."""
        return "begin" in self._outcome.seconds

    def so_far(self, reasons: Sequence[str]) -> Outcome:
        """What the outcome would say now, with these reasons."""
        return self._outcome.model_copy(update={"reasons": list(reasons)})

    def end(self, verdict: Verdict, reasons: Sequence[str]) -> Outcome:
        """Write the outcome and the report, send the alerts, and return the outcome."""
        said = list(dict.fromkeys([*reasons, *self.remarks]))
        self.learn(verdict=verdict, reasons=said, finished_at=now())
        return steps.conclude(self.store, self._outcome)

    def end_in_any_case(self, verdict: Verdict, reasons: Sequence[str]) -> Outcome:
        """End as `end` does; with a report of the outcome alone where the rest of the report cannot be read."""
        try:
            return self.end(verdict, reasons)
        except Exception as error:
            logger = get_run_logger()
            logger.exception("the report is written without details")
            missing = f"The report has no details: {type(error).__name__}: {error}"
            self.learn(reasons=[*self.reasons, missing])
            return steps.conclude(self.store, self._outcome, details=False)


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
    """Fine-tune on everything up to tonight's new pairs, and promote the result only if it is significantly better.

    Production is left exactly as it is unless Recall@10 and MRR both improve on the same held-out queries.

    Args:
        reason: Why this run is started, in 1 to 500 characters; it goes into the outcome, the report and the ledger.
        force: Fine-tune even though nothing has changed since the last night: no pair is new, no object is gone.
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
    settings = Settings(training, gate, checks, limits)
    try:
        outcome = _until_verdict(night, settings, fine_tune_deployment, force=force)
    except Exception as error:
        logger = get_run_logger()
        logger.exception("the run broke off")
        # when the store is what failed, this fails too; then Prefect's own state is what tells people
        concluded = None
        try:
            concluded = _break_off(night, f"{type(error).__name__}: {error}")
        except Exception:
            logger.exception("no outcome was written")
        _tell_tools(night)
        if concluded is not None:
            _afterwards(night)
        if concluded is None or concluded.verdict != "promoted":
            raise
        return concluded
    except BaseException:  # cancelled, or told to stop
        with suppress(Exception):
            steps.tell_cancelled(night.store, night.run.run_id)
        raise
    _tell_tools(night)
    _afterwards(night)
    return outcome


def _tell_tools(night: Night) -> None:
    """Metrics and lineage: whatever becomes of them, the night is over."""
    with suppress(Exception):
        steps.tell_tools(night.store, night.outcome)


def _afterwards(night: Night) -> None:
    """Delete what nothing needs any more, and publish what serves. The night is over, whatever becomes of this."""
    with suppress(Exception):
        steps.retire(night.store, str(work_folder()))
    publish_what_serves(night.store)


def _break_off(night: Night, why: str) -> Outcome:
    """End a run that broke off. Where it had promoted by then, that stays, and only the conclusion is repeated."""
    doubt: list[str] = []
    try:
        serves, promoted = steps.stands(night.store, night.run.run_id)
    except Exception as error:  # a damaged pointer or ledger: the outcome must say so, and is no less needed
        logger = get_run_logger()
        logger.exception("it is not known what serves")
        doubt = [f"What serves now could not be read: {type(error).__name__}: {error}"]
        night.learn(production_after=None, production_known=False)
        promoted = "The candidate was promoted." if night.promoted else None  # then this run itself let it serve
    else:
        night.learn(production_after=serves)
        if promoted is None and not night.begun:
            night.learn(production_before=serves)
    if promoted is None:
        return night.end_in_any_case("failed", [why, *doubt])
    reasons = night.reasons or [promoted]
    said = f"The run broke off after the promotion, and went on: {why}"
    return night.end_in_any_case("promoted", [*reasons, said, *doubt])


def _until_verdict(night: Night, settings: Settings, deployment: str | None, *, force: bool) -> Outcome:
    store, run_id = night.store, night.run.run_id
    with night.step("begin"):
        begun = steps.begin(store, run_id, settings)
        night.learn(production_before=begun.version, production_after=begun.version)

    with night.step("intake"):
        taken = steps.take_in(store, run_id, begun.last_commit, settings.limits)
        night.learn(taken.counts, commit=taken.commit, pending=taken.pending, refused=taken.refused)
        night.remarks = taken.remarks
    if taken.blocked:
        return night.end("blocked", [taken.blocked])
    if begun.last_run and not taken.new and not taken.removed and not force:
        return night.end("skipped", [f"No new pairs have arrived since run {begun.last_run}."])

    with night.step("checks"):
        base_model = settings.training.base_model
        since = begun.last_commit if taken.since is None else taken.since
        checked = steps.check(store, run_id, taken.commit, since, base_model, settings.checks)
        night.learn(checked.sides, guidance=checked.result.guidance)
    if checked.result.verdict != "ok":
        return night.end(checked.result.verdict, checked.result.reasons)

    for side in ("train", "test"):
        if not checked.sides[side]:
            return night.end("blocked", [f"The split leaves nothing for {side}: too few different queries."])

    with night.step("fine-tuning and scoring"):
        _fine_tune(night, settings, deployment, taken.commit, begun.version)

    with night.step("verdict"):
        judged = steps.judge(store, run_id, settings.gate, settings.checks)
        if judged.candidate is not None:
            names = ("candidate", "production", "base", "deltas", "guards", "guidance", "cost")
            night.learn(**{name: getattr(judged, name) for name in names})
    candidate = judged.candidate
    if judged.verdict != "promoted" or candidate is None:
        return night.end(judged.verdict, judged.reasons)

    if settings.gate.approval_hours is not None:
        with night.step("approval"):
            asked = night.so_far(judged.reasons)
            answer = wait_for_approval(store, run_id, steps.ask(store, asked, settings.gate.approval_hours))
            night.learn(approval=answer)
            judged = replace(judged, reasons=[f"{answer}.", *judged.reasons])

    with night.step("promotion"):
        serves, why = steps.promote(store, run_id, candidate, begun.etag, who=night.run.who, reason=night.reason)
    if serves is None:
        return night.end("held", [why, *judged.reasons])
    night.learn(production_after=serves)
    return night.end("promoted", [*judged.reasons, why])


def _fine_tune(night: Night, settings: Settings, deployment: str | None, commit: int, production: str | None) -> None:
    """Train and score, in this process or by a deployment on the GPU pool; what came of it is in the store."""
    if deployment is None:
        fine_tune(
            night.run.run_id,
            commit,
            production=production,
            store=night.store,
            training=settings.training,
            gate=settings.gate,
            checks=settings.checks,
        )
        return
    parameters: dict[str, JsonValue] = {
        "run_id": night.run.run_id,
        "commit": commit,
        "production": production,
        "store": night.store,
        "training": settings.training.model_dump(mode="json"),
        "gate": settings.gate.model_dump(mode="json"),
        "checks": settings.checks.model_dump(mode="json"),
    }
    fine_tune_elsewhere(deployment, parameters)
