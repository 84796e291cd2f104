"""What the store holds that the log does not, and what the log holds that the store does not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tasks.config import Limits
from tasks.intake.commit_log import Live, State
from tasks.parsing import KINDS, PARSER_VERSION, is_ignored
from tasks.storage import Entry, Store

_RECENT_PARTITIONS: Final = 3
"""Latest dates whose partitions are always listed; partitions not seen before are listed too."""

_CAPS: Final = (
    "max_object_bytes",
    "max_line_bytes",
    "max_object_rows",
    "max_decompressed_bytes",
    "max_compression_ratio",
    "max_text_chars",
    "max_negatives",
)
"""Limits that decide what of an object is taken."""

_PARTITION: Final = re.compile(r"dt=\d{4}-\d{2}-\d{2}")
_THREADS: Final = 16


@dataclass(frozen=True)
class Found:
    """What a listing shows beside the log."""

    new: list[Entry]
    """Objects that the log does not hold as they are now, by key; and those that were refused by other rules."""
    gone: list[str]
    """Keys that the log holds and the store does not; empty unless everything was listed."""
    ignored: list[str]
    """Side files of programs, which hold no rows."""
    full: bool
    """Whether everything was listed."""


def reader(limits: Limits) -> dict[str, Any]:
    """What a refusal depends on besides the object: the parser's version and the caps."""
    return {"parser": PARSER_VERSION, "limits": {name: getattr(limits, name) for name in _CAPS}}


def look(store: Store, log: State, limits: Limits, *, full: bool) -> Found:
    """Compare the store with the log.

    Unless `full` is asked for, recent partitions suffice while they yield something and the last full listing is not
    long ago. When they yield nothing, everything is listed: what arrives late in an old partition is late, never lost.
    Only where everything was listed can something be gone. Raises StoreError when a listing does not come to its end.
    """
    known = len(log.objects) >= limits.full_listing_below
    if not full and known and log.commit - log.full_listing < limits.full_listing_commits:
        entries, ignored = _sorted_out(entry for folder in KINDS for entry in _recent(store, log, f"{folder}/"))
        new = _new(log, entries, limits)
        if new:
            return Found(new, [], ignored, full=False)
    with ThreadPoolExecutor(len(KINDS)) as pool:
        listings = pool.map(lambda folder: list(store.entries(f"{folder}/")), KINDS)
        entries, ignored = _sorted_out(entry for listing in listings for entry in listing)
    return Found(_new(log, entries, limits), _gone(store, log, entries), ignored, full=True)


def too_many_gone(log: State, found: Found, limits: Limits) -> str:
    """Why the removals that a listing asks for need a person's word first; empty where they do not.

    An object that was replaced is not gone: one with the same bytes is new under another name, or a comparable number
    of new ones is in its folder, as when a program rewrites a folder.
    """
    gone = [key for key in found.gone if not is_ignored(key)]
    added = [entry for entry in found.new if entry.key not in log.objects]
    etags = {entry.etag for entry in added}
    lost = [key for key in gone if log.objects[key].etag not in etags]
    lost_in = Counter(map(_folder, lost))
    added_in = Counter(_folder(entry.key) for entry in added)
    lost = [key for key in lost if 2 * added_in[_folder(key)] < lost_in[_folder(key)]]
    if len(lost) <= limits.max_removed_share * len(log.objects):
        return ""
    return (
        f"{len(lost):,} of {len(log.objects):,} known objects are gone from the store, such as {lost[0]}: more than "
        f"limits.max_removed_share ({limits.max_removed_share:g}) at once, so nothing was taken in. If they were "
        "removed on purpose, confirm it with a run with limits.max_removed_share=1; else restore them."
    )


def future_partitions(entries: Iterable[str]) -> list[str]:
    """Partitions among some keys that are dated later than tomorrow, the earliest first."""
    names = {name for key in entries for name in key.split("/")[1:-1] if _PARTITION.fullmatch(name)}
    return sorted(name for name in names if name > _tomorrow())


def _sorted_out(entries: Iterable[Entry]) -> tuple[dict[str, Entry], list[str]]:
    """Objects by key, and the keys of side files; markers that some programs write for folders are neither."""
    objects: dict[str, Entry] = {}
    ignored: set[str] = set()
    for entry in entries:
        if is_ignored(entry.key):
            ignored.add(entry.key)
        elif entry.size or not entry.key.endswith("/"):
            objects[entry.key] = entry
    return objects, sorted(ignored)


def _new(log: State, entries: Mapping[str, Entry], limits: Limits) -> list[Entry]:
    """What the log does not hold as it is, or would hold more of by the rules as they are now."""
    nothing = Live("", 0, 0, 0, 0, 0)
    new = []
    for key in sorted(entries):
        live = log.objects.get(key, nothing)
        if live.etag != entries[key].etag or (live.rejected and _may_take_more(log, live, limits)):
            new.append(entries[key])
    return new


def _may_take_more(log: State, live: Live, limits: Limits) -> bool:
    """Whether what was rejected of an object was rejected by another parser, or by a cap that is higher now."""
    rules = log.readers.get(live.last)
    if rules is None:  # an older version did not note them: whole refusals alone are looked at again
        return not live.accepted
    caps = rules.get("limits", {})
    return rules.get("parser") != PARSER_VERSION or any(getattr(limits, name) > caps.get(name, 0) for name in _CAPS)


def _gone(store: Store, log: State, entries: Mapping[str, Entry]) -> list[str]:
    """Keys that the log holds and a full listing does not; each is asked for once more, since listings can err."""
    missing = sorted(key for key in log.objects if key not in entries)
    with ThreadPoolExecutor(_THREADS) as pool:
        there = pool.map(lambda key: not is_ignored(key) and store.exists(key), missing)
        return [key for key, still in zip(missing, there, strict=True) if not still]


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _tomorrow() -> str:
    return f"dt={datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}"


def _recent(store: Store, log: State, prefix: str) -> Iterator[Entry]:
    """Everything under a folder but the partitions `dt=YYYY-MM-DD` that are neither among the latest nor unseen.

    A partition of the future does not count among the latest: it would take the place of the present day's.
    """
    loose, folders = store.level(prefix)
    yield from loose
    partitions = sorted(name for name in folders if _PARTITION.fullmatch(name) and name <= _tomorrow())
    seen = {key.removeprefix(prefix).partition("/")[0] for key in log.objects if key.startswith(prefix)}
    old = set(partitions[:-_RECENT_PARTITIONS]) & seen
    for name in folders:
        if name not in old:
            yield from store.entries(f"{prefix}{name}/")
