"""What is deleted since no night needs it any more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from tasks import runs
from tasks.runs import Run
from tasks.storage import Store

_GIVEN_UP: Final = timedelta(days=7)
"""A run may wait for a GPU for a day, and be tried again by hand after a weekend."""


@dataclass(frozen=True)
class Retired:
    """What `retire` has deleted, or would delete."""

    versions: Sequence[str]
    checkpoints: Sequence[str]
    """Runs whose checkpoints are left over."""
    vectors: Sequence[str] = ()
    """Keys of vectors of indexes."""


def retire(
    store: Store, *, keep: int | None = None, ledger_entries: int | None = None, dry_run: bool = False
) -> Retired:
    """Delete the versions and vectors of indexes that nothing needs, and the checkpoints of abandoned runs.

    Kept is what serves, what the ledger's last entries name, what a run without a verdict uses, and the last `keep`
    candidates. A run without a verdict counts as given up when nothing was written in its folder for a week.
    """
    from tasks import index, registry

    now = registry.store_time(store)
    left = [run for run in runs.unfinished(store) if _idle(run, now)]
    found = {run.run_id: [entry.key for entry in store.entries(run.key(runs.CHECKPOINTS))] for run in left}
    leftover = {run_id: keys for run_id, keys in found.items() if keys}
    if not dry_run:
        for keys in leftover.values():
            store.delete(keys)
    versions = registry.retire(
        store,
        keep=keep or registry.KEEP,
        ledger_entries=ledger_entries or registry.LEDGER_ENTRIES,
        in_use=lambda: versions_in_use(store),
        dry_run=dry_run,
    )
    vectors = index.retire(store, ledger_entries=ledger_entries, dry_run=dry_run)
    return Retired(versions, sorted(leftover), vectors)


def tidy(store: Store, work: Path) -> list[str]:
    """Delete what was pulled to this machine and neither serves, nor served before, nor is used by a run."""
    from tasks import registry

    production = registry.read_production(store)
    serves = {production.version, production.previous} if production else set()
    kept = {version for version in serves if version} | versions_in_use(store)
    return registry.tidy(work / "models", kept, now=time.time())


def versions_in_use(store: Store) -> set[str]:
    """Versions that runs without a verdict have made, compare with, or started from."""
    from tasks import registry

    now = registry.store_time(store)
    found: set[str | None] = set()
    for run in runs.unfinished(store):
        if not _idle(run, now):
            begun, candidate, started = run.find(runs.BEGUN), run.find(runs.CANDIDATE), run.find(runs.STARTED)
            found |= {begun.version if begun else None, candidate.version if candidate else None}
            found |= {started.production, started.plan.start} if started else set()
    return {version for version in found if version}


def _idle(run: Run, now: datetime) -> bool:
    """Whether nothing was written in a run's folder for a week, by the store's clock."""
    written = max((entry.modified for entry in run.store.entries(run.key(""))), default=now)
    return now - written > _GIVEN_UP
