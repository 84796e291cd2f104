"""Intake: every row of every new object exactly once, in commits that fix the data of a night.

An object is new when its ETag is not the one the log holds for its key; times play no part. The log is read first,
then the store is listed, then objects are read under the ETag that was listed, then a commit is written that can only
succeed when nobody else has written one in between. So a commit never takes an object twice, and never takes an older
state of an object after a newer one.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tasks.config import Limits
from tasks.intake import commit_log
from tasks.intake.batch import Batch
from tasks.intake.commit_log import Commit, State
from tasks.intake.listing import new_objects
from tasks.parsing import Chunk, kind_of, refuse_unread
from tasks.storage import ChangedError, Entry, Store

THREADS: Final = 32
"""Objects that are read at once: enough for 400 in a second when each takes 80 ms."""

AHEAD_BYTES: Final = 64 << 20
"""Bytes that are read ahead of the parser; an object larger than this is read alone."""


@dataclass(frozen=True)
class Intake:
    """What one call took in."""

    commit: int
    """The last commit of the log; 0 when it is empty."""
    new_commits: tuple[int, ...]
    accepted: int
    """Rows of `pairs/` in the new commits."""
    rejected: int
    """Rejected rows of `pairs/` in the new commits."""


def take_in(
    store: Store,
    *,
    writer: str,
    limits: Limits | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Intake:
    """Commit every object that is new, and say what came of it.

    May be interrupted anywhere, and run anywhere at the same time: rows are taken once. An object that changes or goes
    while it is read is left for the next call. Memory is bounded by `limits`, not by how much is new.

    Args:
        store: Where the objects and the log are.
        writer: Name of the run, noted in the log.
        limits: Caps on objects and commits.
        on_progress: Called with objects read and objects to read.

    Raises LogError when the log is damaged, StoreError when the store fails.
    """
    caps = limits or Limits()
    mine: list[Commit] = []
    while True:
        log = commit_log.load(store)
        commit_log.complete(store, log)
        new, full = new_objects(store, log, caps)
        if _commit_all(store, log, new, full, writer, caps, mine, on_progress):
            break
    commit_log.checkpoint(store, log)
    pairs = [source for commit in mine for source in commit.objects if kind_of(source.key) == "pair"]
    return Intake(
        commit=log.commit,
        new_commits=tuple(commit.commit for commit in mine),
        accepted=sum(source.accepted for source in pairs),
        rejected=sum(source.rejected for source in pairs),
    )


def _commit_all(
    store: Store,
    log: State,
    new: Sequence[Entry],
    full: bool,
    writer: str,
    limits: Limits,
    mine: list[Commit],
    on_progress: Callable[[int, int], None] | None,
) -> bool:
    """Commit the objects in as many commits as the limits ask for. False: another writer was faster, look again."""
    with tempfile.TemporaryDirectory() as folder, closing(_bodies(store, new, limits)) as bodies:
        batch = Batch(Path(folder))
        for done, (entry, body) in enumerate(bodies, 1):
            if body is not None:
                batch.add(entry, body, limits)
            if on_progress is not None:
                on_progress(done, len(new))
            if batch.is_full(limits) or (done == len(new) and batch.sources):
                commit = batch.store(store, log.commit + 1, writer, full)
                if not commit_log.append(store, log, commit):
                    return False
                mine.append(commit)
                commit_log.complete(store, log)
                batch = Batch(Path(folder))
    return True


def _bodies(
    store: Store, entries: Sequence[Entry], limits: Limits
) -> Generator[tuple[Entry, bytes | Chunk | None], None, None]:
    """Each object with its bytes, in order, read by several threads a bounded number of bytes ahead.

    Instead of the bytes: the record of an object that need not be read to be refused, None for one that is no longer
    what was listed.
    """

    def read(entry: Entry) -> bytes | Chunk | None:
        refused = refuse_unread(entry.key, entry.size, limits)
        if refused is not None:
            return refused
        try:
            return store.get_listed(entry).body
        except ChangedError:
            return None

    waiting = deque(entries)
    reading: deque[tuple[Entry, Future[bytes | Chunk | None]]] = deque()
    ahead = 0
    pool = ThreadPoolExecutor(THREADS)
    try:
        while waiting or reading:
            while waiting and len(reading) < 2 * THREADS and (not reading or ahead + waiting[0].size <= AHEAD_BYTES):
                entry = waiting.popleft()
                ahead += entry.size
                reading.append((entry, pool.submit(read, entry)))
            entry, future = reading.popleft()
            yield entry, future.result()
            ahead -= entry.size
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
