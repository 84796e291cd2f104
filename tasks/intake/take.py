"""Intake: every row of every new object exactly once, in commits that fix the data of a night.

An object is new when its ETag is not the one the log holds for its key; times play no part. The log is read first,
then the store is listed, then objects are read under the ETag that was listed, then a commit is written that can only
succeed when nobody else has written one in between. So a commit never takes an object twice, and never takes an older
state of an object after a newer one.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import Limits
from tasks.intake import commit_log
from tasks.intake.commit_log import Commit, Live, LogError, Source, State
from tasks.parsing import KINDS, PARSED, Chunk, Rejected, kind_of, parse, refuse_unread
from tasks.storage import ChangedError, Entry, MissingKeyError, Store

BATCH: Final = pa.schema(
    [*list(PARSED)[:-1], pa.field("kind", pa.string()), pa.field("object", pa.string()), PARSED.field("line")]
)
"""Columns of a batch: of its commit number it knows nothing, so that equal rows are equal bytes."""

ROWS: Final = BATCH.append(pa.field("commit", pa.int64()))
"""Columns of accepted rows. `query` and `score` are null where there is none; `line` counts from 1."""

THREADS: Final = 32
"""Objects that are read at once: enough for 400 in a second when each takes 80 ms."""

AHEAD_BYTES: Final = 64 << 20
"""Bytes that are read ahead of the parser; an object larger than this is read alone."""

RECENT_PARTITIONS: Final = 3
"""Latest dates whose partitions are always listed; partitions not seen before are listed too."""

_PARTITION: Final = re.compile(r"dt=\d{4}-\d{2}-\d{2}")
_GROUP_ROWS: Final = 20_000
_GROUP_BYTES: Final = 16 << 20
_COMMIT_OBJECTS: Final = 20_000
"""Objects after which a commit is closed, however few rows they hold: its entry names each."""


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


# --- taking in -------------------------------------------------------------------------------------------


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
        new, full = _new_objects(store, log, caps)
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
        batch = _Batch(Path(folder))
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
                batch = _Batch(Path(folder))
    return True


class _Batch:
    """The rows of the next commit, on their way through two local files: memory holds a row group at most."""

    def __init__(self, folder: Path) -> None:
        self._rows_path, self._rejected_path = folder / "batch.parquet", folder / "rejected.jsonl"
        self._writer: pq.ParquetWriter | None = None
        self._rejected_path.write_bytes(b"")
        self._group: list[pa.RecordBatch] = []
        self._group_rows = self._group_bytes = 0
        self.sources: list[Source] = []
        self._rows = self._bytes = 0

    def add(self, entry: Entry, body: bytes | Chunk, limits: Limits) -> None:
        """Parse one object, or take what is known of it without reading it."""
        accepted = rejected = 0
        with self._rejected_path.open("ab") as file:
            for chunk in parse(entry.key, body, limits) if isinstance(body, bytes) else [body]:
                accepted += chunk.rows.num_rows
                rejected += len(chunk.rejected)
                self._add_rows(entry.key, chunk.rows)
                file.writelines(orjson.dumps(asdict(row), option=orjson.OPT_APPEND_NEWLINE) for row in chunk.rejected)
        self.sources.append(Source(entry.key, entry.etag, accepted, rejected))
        self._rows += accepted + rejected
        self._bytes += entry.size

    def _add_rows(self, key: str, rows: pa.RecordBatch) -> None:
        if not rows.num_rows:
            return
        self._group.append(with_origin(key, rows))
        self._group_rows += rows.num_rows
        self._group_bytes += rows.nbytes
        if self._group_rows >= _GROUP_ROWS or self._group_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write the rows at hand as one row group."""
        if not self._group:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._rows_path, BATCH, compression="zstd")
        self._writer.write_table(pa.Table.from_batches(self._group), row_group_size=self._group_rows)
        self._group, self._group_rows, self._group_bytes = [], 0, 0

    def is_full(self, limits: Limits) -> bool:
        """Whether the commit should be closed before the next object."""
        rows = sum(source.accepted + source.rejected for source in self.sources)
        many = len(self.sources) >= _COMMIT_OBJECTS
        return bool(self.sources) and (rows >= limits.max_commit_rows or self._bytes >= limits.max_commit_bytes or many)

    def store(self, store: Store, commit: int, writer: str, full: bool) -> Commit:
        """Store the rows under their own sha256, and return the entry that names them."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
        accepted = sum(source.accepted for source in self.sources)
        rejected = sum(source.rejected for source in self.sources)
        return Commit(
            commit=commit,
            writer=writer,
            at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            full_listing=full,
            objects=tuple(self.sources),
            accepted=accepted,
            rejected=rejected,
            batch=_upload(store, self._rows_path) if accepted else None,
            rejected_rows=_upload(store, self._rejected_path) if rejected else None,
            quarantine=commit_log.quarantine_key(commit) if rejected else None,
        )


def with_origin(key: str, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Parsed rows of an object with its key and their kind (schema BATCH)."""
    columns = {name: rows.column(name) for name in PARSED.names}
    columns["kind"] = pa.repeat(pa.scalar(kind_of(key)), rows.num_rows)
    columns["object"] = pa.repeat(pa.scalar(key), rows.num_rows)
    return pa.RecordBatch.from_arrays([columns[name] for name in BATCH.names], schema=BATCH)


def _upload(store: Store, path: Path) -> str:
    """Store a file under its sha256; returns the key."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    key = f"batches/{digest}{path.suffix}"
    store.upload_if_absent(key, path)
    return key


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


# --- listing ---------------------------------------------------------------------------------------------


def _new_objects(store: Store, log: State, limits: Limits) -> tuple[list[Entry], bool]:
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


# --- reading back ----------------------------------------------------------------------------------------


def read_rows(store: Store, commit: int) -> pa.Table:
    """All rows up to a commit (schema ROWS): of each object the latest ones, in the place of its first.

    The order (first commit of the object, key, line) depends on the log alone. Raises LogError when the log or a
    batch is damaged, or there is no such commit.
    """
    log = commit_log.load(store, commit)
    runs: list[tuple[int, int, int]] = []  # commit, start and end of rows that follow each other in one batch
    for _, live in sorted(log.objects.items(), key=lambda item: (item[1].first, item[0])):
        if not live.accepted:
            continue
        end = live.start + live.accepted
        if runs and runs[-1][0] == live.last and runs[-1][2] == live.start:
            runs[-1] = (live.last, runs[-1][1], end)
        else:
            runs.append((live.last, live.start, end))
    wanted = sorted({number for number, _, _ in runs})
    with ThreadPoolExecutor(4) as pool:
        batches = dict(zip(wanted, pool.map(lambda n: _read_batch(store, n, log.batches[n]), wanted), strict=True))
    parts = [batches[number].slice(start, end - start) for number, start, end in runs]
    return pa.concat_tables([ROWS.empty_table(), *parts]).combine_chunks()


def _read_batch(store: Store, commit: int, key: str) -> pa.Table:
    """One batch with the column `commit`, checked against its name."""
    try:
        body = store.get(key).body
    except MissingKeyError as error:
        raise LogError(f"{store.uri(key)} is missing, though commit {commit} names it") from error
    if key != f"batches/{hashlib.sha256(body).hexdigest()}.parquet":
        raise LogError(f"{store.uri(key)} does not hold what commit {commit} stored")
    table = pq.read_table(pa.BufferReader(body), schema=BATCH)
    return table.append_column(ROWS.field("commit"), pa.repeat(pa.scalar(commit, pa.int64()), table.num_rows))


def counts(store: Store, commit: int) -> dict[str, int]:
    """Rows up to a commit: `accepted` and `rejected` of `pairs/`, accepted ones of `golden` and `corpus`.

    Overwritten objects count as they are now.
    """
    found = {"accepted": 0, "rejected": 0, "golden": 0, "corpus": 0}
    for key, live in commit_log.load(store, commit).objects.items():
        kind = kind_of(key)
        found["accepted" if kind == "pair" else kind] += live.accepted
        found["rejected"] += live.rejected if kind == "pair" else 0
    return found


def new_pairs(store: Store, since: int, upto: int) -> int:
    """Rows of `pairs/` that the commits after `since`, up to `upto`, accepted."""
    return sum(
        source.accepted
        for commit in commit_log.read(store, range(since + 1, upto + 1))
        for source in commit.objects
        if kind_of(source.key) == "pair"
    )


def quarantined(store: Store) -> Iterator[Rejected]:
    """Rejected rows of all objects as they are now: those of an object that was corrected since are left out.

    Raises LogError when the log is damaged or a quarantine file is missing.
    """
    log = commit_log.load(store)
    commit_log.complete(store, log)
    for number, (_, key) in sorted(log.rejected_rows.items()):
        blob = store.find(key)
        if blob is None:
            raise LogError(f"{store.uri(key)} is missing")
        for line in blob.body.splitlines():
            row = Rejected(**orjson.loads(line))
            if log.objects[row.object].last == number:
                yield row
