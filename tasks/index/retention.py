"""Which vectors in the store are kept: those that what serves, or a rollback, may need again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from tasks import runs
from tasks.index import shards
from tasks.index.build import read_build
from tasks.index.encoder import Chosen, encoder_key
from tasks.index.shards import ShardError
from tasks.registry import BASE, LEDGER_ENTRIES, VersionError, history, read_manifest, store_time
from tasks.storage import Entry, Store

_MIN_AGE: Final = timedelta(days=1)
"""What was written more recently may belong to a reindex that is under way."""


def retire(
    store: Store, *, ledger_entries: int | None = None, now: datetime | None = None, dry_run: bool = False
) -> list[str]:
    """Delete vectors that nothing needs, and return their keys; with `dry_run` only return them.

    Kept are, for every document encoder of a version that the last changes of production name, the shards of its
    latest index; the same for the base model where they name it or nothing was ever promoted; and whatever was
    written less than a day before `now` (by default the store's time). What a target has loaded is the target's.

    Raises LedgerError, with nothing deleted, when the ledger is not whole.
    """
    everything = list(store.entries(shards.FOLDER))
    if not everything:
        return []
    before = (now or store_time(store)) - _MIN_AGE
    needed = _needed(store, ledger_entries or LEDGER_ENTRIES, {_identity(entry.key) for entry in everything})
    kept = set(_kept(store, everything, needed, before))
    gone = [entry.key for entry in everything if entry.key not in kept and entry.modified <= before]
    gone.sort(key=lambda key: not key.startswith(shards.BUILDS))  # no record names what is gone
    if not dry_run:
        store.delete(gone)
    return gone


def _identity(key: str) -> str:
    """The folder that a key is in: a document encoder, or `builds`, or `staged`."""
    return key.split("/")[1]


def _needed(store: Store, ledger_entries: int, there: set[str]) -> set[str]:
    """Document encoders whose vectors may be needed again."""
    changes = history(store)[-ledger_entries:]
    named = {name or BASE for change in changes for name in (change.version, change.previous)} or {BASE}
    found: set[str] = set()
    for version in named - {BASE}:
        try:
            found.add(read_manifest(store, version).description.documents or "")
        except VersionError:  # retired, or damaged: then no rollback goes there
            continue
    for identity in there - found:  # versions of earlier releases and the base model say nothing of theirs
        chosen = runs.find(store, encoder_key(identity), Chosen)
        if chosen is not None and chosen.model in named:
            found.add(identity)
    return found & there


def _kept(store: Store, everything: list[Entry], needed: set[str], before: datetime) -> Iterator[str]:
    """Keys of the latest index of each needed encoder, and of those that are young."""
    builds = sorted(
        (entry for entry in everything if entry.key.startswith(shards.BUILDS)),
        key=lambda one: one.modified,
        reverse=True,
    )
    latest: set[str] = set()
    for entry in builds:
        try:
            found = read_build(store, shards.name_of(entry.key).removesuffix(".json"))
        except ShardError:
            continue
        if found.identity in needed and (found.identity not in latest or entry.modified > before):
            latest.add(found.identity)
            yield entry.key
            yield from (shards.shard_key(found.identity, one.name) for one in found.shards)
    for identity in needed:
        yield encoder_key(identity)
        if identity not in latest:  # an index that was begun, and may be gone on with
            yield from (entry.key for entry in everything if _identity(entry.key) == identity)
