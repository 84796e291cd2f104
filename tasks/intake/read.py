"""Reading back: the rows up to a commit, how many there are, and those that were rejected."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.intake import commit_log
from tasks.intake.batch import BATCH
from tasks.intake.commit_log import LogError
from tasks.parsing import Rejected, kind_of
from tasks.storage import MissingKeyError, Store

ROWS: Final = BATCH.append(pa.field("commit", pa.int64()))
"""Columns of accepted rows. `query` and `score` are null where there is none; `line` counts from 1."""

_SHOWN_COLUMNS: Final = 12
_READERS: Final = 4


class TooLargeError(Exception):
    """The rows do not fit into the memory that there is for them; the message says how many were read by then."""


def read_rows(store: Store, commit: int, *, most_bytes: int | None = None) -> pa.Table:
    """All rows up to a commit (schema ROWS): of each object the latest ones, in the place of its first.

    The order (first commit of the object, key, line) depends on the log alone. Memory is what the rows take, and a few
    row groups. Raises LogError when the log or a batch is damaged, or there is no such commit; TooLargeError as soon as
    more than `most_bytes` have been read.
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
    room = _Room(most_bytes, sum(end - start for _, start, end in runs))
    wanted = sorted({number for number, _, _ in runs})
    with ThreadPoolExecutor(_READERS) as pool:
        reads = pool.map(lambda n: _read_batch(store, n, log.batches[n], room), wanted)
        batches = dict(zip(wanted, reads, strict=True))
    used: dict[int, int] = {}
    for number, start, end in runs:
        used[number] = used.get(number, 0) + end - start
    parts = []
    for number, start, end in runs:
        part = batches[number].slice(start, end - start)
        # a part keeps its whole batch in memory: where much of that is of no use, copy what is
        parts.append(part if 2 * used[number] > batches[number].num_rows else pa.concat_tables([part]).combine_chunks())
    return pa.concat_tables([ROWS.empty_table(), *parts])


class _Room:
    """How much more may be read, for all threads that read."""

    def __init__(self, most: int | None, rows: int) -> None:
        self._most, self._rows = most, rows
        self._lock = threading.Lock()
        self._bytes = self._read = 0

    def take(self, table: pa.Table) -> None:
        """Count a part that was read. Raises TooLargeError when it is too much."""
        with self._lock:
            self._bytes += table.nbytes
            self._read += table.num_rows
            if self._most is not None and self._bytes > self._most:
                raise TooLargeError(
                    f"{self._read:,} of {self._rows:,} rows take {self._bytes / 2**30:.1f} GiB of memory already, and "
                    f"there is room for {self._most / 2**30:.1f} GiB of rows"
                )


def live_tables(store: Store, key: str | None = None) -> Iterator[pa.Table]:
    """The rows that count now (schema ROWS), object by object in the order of `read_rows`, a batch in memory at a time.

    Only those of one object, where `key` names it.
    """
    log = commit_log.load(store)
    last: tuple[int, pa.Table] | None = None
    for name, live in sorted(log.objects.items(), key=lambda item: (item[1].first, item[0])):
        if live.accepted and key in {None, name}:
            if last is None or last[0] != live.last:
                last = live.last, _read_batch(store, live.last, log.batches[live.last])
            yield last[1].slice(live.start, live.accepted)


def _read_batch(store: Store, commit: int, key: str, room: _Room | None = None) -> pa.Table:
    """One batch with the column `commit`, checked against its name."""
    try:
        body = store.get(key).body
    except MissingKeyError as error:
        raise LogError(f"{store.uri(key)} is missing, though commit {commit} names it") from error
    if key != f"batches/{hashlib.sha256(body).hexdigest()}.parquet":
        raise LogError(f"{store.uri(key)} does not hold what commit {commit} stored")
    file = pq.ParquetFile(pa.BufferReader(body))
    parts = []
    for number in range(file.num_row_groups):  # the whole at once would take several times its size
        part = _with_every_column(file.read_row_group(number))
        if room is not None:
            room.take(part)
        parts.append(part)
    table = pa.concat_tables([BATCH.empty_table(), *parts])
    return table.append_column(ROWS.field("commit"), pa.repeat(pa.scalar(commit, pa.int64()), table.num_rows))


def _with_every_column(table: pa.Table) -> pa.Table:
    """Rows with the columns of BATCH; one that an older version did not know is empty."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.chunked_array([pa.nulls(table.num_rows, field.type)], field.type)
        for field in BATCH
    ]
    return pa.table(columns, schema=BATCH)


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


@dataclass(frozen=True)
class Refused:
    """An object of which nothing was taken."""

    key: str
    reason: str
    rows: int
    """How many rows it probably holds."""


def refused(store: Store, commit: int) -> list[Refused]:
    """The objects up to a commit of which nothing was taken, the largest first."""
    objects = commit_log.load(store, commit).objects
    found = [Refused(key, live.refusal, live.rejected) for key, live in objects.items() if live.refusal]
    return sorted(found, key=lambda one: (-one.rows, one.key))


@dataclass(frozen=True)
class Changes:
    """What the commits after one, up to another, changed."""

    new_pairs: int
    """Rows of `pairs/` that were accepted."""
    removed: int
    """Objects that are gone, or hold no rows any more."""


def changes(store: Store, since: int, upto: int) -> Changes:
    """What the commits after `since`, up to `upto`, changed; everything, where `since` is of an earlier log."""
    since = since if since <= upto else 0
    removed: set[str] = set()
    rows = 0
    for entry in commit_log.read(store, range(since + 1, upto + 1)):
        rows += sum(source.accepted for source in entry.objects if kind_of(source.key) == "pair")
        removed.update(entry.removed)
        removed.update(source.key for source in entry.objects if not source.accepted)
    before = commit_log.load(store, since).objects if since and removed else {}  # reads the log: only where it matters
    return Changes(rows, len([key for key in removed if key in before and before[key].accepted + before[key].rejected]))


def decisions(store: Store, since: int, upto: int) -> list[str]:
    """What the reader decided about columns in the commits after `since`, up to `upto`, and in which objects.

    Columns that were left alone, and notes such as "score is 1 in every row, which is no score".
    """
    found: dict[str, list[str]] = {}
    for commit in commit_log.read(store, range(since + 1, upto + 1)):
        for key, made in commit.understood.items():
            columns = made.get("ignored") or ()
            said = [f"Columns ignored: {', '.join(columns[:_SHOWN_COLUMNS])}"] if columns else []
            for line in (*said, *(made.get("notes") or ())):
                found.setdefault(line, []).append(key)
    more = {line: f" and {len(keys) - 1:,} more" if len(keys) > 1 else "" for line, keys in found.items()}
    return [f"{line} (in {keys[0]}{more[line]})." for line, keys in found.items()]


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
            live = log.objects.get(row.object)
            if live is not None and live.last == number:
                yield row
