"""What the store holds that the log does not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tasks.config import Limits
from tasks.intake.commit_log import Live, State
from tasks.parsing import KINDS
from tasks.storage import Entry, Store

RECENT_PARTITIONS: Final = 3
"""Latest dates whose partitions are always listed; partitions not seen before are listed too."""

_PARTITION: Final = re.compile(r"dt=\d{4}-\d{2}-\d{2}")


def new_objects(store: Store, log: State, limits: Limits) -> tuple[list[Entry], bool]:
    """Objects that the log does not hold as they are now, by key; and whether everything was listed for it.

    Recent partitions suffice while they yield something and the last full listing is not long ago. When they yield
    nothing, everything is listed: what arrives late in an old partition is late, never lost.
    """
    known = len(log.objects) >= limits.full_listing_below
    if known and log.commit - log.full_listing < limits.full_listing_commits:
        new = _new(log, (entry for folder in KINDS for entry in _recent(store, log, f"{folder}/")))
        if new:
            return new, False
    with ThreadPoolExecutor(len(KINDS)) as pool:
        listings = pool.map(lambda folder: list(store.entries(f"{folder}/")), KINDS)
        return _new(log, (entry for listing in listings for entry in listing)), True


def _new(log: State, entries: Iterable[Entry]) -> list[Entry]:
    """What the log does not hold, each key once; markers that some programs write for folders are no objects."""
    nothing = Live("", 0, 0, 0, 0, 0)
    new = {
        entry.key: entry
        for entry in entries
        if log.objects.get(entry.key, nothing).etag != entry.etag and not (entry.key.endswith("/") and not entry.size)
    }
    return [new[key] for key in sorted(new)]


def _recent(store: Store, log: State, prefix: str) -> Iterator[Entry]:
    """Everything under a folder but the partitions `dt=YYYY-MM-DD` that are neither among the latest nor unseen."""
    loose, folders = store.level(prefix)
    yield from loose
    partitions = [name for name in folders if _PARTITION.fullmatch(name)]
    seen = {key.removeprefix(prefix).partition("/")[0] for key in log.objects if key.startswith(prefix)}
    old = set(sorted(partitions)[:-RECENT_PARTITIONS]) & seen
    for name in folders:
        if name not in old:
            yield from store.entries(f"{prefix}{name}/")
