"""Which versions are kept; deleting the others so that a crash leaves a whole version or none that verifies.

A version goes in this order: the marker `RETIRED`, its manifest (from here on it does not verify), its files, the
marker. The marker is what keeps a promotion and a deletion of one version apart: a promotion writes the manifest
anew and then looks for the marker (`versions.hold`), a deletion writes the marker and then looks at the manifest's age
and at production. Whichever comes second sees the first, and gives way.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from tasks.registry.production import history
from tasks.registry.versions import MANIFEST, RETIRED, is_version
from tasks.storage import Entry, Store

MIN_AGE: Final = timedelta(days=1)
"""Longer than any run: what was written more recently may be on its way into production."""


def retire(store: Store, *, keep: int, ledger_entries: int, now: datetime | None = None) -> list[str]:
    """Delete versions that nothing needs, and return their names.

    Kept are the `keep` latest versions, every version that the last `ledger_entries` changes of production name,
    what serves and what served before it, and whatever was written less than a day before `now`. The remains of
    interrupted uploads and deletions go too. Raises ValueError for counts below 1, and LedgerError, with nothing
    deleted, when the ledger is not whole.
    """
    if keep < 1 or ledger_entries < 1:
        raise ValueError(f"keep at least one version and one ledger entry, got {keep} and {ledger_entries}")
    before = (now or datetime.now(UTC)) - MIN_AGE
    found = _by_version(store)
    whole = [version for version, entries in found.items() if MANIFEST in entries]
    latest = sorted(whole, key=lambda version: (found[version][MANIFEST].modified, version), reverse=True)[:keep]
    kept = _needed(store, ledger_entries) | set(latest)
    retired = []
    for version, entries in sorted(found.items()):
        written = max((entry.modified for name, entry in entries.items() if name != RETIRED), default=None)
        if version not in kept and (written is None or written <= before):
            if _delete(store, version, before, ledger_entries):
                retired.append(version)
        elif RETIRED in entries and entries[RETIRED].modified <= before:
            store.delete([entries[RETIRED].key])  # an interrupted deletion that had not begun to delete
    return retired


def _by_version(store: Store, version: str = "") -> dict[str, dict[str, Entry]]:
    """Objects of all versions, or of one, by version and path in its folder; what is no version is not ours."""
    found: dict[str, dict[str, Entry]] = {}
    for entry in store.entries(f"models/{version}/" if version else "models/"):
        name, _, path = entry.key.removeprefix("models/").partition("/")
        if is_version(name):
            found.setdefault(name, {})[path] = entry
    return found


def _needed(store: Store, ledger_entries: int) -> set[str]:
    """Versions that production and the end of the ledger name."""
    changes = history(store)[-ledger_entries:]
    return {name for change in changes for name in (change.version, change.previous) if name is not None}


def _delete(store: Store, version: str, before: datetime, ledger_entries: int) -> bool:
    """Delete one version, unless it turns out to be in use once it is marked."""
    marker = f"models/{version}/{RETIRED}"
    store.put(marker, b"being deleted\n")
    entries = _by_version(store, version)[version]
    del entries[RETIRED]
    if version in _needed(store, ledger_entries) or any(entry.modified > before for entry in entries.values()):
        store.delete([marker])
        return False
    manifest = [entries.pop(MANIFEST).key] if MANIFEST in entries else []
    store.delete([*manifest, *(entry.key for entry in entries.values()), marker])
    return True
