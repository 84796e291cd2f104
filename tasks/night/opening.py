"""How a night begins: what serves, and what is new in the store."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from tasks import runs
from tasks.config import Limits, Outcome, Pending, Refused
from tasks.records import Begun, Settings, Taken
from tasks.runs import Run
from tasks.storage import Store

if TYPE_CHECKING:
    from tasks.encoding import Progress
    from tasks.intake import Pending as Unread
    from tasks.registry import Announce

_LATEST: Final = 20
"""Runs that are looked at for one on the log as it is, after it was started anew."""

_NAMED: Final = 5
"""Objects of a kind that an outcome's reasons name."""

_MOST_REFUSED: Final = 100
"""Refused objects that an outcome lists."""


def begin(store: Store, run_id: str, settings: Settings | None = None, announce: Announce | None = None) -> Begun:
    """Complete an interrupted promotion, and note what serves and which commit the last night concluded on.

    `settings` are kept for the run's report; `announce` is told of a promotion whose process died before it did so.
    """
    from tasks.registry import settle, silently

    run = Run(store, run_id)
    if settings is not None:
        run.once(runs.SETTINGS, lambda: settings)

    production = settle(
        store, announce or silently
    )  # at every attempt: also at one after a crash between pointer and ledger

    def begun() -> Begun:
        last = runs.last_concluded(store, before=run_id)
        return Begun(
            version=production.version if production else None,
            etag=production.etag if production else None,
            last_commit=last.commit if last else 0,
            last_run=f"{last.run_id} ({last.verdict})" if last else None,
        )

    return run.once(runs.BEGUN, begun)


def take_in(
    store: Store, run_id: str, last_commit: int, limits: Limits | None = None, on_progress: Progress | None = None
) -> Taken:
    """Commit every object that is new and every removal, and count what the night has to work with."""
    from tasks import intake

    def taken() -> Taken:
        found = intake.take_in(store, writer=run_id, limits=limits, full=True, on_progress=on_progress)
        last = runs.last_concluded(store, before=run_id)
        log = intake.commit_log.identity(store)
        since = _last_commit(store, run_id, log) if _is_another_log(store, last, log) else last_commit
        since = since if since <= found.commit else 0
        changes = intake.changes(store, since, found.commit)
        counts = intake.counts(store, found.commit)
        del counts["corpus"]  # the corpus of a night is its distinct documents, which are not known yet
        pending = _pending(found.pending, last, run_id)
        refused = [Refused(key=r.key, reason=r.reason, rows=r.rows) for r in intake.refused(store, found.commit)]
        return Taken(
            found.commit,
            changes.new_pairs,
            {**counts, "new": changes.new_pairs, **({"removed": changes.removed} if changes.removed else {})},
            removed=changes.removed,
            since=since,
            log=log,
            pending=pending,
            refused=refused[:_MOST_REFUSED],
            remarks=[
                *_remarks(pending, refused, found.ignored, found.future),
                *_first(intake.decisions(store, since, found.commit), "decisions about columns"),
            ],
            blocked=found.blocked,
        )

    return Run(store, run_id).once(runs.TAKEN, taken)


def _is_another_log(store: Store, last: Outcome | None, log: str) -> bool:
    """Whether the log of the last night was deleted since; not known of nights of older versions."""
    taken = None if last is None else Run(store, last.run_id).find(runs.TAKEN)
    return taken is not None and taken.log not in {"", log}


def _last_commit(store: Store, run_id: str, log: str) -> int:
    """The commit of the latest concluded run on this log, among the latest runs; 0 where there is none."""
    for run in islice(runs.backwards(store, before=run_id), _LATEST):
        taken = run.find(runs.TAKEN)
        if taken is not None and taken.log == log and runs.concluded(run.outcome):
            return taken.commit
    return 0


def _pending(found: Sequence[Unread], last: Outcome | None, run_id: str) -> list[Pending]:
    """The objects that could not be read, with the nights in a row that could not."""
    before = {object_.key: object_ for object_ in (last.pending if last else ())}
    pending = []
    for unread in found:
        known = before.get(unread.key, Pending(key=unread.key, reason="", nights=0, since=run_id))
        update = {"reason": unread.reason, "nights": known.nights + 1}
        pending.append(known.model_copy(update=update))
    return pending


def _remarks(
    pending: Sequence[Pending], refused: Sequence[Refused], ignored: Sequence[str], future: Sequence[str]
) -> list[str]:
    """What an outcome says about the objects of its store, besides its verdict."""
    lines = [f"Could not be read for {p.nights} night{'s' * (p.nights != 1)}: {p.key}: {p.reason}." for p in pending]
    remarks = _first(lines, "objects could not be read")
    lines = [f"Refused: {one.key} (about {one.rows:,} row{'s' * (one.rows != 1)}): {one.reason}." for one in refused]
    remarks += _first(lines, "objects are refused")
    if ignored:
        remarks.append(f"Ignored as side files: {ignored[0]}{f' and {len(ignored) - 1:,} more' * (len(ignored) > 1)}.")
    if future:
        remarks.append(f"Partitions of the future: {', '.join(future[:_NAMED])}. Is a clock wrong?")
    return remarks


def _first(lines: Sequence[str], what: str) -> list[str]:
    more = len(lines) - _NAMED
    return [*lines[:_NAMED], *([f"{more:,} more {what}."] if more > 0 else [])]
