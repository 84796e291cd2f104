"""Which versions are kept; deleting the others so that a crash leaves a whole version or none that verifies.

A version goes in this order: the marker `RETIRED`, its manifest (from here on it does not verify), its files, the
marker. The marker is what keeps a promotion and a deletion of one version apart: a promotion writes the manifest
anew and then looks for the marker (`versions.hold`), a deletion writes the marker and then looks at the manifest's age
and at production. The one that comes second sees the first, and gives way.

A marker that is older than a day may be taken over. So a deletion that was held up (a machine asleep, a request that
hung) must not go on: the version may be gone, and published again, under the same keys with the same bytes. Before
every delete it looks whether the marker is still its own and at most half a day old.

Ages are told by the store's clock alone: a machine whose own is ahead would find everything old.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from tasks.registry.clock import store_time
from tasks.registry.ledger import history
from tasks.registry.versions import MANIFEST, RETIRED, is_version
from tasks.storage import Entry, Store, StoreError

KEEP: Final = 10
"""Latest candidates that are kept, whatever became of them."""

LEDGER_ENTRIES: Final = 10
"""Latest changes of production whose versions are kept: so far a rollback can go back."""

_MIN_AGE: Final = timedelta(days=1)
"""What was written more recently may be on its way into production."""

_LEASE: Final = _MIN_AGE / 2
"""For so long a deletion may go on after it marked its version; the other half is for the last of its requests."""

InUse = Callable[[], Collection[str]]
"""Versions that something needs now besides production and the ledger, such as a night that is under way."""


def _nothing() -> Collection[str]:
    return ()


@dataclass(frozen=True)
class _Rule:
    """What is kept."""

    before: datetime
    """Only what was last written before this may go."""
    ledger_entries: int
    in_use: InUse

    def needed(self, store: Store) -> set[str]:
        """Versions that production, the end of the ledger, or something else names now."""
        changes = history(store)[-self.ledger_entries :]
        named = {name for change in changes for name in (change.version, change.previous) if name is not None}
        return named | set(self.in_use())


def retire(
    store: Store,
    *,
    keep: int = KEEP,
    ledger_entries: int = LEDGER_ENTRIES,
    in_use: InUse = _nothing,
    now: datetime | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Delete versions that nothing needs, and return their names; with `dry_run` only return them.

    Kept are the `keep` latest versions, every version that the last `ledger_entries` changes of production name,
    what serves and what served before it, what is `in_use`, and whatever was written less than a day before `now` (by
    default the store's time). The remains of interrupted uploads and deletions go too. Raises ValueError for counts
    below 1, and LedgerError, with nothing deleted, when the ledger is not whole.
    """
    if keep < 1 or ledger_entries < 1:
        raise ValueError(f"keep at least one version and one ledger entry, got {keep} and {ledger_entries}")
    rule = _Rule((now or store_time(store)) - _MIN_AGE, ledger_entries, in_use)
    versions = _by_version(store)
    kept = rule.needed(store) | set(_latest(versions, keep))
    retired = []
    for version, entries in sorted(versions.items()):
        written = max((entry.modified for name, entry in entries.items() if name != RETIRED), default=None)
        if version not in kept and (written is None or written <= rule.before):
            if dry_run or _delete(store, version, rule):
                retired.append(version)
        elif not dry_run and RETIRED in entries and entries[RETIRED].modified <= rule.before:
            claim = _claim(store, version, rule.before)  # an interrupted deletion that had not begun to delete
            if claim is not None:
                claim.delete([claim.marker])
    return retired


def _latest(versions: dict[str, dict[str, Entry]], keep: int) -> list[str]:
    """The whole versions that were last written, the latest first."""
    whole = [version for version, entries in versions.items() if MANIFEST in entries]
    return sorted(whole, key=lambda version: (versions[version][MANIFEST].modified, version), reverse=True)[:keep]


def _by_version(store: Store, version: str = "") -> dict[str, dict[str, Entry]]:
    """Objects of all versions, or of one, by version and path in its folder; other folders are not ours."""
    found: dict[str, dict[str, Entry]] = {}
    for entry in store.entries(f"models/{version}/" if version else "models/"):
        name, _, path = entry.key.removeprefix("models/").partition("/")
        if is_version(name):
            found.setdefault(name, {})[path] = entry
    return found


@dataclass(frozen=True)
class _Claim:
    """The marker of this call alone on a version, and since when (on this machine's clock, sleep included)."""

    store: Store
    marker: str
    etag: str
    since: float

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects one by one, each only while the marker is surely this call's. Raises StoreError."""
        for key in keys:
            there = self.store.find(self.marker)
            if there is None or there.etag != self.etag or _seconds() - self.since > _LEASE.total_seconds():
                version = self.store.uri(self.marker.removesuffix(RETIRED))
                raise StoreError(
                    f"the deletion of {version} was held up for too long, and may be another's by now: "
                    "run `ratchet retire` again"
                )
            self.store.delete([key])


def _seconds() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _delete(store: Store, version: str, rule: _Rule) -> bool:
    """Delete one version, unless it turns out to be in use once it is marked."""
    claim = _claim(store, version, rule.before)
    if claim is None:
        return False
    entries = _by_version(store, version).get(version, {})
    entries.pop(RETIRED, None)
    needed = version in rule.needed(store) or any(entry.modified > rule.before for entry in entries.values())
    if not needed:
        claim.delete([entries.pop(MANIFEST).key] if MANIFEST in entries else [])
        claim.delete(entry.key for entry in entries.values())
    claim.delete([claim.marker])
    return not needed


def _claim(store: Store, version: str, before: datetime) -> _Claim | None:
    """Mark a version as being deleted by this call alone; None where another call is at it.

    Were a marker shared, the call that gives way would take it from under the one that keeps deleting. A marker that
    is older than a day was left by a call that died, or was held up and will notice.
    """
    marker, since = f"models/{version}/{RETIRED}", _seconds()
    own = f"being deleted by {secrets.token_hex(8)}\n".encode()
    etag = store.put_if_absent(marker, own)
    if etag is None:
        old = next((entry for entry in store.entries(marker) if entry.modified <= before), None)
        etag = None if old is None else store.put_if_match(marker, own, old.etag)
    return None if etag is None else _Claim(store, marker, etag, since)


def tidy(models: Path, kept: Collection[str], *, now: float) -> list[str]:
    """Delete pulled versions from a work folder that are not among `kept`, and return their names.

    What was pulled less than a day before `now` (seconds since 1970) stays: a run on this machine may be reading it.
    """
    old = [
        path
        for path in sorted(models.iterdir() if models.is_dir() else ())
        if is_version(path.name) and path.name not in kept and not path.is_symlink()
    ]
    gone = [path for path in old if path.stat().st_mtime <= now - _MIN_AGE.total_seconds()]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in gone]
