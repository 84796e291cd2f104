"""The answer of a person to a candidate that passed the gate: kept in the run's folder, where the first one counts.

`waiting.json` says that a run waits, and until when; `approval.json` is the answer, written only where there is none.
So it does not matter through which door an answer comes, how many come at once, or whether the run that asked still
lives: the next attempt of that run reads the same answer, or waits until the same moment.

Who answers is what they say of themselves. Neither the store nor Prefect's one password tells people apart.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from tasks import registry, runs
from tasks.config import Approval
from tasks.records import Waiting
from tasks.runs import Run
from tasks.storage import Store

LONGEST_NAME: Final = 200
LONGEST_COMMENT: Final = 2_000


class ApprovalError(Exception):
    """An answer that cannot be taken; the message says why."""


def ask(store: Store, run_id: str, candidate: str, hours: float) -> Waiting:
    """Note that a candidate waits for an answer from now on; another attempt of the run waits until the same moment."""

    def waiting() -> Waiting:
        now = registry.store_time(store)
        return Waiting(candidate, now, now + timedelta(hours=hours))

    return Run(store, run_id).once(runs.WAITING, waiting)


def find(store: Store, run_id: str) -> Approval | None:
    """The answer, or None while there is none."""
    return Run(store, run_id).find(runs.APPROVAL)


def waiting(store: Store) -> dict[str, Waiting]:
    """The runs that wait for an answer now, by their ids."""
    found = {run.run_id: run.find(runs.WAITING) for run in runs.unfinished(store)}
    return {
        run_id: one
        for run_id, one in found.items()
        if one is not None and _now() <= one.until and find(store, run_id) is None
    }


def answer(
    store: Store, run_id: str, decision: Literal["approved", "rejected"], *, by: str, comment: str = ""
) -> Approval:
    """Give the answer of a person. Raises ApprovalError where none is waited for, or one was given already."""
    run = Run(store, run_id)
    _check_waits(run)
    given = Approval(answer=decision, by=_line(by), comment=_line(comment), at=_now())
    if not given.by or len(given.by) > LONGEST_NAME or len(given.comment) > LONGEST_COMMENT:
        raise ApprovalError(
            f"an answer needs a name of at most {LONGEST_NAME} characters, and a comment of at most {LONGEST_COMMENT:,}"
        )
    if store.put_if_absent(run.key(runs.APPROVAL.name), given.model_dump_json().encode()) is None:
        raise _answered(run)
    return given


def expire(store: Store, run_id: str) -> Approval:
    """The answer in the place of one that nobody gave in time; or the one that came at the last moment."""
    run = Run(store, run_id)
    waiting = run.read(runs.WAITING)
    hours = (waiting.until - waiting.since) / timedelta(hours=1)
    late = Approval(answer="expired", comment=f"nobody approved within {hours:.4g} hours", at=_now())
    return run.once(runs.APPROVAL, lambda: late)


def _check_waits(run: Run) -> None:
    """Raise ApprovalError unless the run waits for an answer now.

    By a listing: S3 says of a missing object that it is forbidden to who may list a part of the bucket only.
    """
    there = {entry.key for entry in run.store.entries(run.key(""))}
    if not there:
        raise ApprovalError(f"there is no run {run.run_id} in {run.store.url}: `ratchet history` lists them")
    if run.key(runs.APPROVAL.name) in there:
        raise _answered(run)
    if run.key(runs.WAITING.name) not in there:
        raise ApprovalError(
            f"run {run.run_id} does not wait for an answer: it ended or has not come so far, or gate.approval_hours is "
            "not set"
        )
    until = run.read(runs.WAITING).until
    if _now() > until:
        raise ApprovalError(f"run {run.run_id} waited until {until:%Y-%m-%d %H:%M} UTC: it is too late")


def _answered(run: Run) -> ApprovalError:
    return ApprovalError(f"run {run.run_id} has its answer already. {run.read(runs.APPROVAL)}")


def _line(text: str) -> str:
    """A text as one line without characters that show nothing."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
