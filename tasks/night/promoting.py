"""The change of production, and what can be said of it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tasks import runs
from tasks.config import Model
from tasks.night.judging import hold
from tasks.runs import Run
from tasks.storage import Store

if TYPE_CHECKING:
    from tasks.registry import Announce, Change


def promote(
    store: Store,
    run_id: str,
    candidate: Model,
    etag: str | None,
    *,
    who: str,
    reason: str,
    announce: Announce | None = None,
) -> tuple[Change | None, str]:
    """Let the candidate serve in the place of exactly what it was compared with.

    Returns the change of production and why it may be trusted to be the only one; or None and why there was none.
    Raises VersionError when the candidate is not whole; of one that waited for a person every hash is checked.
    """
    from tasks.registry import ProductionChangedError, RefusedError, pull, silently
    from tasks.registry import promote as move

    version = str(candidate.version)
    approval = Run(store, run_id).find(runs.APPROVAL)
    if approval is not None and approval.answer != "approved":
        return None, hold(store, run_id, f"{approval}.")
    if approval is not None and (changed := _guards_changed(store, run_id)):  # it may have waited for hours
        return None, hold(store, run_id, changed)
    if approval is not None:  # its files were read hours ago
        with TemporaryDirectory() as folder:
            pull(store, version, Path(folder) / "candidate")
    try:
        change = move(
            store,
            version,
            etag,
            run_id=run_id,
            who=who,
            reason=reason,
            scores=candidate.scores,
            announce=announce or silently,
            approval=approval,
            base_documents=_base_documents(Run(store, run_id)),
        )
    except (ProductionChangedError, RefusedError) as error:
        return None, hold(store, run_id, f"The candidate was better, but was not promoted: {error}.")
    return change, _promoted(change)


def _guards_changed(store: Store, run_id: str) -> str:
    """Which guard sets are not as they were scored; nothing where an earlier attempt of this run has promoted."""
    from tasks.scoring import guards

    scored = Run(store, run_id).find(runs.SCORED)
    found = guards.changed(store, scored.guards if scored else ())
    return " ".join(guards.vetoes(found)) if found and stands(store, run_id)[1] is None else ""


def _base_documents(run: Run) -> str | None:
    """The identity of the base model's documents: what an index is built with where no version serves."""
    scored = run.find(runs.SCORED)
    sides = (scored.base, scored.production) if scored else ()
    return next((side.documents for side in sides if side and side.version is None), None)


def _promoted(change: Change) -> str:
    return f"Version {change.version} serves since {change.at:%Y-%m-%d %H:%M} UTC, as change {change.promotion}."


def leaving(store: Store) -> int | None:
    """The number of the change that is in force now; None where nothing was ever promoted."""
    from tasks.registry import read_production

    production = read_production(store)
    return production.promotion if production else None


def stands(store: Store, run_id: str) -> tuple[str | None, str | None]:
    """What serves now, and, where this run has promoted it or what served before it, the sentence that says so.

    For a run that broke off: what it says of production follows from production.
    """
    from tasks import registry

    changes = registry.history(store)
    made = [change for change in changes if (change.run_id, change.action) == (run_id, "promotion")]
    return (changes[-1].version if changes else None), (_promoted(made[-1]) if made else None)
