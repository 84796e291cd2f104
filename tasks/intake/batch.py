"""The rows of one commit on their way into the store, by way of two local files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import Limits
from tasks.intake import commit_log
from tasks.intake.commit_log import Commit, Source
from tasks.parsing import PARSED, Chunk, Understood, kind_of, parse
from tasks.runs import now
from tasks.storage import Entry, Store, file_sha256

BATCH: Final = pa.schema(
    [*list(PARSED)[:-1], pa.field("kind", pa.string()), pa.field("object", pa.string()), PARSED.field("line")]
)
"""Columns of a batch: of its commit number it knows nothing, so that equal rows are equal bytes."""

_GROUP_ROWS: Final = 20_000
_GROUP_BYTES: Final = 16 << 20
_COMMIT_OBJECTS: Final = 20_000
"""Objects after which a commit is closed, however few rows they hold: its entry names each."""


class Batch:
    """The rows of the next commit, on their way through two local files: memory holds a row group at most."""

    def __init__(self, folder: Path) -> None:
        self._rows_path, self._rejected_path = folder / "batch.parquet", folder / "rejected.jsonl"
        self._writer: pq.ParquetWriter | None = None
        self._rejected_path.write_bytes(b"")
        self._group: list[pa.RecordBatch] = []
        self._group_rows = self._group_bytes = 0
        self.sources: list[Source] = []
        self._understood: dict[str, dict[str, Any]] = {}
        self._rows = self._bytes = self._rejections = 0

    def add(self, entry: Entry, body: bytes | Chunk, limits: Limits) -> None:
        """Parse one object, or take what is known of it without reading it."""
        accepted = rejected = 0
        understood: Understood | None = None
        with self._rejected_path.open("ab") as file:
            for chunk in parse(entry.key, body, limits) if isinstance(body, bytes) else [body]:
                accepted += chunk.rows.num_rows
                rejected += len(chunk.rejected)
                understood = chunk.understood or understood
                self._add_rows(entry.key, chunk.rows)
                file.writelines(orjson.dumps(asdict(row), option=orjson.OPT_APPEND_NEWLINE) for row in chunk.rejected)
        self._rejections += rejected
        rejected = rejected if understood is None else understood.rejected
        self.sources.append(Source(entry.key, entry.etag, accepted, rejected))
        self._understood[entry.key] = _record(understood)
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

    def store(self, store: Store, commit: int, writer: str, full: bool, **more: Any) -> Commit:
        """Store the rows under their own sha256, and return the entry that names them, with what `more` adds to it."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
        accepted = sum(source.accepted for source in self.sources)
        rejected = sum(source.rejected for source in self.sources)
        return Commit(
            commit=commit,
            writer=writer,
            at=now(),
            full_listing=full,
            objects=tuple(self.sources),
            accepted=accepted,
            rejected=rejected,
            batch=upload(store, self._rows_path) if accepted else None,
            rejected_rows=upload(store, self._rejected_path) if self._rejections else None,
            quarantine=commit_log.quarantine_key(commit) if self._rejections else None,
            understood=self._understood,
            **more,
        )


def with_origin(key: str, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Parsed rows of an object with its key and their kind (schema BATCH)."""
    columns = {name: rows.column(name) for name in PARSED.names}
    columns["kind"] = pa.repeat(pa.scalar(kind_of(key)), rows.num_rows)
    columns["object"] = pa.repeat(pa.scalar(key), rows.num_rows)
    return pa.RecordBatch.from_arrays([columns[name] for name in BATCH.names], schema=BATCH)


def _record(understood: Understood | None) -> dict[str, Any]:
    """What is worth keeping of what the reader understood: all that is said, but for what the source says itself."""
    fields = {} if understood is None else asdict(understood)
    return {name: value for name, value in fields.items() if value and name not in {"object", "accepted", "rejected"}}


def upload(store: Store, path: Path) -> str:
    """Store the accepted or the rejected rows of a commit under their sha256; returns the key."""
    key = f"batches/{file_sha256(path)}{path.suffix}"
    store.upload_if_absent(key, path)
    return key
