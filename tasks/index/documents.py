"""The documents of an index, in an order and in parts that depend on their ids alone.

Documents go through a local file (SQLite), which sorts them by a hash of the id: memory stays flat however many there
are, rows with the same id meet, and a document that comes or goes changes the one part that it is in.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from tasks.config import Limits
from tasks.intake import live_tables
from tasks.parsing import Document, RefusedError, Rejected, is_ignored, read_documents
from tasks.splits import document_key
from tasks.storage import Entry, Store

FOLDER: Final = "documents/"

PART_ROWS: Final = 4096
PART_BYTES: Final = 16 << 20
"""Documents, and bytes of their texts, that a part has on average: what is encoded and stored in one step."""

DOCUMENTS: Final = pa.schema([("id", pa.string()), ("text", pa.string()), ("metadata", pa.string())])
"""Columns of a part; `metadata` is one JSON object for each document."""

_MOST_BITS: Final = 20
_SHOWN: Final = 100
_INSERTED: Final = 1_000

Origin = Literal["documents", "commit"]


class DocumentsError(Exception):
    """The documents cannot make an index; the message names object, line, reason and remedy."""


@dataclass(frozen=True)
class Part:
    """Documents whose ids' hashes begin with the same bits.

    Attributes:
        bits: how many bits.
        prefix: the bits, as a number.
        documents: the documents by the hashes of their ids (schema DOCUMENTS).
    """

    bits: int
    prefix: int
    documents: pa.Table


@dataclass
class Documents(AbstractContextManager["Documents"]):
    """The documents in a local file; leave the context to remove it.

    Attributes:
        folder: where the file is; it takes about as much room as the documents.
        origin: `documents` for those of `documents/`, `commit` for the distinct ones of pairs and `corpus/`.
        count: documents, each id once.
        repeated: rows that said once more what another one says.
        rejected: rows that were not taken.
        rejections: the first of them.
        left_out: columns that are not taken as metadata, by object.
    """

    folder: Path
    origin: Origin = "documents"
    count: int = 0
    repeated: int = 0
    rejected: int = 0
    rejections: list[Rejected] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    _bytes: int = 0

    def __post_init__(self) -> None:
        self._path = self.folder / "documents.sqlite"
        self._path.unlink(missing_ok=True)
        self._rows = sqlite3.connect(self._path)
        # nothing of the file outlives the run: it need not survive a crash
        self._rows.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA temp_store = FILE;"
            "CREATE TABLE rows (hash BLOB, id TEXT, text TEXT, metadata TEXT, object TEXT, line INTEGER)"
        )

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close and remove the file."""
        self._rows.close()
        self._path.unlink(missing_ok=True)

    def add(self, key: str, documents: Iterable[Document | Rejected]) -> int:
        """Add an object's documents, and note its rejected rows; returns how many documents it has."""
        added = 0
        taken: list[tuple[bytes, str, str, str, str, int]] = []
        for one in documents:
            if isinstance(one, Rejected):
                self.rejected += 1
                if len(self.rejections) < _SHOWN:
                    self.rejections.append(one)
                continue
            added += 1
            self._bytes += len(one.text) + len(one.metadata)
            taken.append((_hash(one.id), one.id, one.text, one.metadata.decode(), key, one.line))
            if len(taken) >= _INSERTED:
                self._insert(taken)
                taken = []
        self._insert(taken)
        return added

    def _insert(self, taken: list[tuple[bytes, str, str, str, str, int]]) -> None:
        self._rows.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", taken)

    def settle(self) -> None:
        """Sort the documents, and drop rows that repeat another one.

        Raises DocumentsError where two rows of `documents/` have one id and say different things, and where there are
        no documents at all.
        """
        self._rows.execute("CREATE INDEX by_hash ON rows (hash)")
        repeated = self._rows.execute("SELECT hash FROM rows GROUP BY hash HAVING count(*) > 1")
        for (digest,) in repeated.fetchall():
            said = "SELECT rowid, text, metadata, id, object, line FROM rows WHERE hash = ? ORDER BY rowid"
            first, *others = self._rows.execute(said, (digest,)).fetchall()
            clash = next((one for one in others if one[1:3] != first[1:3]), None)
            if clash is not None and self.origin == "documents":
                raise DocumentsError(
                    f"{clash[4]} line {clash[5]}: the id {clash[3][:80]!r} is that of another document in {first[4]} "
                    f"line {first[5]}: give each document an id of its own, or remove the row that is out of date"
                )
            self._rows.executemany("DELETE FROM rows WHERE rowid = ?", [one[:1] for one in others])
            self.repeated += len(others)
        (self.count,) = self._rows.execute("SELECT count(*) FROM rows").fetchone()
        if not self.count:
            raise DocumentsError(
                f"there are no documents: put them under {FOLDER} in the store, each with id and text, or label pairs"
            )

    def parts(self) -> Iterator[Part]:
        """The documents part by part, empty parts left out; the more there are, the more finely they are divided."""
        wanted = max(self.count / PART_ROWS, self._bytes / PART_BYTES, 1)
        bits = min(math.ceil(math.log2(wanted)), _MOST_BITS)
        columns: tuple[list[str], list[str], list[str]] = ([], [], [])
        at = -1
        for digest, *row in self._rows.execute("SELECT hash, id, text, metadata FROM rows ORDER BY hash"):
            prefix = int.from_bytes(digest[:4]) >> (32 - bits)
            if prefix != at and columns[0]:
                yield Part(bits, at, _table(columns))
                columns = ([], [], [])
            at = prefix
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        if columns[0]:
            yield Part(bits, at, _table(columns))


def _table(columns: tuple[list[str], list[str], list[str]]) -> pa.Table:
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=DOCUMENTS)


def _hash(identity: str) -> bytes:
    return hashlib.blake2b(identity.encode(), digest_size=16).digest()


def gather(store: Store, folder: Path, limits: Limits | None = None) -> Documents:
    """The documents of `documents/` as it is now; where it is empty, the distinct ones that the log holds.

    The latter are documents and negatives of pairs, golden pairs and `corpus/`, in the spelling that came first; their
    id is a hash of the text up to case and white space.

    Raises DocumentsError where an object cannot be read at all, ids clash, or there is nothing: an index that lacks a
    whole object without a word would be worse than the one that serves. Single rows that are not documents are left out
    and noted. Raises StoreError where the store fails, or an object changes while it is read.
    """
    documents = Documents(folder)
    try:
        _fill(documents, store, limits)
        documents.settle()
    except BaseException:
        documents.close()
        raise
    return documents


def _fill(documents: Documents, store: Store, limits: Limits | None) -> None:
    """Add the documents of `documents/`, or those of the log."""
    entries = [entry for entry in store.entries(FOLDER) if entry.size and not is_ignored(entry.key)]
    for entry in sorted(entries, key=lambda one: one.key):
        _read(store, entry, documents, limits)
    if not entries:
        documents.origin = "commit"
        _take_rows(store, documents)


def _read(store: Store, entry: Entry, documents: Documents, limits: Limits | None) -> None:
    """Add one object. Raises DocumentsError where nothing of it is a document."""
    before = documents.rejected
    left_out: list[str] = []
    try:
        taken = documents.add(entry.key, read_documents(entry.key, store.get_listed(entry).body, limits, left_out))
    except RefusedError as error:
        raise DocumentsError(f"{entry.key}: {error}; correct or remove it, then run the reindex again") from error
    if left_out:
        documents.left_out[entry.key] = left_out
    rejected = documents.rejected - before
    if rejected and not taken:
        reason = next((one for one in documents.rejections if one.object == entry.key), None)
        said = f", such as line {reason.line}: {reason.reason}" if reason else ""
        raise DocumentsError(
            f"{entry.key}: none of its {rejected:,} rows is a document{said}; correct or remove it, then run the "
            "reindex again"
        )


def _take_rows(store: Store, documents: Documents) -> None:
    """Add the distinct documents of all accepted rows; which spelling comes first depends on the log alone."""
    for table in live_tables(store):
        negatives = pa.chunked_array([pc.list_flatten(chunk) for chunk in table["negatives"].chunks], pa.string())
        for column in (table["document"], negatives):
            texts = pc.unique(column.drop_null()).to_pylist()
            documents.add("", (Document(_hash(document_key(text)).hex(), text, b"{}", 0) for text in texts))
