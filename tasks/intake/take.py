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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tasks.config import Limits
from tasks.intake import commit_log
from tasks.intake.batch import Batch
from tasks.intake.commit_log import Commit, State
from tasks.intake.listing import Found, future_partitions, look, reader, too_many_gone
from tasks.parsing import Chunk, kind_of, refuse_unread
from tasks.runs import now
from tasks.splits import SPLIT_KEY, as_fields, load_split
from tasks.storage import ChangedError, Entry, Store, StoreError, UnreadableError

THREADS: Final = 32
"""Objects that are read at once: enough for 400 in a second when each takes 80 ms."""

AHEAD_BYTES: Final = 64 << 20
"""Bytes that are read ahead of the parser; an object larger than this is read alone."""


@dataclass(frozen=True)
class Pending:
    """An object that is there and could not be read; it is tried again by every call."""

    key: str
    etag: str
    reason: str


@dataclass(frozen=True)
class Intake:
    """What one call took in."""

    commit: int
    """The last commit of the log; 0 when it is empty."""
    new_commits: tuple[int, ...] = ()
    accepted: int = 0
    """Rows of `pairs/` in the new commits."""
    rejected: int = 0
    """Rejected rows of `pairs/` in the new commits."""
    removed: tuple[str, ...] = ()
    """Objects that are no longer there, by the new commits."""
    pending: tuple[Pending, ...] = ()
    ignored: tuple[str, ...] = ()
    """Side files of programs, which hold no rows."""
    future: tuple[str, ...] = ()
    """Partitions dated later than tomorrow: a slip, or a clock that is wrong."""
    blocked: str = ""
    """Why nothing was taken in before a person has confirmed it; empty where that is not so."""


def take_in(
    store: Store,
    *,
    writer: str,
    limits: Limits | None = None,
    full: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Intake:
    """Commit every object that is new, and the removal of every one that has gone; say what came of it.

    May be interrupted anywhere, and run anywhere at the same time: rows are taken once. An object that changes or goes
    while it is read is left for the next call, and so is one that cannot be read for a reason of its own. Memory is
    bounded by `limits`, not by how much is new.

    Args:
        store: Where the objects and the log are.
        writer: Name of the run, noted in the log.
        limits: Caps on objects and commits.
        full: List everything, however large the store is: what was removed, or changed in an old partition, is seen.
        on_progress: Called with objects read and objects to read.

    Raises LogError when the log is damaged, SplitError when the store's split is lost, StoreError when the store fails.
    """
    caps = limits or Limits()
    taking = _Taking(store, writer, caps, {"reader": reader(caps), "split": as_fields(load_split(store))}, on_progress)
    while True:
        log = commit_log.load(store)
        commit_log.complete(store, log)
        found = look(store, log, caps, full=full)
        blocked = too_many_gone(log, found, caps)
        if blocked or taking.carry_out(log, found):
            break
    commit_log.checkpoint(store, log)
    pairs = [source for commit in taking.commits for source in commit.objects if kind_of(source.key) == "pair"]
    return Intake(
        commit=log.commit,
        new_commits=tuple(commit.commit for commit in taking.commits),
        accepted=sum(source.accepted for source in pairs),
        rejected=sum(source.rejected for source in pairs),
        removed=tuple(key for commit in taking.commits for key in commit.removed),
        pending=tuple(taking.pending),
        ignored=tuple(found.ignored),
        future=tuple(future_partitions([*log.objects, *(entry.key for entry in found.new)])),
        blocked=blocked,
    )


@dataclass
class _Taking:
    """One call of `take_in` as it goes on."""

    store: Store
    writer: str
    limits: Limits
    notes: dict[str, Any]
    """What every entry of the log says besides."""
    on_progress: Callable[[int, int], None] | None
    commits: list[Commit] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    _again: bool = False
    _looked_again: bool = False

    def carry_out(self, log: State, found: Found) -> bool:
        """Commit what was found. False: look again, since another writer was faster, or the server failed at times."""
        self.pending = []
        if not self._remove(log, found.gone, found.full) or not self._take(log, found):
            return False
        # what is there instead of a known object is not known, and the known one is gone
        replaced = [unread.key for unread in self.pending if unread.reason != _CHANGED and unread.key in log.objects]
        if not self._remove(log, replaced, full=False):
            return False
        again, self._again = self._again, False
        return not again

    def _remove(self, log: State, keys: Sequence[str], full: bool) -> bool:
        """Commit that objects are gone. False: another writer was faster."""
        if not keys:
            return True
        entry = Commit(
            commit=log.commit + 1,
            writer=self.writer,
            at=now(),
            full_listing=full,
            objects=(),
            accepted=0,
            rejected=0,
            batch=None,
            rejected_rows=None,
            quarantine=None,
            removed=tuple(keys),
            **self.notes,
        )
        return self._append(log, entry)

    def _append(self, log: State, entry: Commit) -> bool:
        if not commit_log.append(self.store, log, entry):
            return False
        self.commits.append(entry)
        commit_log.complete(self.store, log)
        return True

    def _take(self, log: State, found: Found) -> bool:
        """Commit the objects in as many commits as the limits ask for. False: another writer was faster."""
        failed = False
        with tempfile.TemporaryDirectory() as folder, closing(_bodies(self.store, found.new, self.limits)) as bodies:
            batch = Batch(Path(folder))
            for done, (entry, body) in enumerate(bodies, 1):
                if isinstance(body, StoreError):
                    self.pending.append(Pending(entry.key, entry.etag, _reason(body)))
                    failed |= isinstance(body, UnreadableError) and body.transient
                else:
                    batch.add(entry, body, self.limits)
                if self.on_progress is not None:
                    self.on_progress(done, len(found.new))
                if batch.is_full(self.limits) or (done == len(found.new) and batch.sources):
                    commit = batch.store(self.store, log.commit + 1, self.writer, found.full, **self.notes)
                    if not self._append(log, commit):
                        return False
                    batch = Batch(Path(folder))
        if failed:
            self.store.get(SPLIT_KEY)  # if the server fails at this too, it is away, and no object is to blame
            self._again, self._looked_again = not self._looked_again, True
        return True


_CHANGED: Final = "changed or went while it was read"


def _reason(error: StoreError) -> str:
    """Why an object could not be read."""
    return _CHANGED if isinstance(error, ChangedError) else str(error)


def _bodies(
    store: Store, entries: Sequence[Entry], limits: Limits
) -> Generator[tuple[Entry, bytes | Chunk | StoreError], None, None]:
    """Each object with its bytes, in order, read by several threads a bounded number of bytes ahead.

    Instead of the bytes: the record of an object that need not be read to be refused, or why it could not be read.
    """

    def read(entry: Entry) -> bytes | Chunk | StoreError:
        refused = refuse_unread(entry.key, entry.size, limits)
        if refused is not None:
            return refused
        try:
            return store.get_listed(entry).body
        except (ChangedError, UnreadableError) as error:
            return error

    waiting = deque(entries)
    reading: deque[tuple[Entry, Future[bytes | Chunk | StoreError]]] = deque()
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
