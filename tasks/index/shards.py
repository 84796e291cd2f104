"""Vectors in the store: shards named by the documents that are in them, under the identity of the document encoder.

`indexes/<identity>/<bits>-<prefix>-<content>.parquet` holds the documents of one part with their vectors. Its name says
what it must hold, so a shard that is there need not be made again: a build that was killed goes on where it was, and
one after a change makes only the shards that changed. Of those, vectors of texts that an older shard of the same part
has are taken over. `indexes/builds/<name>.json`, written last, names the shards of one whole index.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.encoding import text_hash
from tasks.index.documents import DOCUMENTS, Part
from tasks.index.targets import Rows
from tasks.storage import Entry, MissingKeyError, Store

FOLDER: Final = "indexes/"
BUILDS: Final = "indexes/builds/"
STAGED: Final = "indexes/staged/"

_HASH: Final = pa.binary(16)
_FORMAT: Final = b"shard 1\n"
"""Raised whenever the same documents would be stored differently."""

_SHARD: Final = re.compile(r"(\d\d)-([0-9a-f]{5})-([0-9a-f]{64})")
_UNIT: Final = 1e-3
"""Largest difference of a stored vector's length from 1."""

_OLDER: Final = 8
"""Older shards of a part that are searched for vectors, the latest first."""


class ShardError(Exception):
    """A shard is not what its name says; the message names the key and the remedy."""


@dataclass(frozen=True)
class Shard:
    """A shard's name, and the documents that it is to hold."""

    name: str
    documents: pa.Table


def shard_of(part: Part) -> Shard:
    """The shard of a part: its place among the parts, and a SHA-256 of ids, texts and metadata."""
    return Shard(f"{part.bits:02d}-{part.prefix:05x}-{_content(part.documents)}", part.documents)


def _content(documents: pa.Table) -> str:
    """SHA-256 (hex) of documents; lengths are hashed as well, so that no two tables give the same bytes."""
    digest = hashlib.sha256(_FORMAT)
    for batch in documents.select(DOCUMENTS.names).to_batches():
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            for value in row:
                said = value.encode()
                digest.update(len(said).to_bytes(8, "little"))
                digest.update(said)
    return digest.hexdigest()


def shard_key(identity: str, name: str) -> str:
    """Where a shard of a document encoder is."""
    return f"{FOLDER}{identity}/{name}.parquet"


def stored(store: Store, identity: str) -> list[Entry]:
    """Every shard of a document encoder that is there, the latest first."""
    found = [entry for entry in store.entries(f"{FOLDER}{identity}/") if _SHARD.fullmatch(name_of(entry.key))]
    return sorted(found, key=lambda entry: (entry.modified, entry.key), reverse=True)


def name_of(key: str) -> str:
    """The name of the shard under a key."""
    return key.rpartition("/")[2].removesuffix(".parquet")


def older(name: str, there: Iterable[str]) -> list[str]:
    """Of shards that are there, the latest first, those that may hold some of a shard's documents."""
    return [one for one in there if one != name and _overlap(name, one)][:_OLDER]


def _overlap(one: str, other: str) -> bool:
    """Whether two parts have documents in common: the shorter of their prefixes begins the longer one."""
    (bits, prefix), (others, prefixes) = _place(one), _place(other)
    least = min(bits, others)
    return prefix >> (bits - least) == prefixes >> (others - least)


def _place(name: str) -> tuple[int, int]:
    bits, prefix, _ = name.split("-")
    return int(bits), int(prefix, 16)


# --- writing and reading ---------------------------------------------------------------------------------------


def stage(store: Store, shard: Shard) -> None:
    """Put a shard's documents where a worker on another machine finds them."""
    store.put_if_absent(staged_key(shard.name), _parquet(shard.documents))


def staged_key(name: str) -> str:
    """Where the documents of a shard wait for their vectors."""
    return f"{STAGED}{name}.parquet"


def read_staged(store: Store, name: str) -> Shard:
    """The documents that wait under a name. Raises ShardError where they are not those, or gone."""
    key = staged_key(name)
    try:
        documents = _table(store, key, store.get(key).body, DOCUMENTS)
    except MissingKeyError as error:
        raise ShardError(f"{store.uri(key)} is gone: another run has ended meanwhile; run the reindex again") from error
    if name.rpartition("-")[2] != _content(documents):
        raise ShardError(f"{store.uri(key)} does not hold what its name says: delete it, then run the reindex again")
    return Shard(name, documents)


def write(store: Store, identity: str, shard: Shard, vectors: np.ndarray) -> None:
    """Store a shard; vectors are float32 unit vectors of shape (n_documents, dimension) in the documents' order.

    Of two runs that write the same shard the first one counts.
    """
    hashes = pa.array([text_hash(text) for text in shard.documents["text"].to_pylist()], _HASH)
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    table = shard.documents.append_column("text_hash", hashes).append_column(
        "vector", pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    )
    store.put_if_absent(shard_key(identity, shard.name), _parquet(table))


def read_shard(store: Store, identity: str, name: str, dimension: int) -> Rows:
    """A shard's documents and vectors, checked: ids, texts and metadata by the name, vectors by their lengths.

    Raises ShardError where one does not hold; MissingKeyError.
    """
    key = shard_key(identity, name)
    table = _table(store, key, store.get(key).body, DOCUMENTS)
    damaged = f"{store.uri(key)} is damaged: delete it, then run the reindex again"
    if name.rpartition("-")[2] != _content(table):
        raise ShardError(damaged)
    vectors = _vectors(table, dimension)
    if vectors is None or not _sound(vectors):
        raise ShardError(damaged)
    metadata = [orjson.loads(one) for one in table["metadata"].to_pylist()]
    return Rows(table["id"].to_pylist(), table["text"].to_pylist(), metadata, vectors)


def known_vectors(
    store: Store, identity: str, names: Sequence[str], dimension: int, wanted: set[bytes]
) -> dict[bytes, np.ndarray]:
    """Vectors of texts, by their hashes, from shards that are there; what cannot be read is passed over."""
    found: dict[bytes, np.ndarray] = {}
    for name in names:
        if wanted <= found.keys():
            break
        try:
            rows = read_shard(store, identity, name, dimension)
        except (ShardError, MissingKeyError):
            continue
        for text, vector in zip(rows.texts, rows.vectors, strict=True):
            digest = text_hash(text)
            if digest in wanted:
                found.setdefault(digest, vector)
    return found


def _sound(vectors: np.ndarray) -> bool:
    """Whether all vectors have length 1, or 0: that of a document of which static embeddings know no word."""
    lengths = np.linalg.norm(vectors, axis=1)
    return bool(((np.abs(lengths - 1) <= _UNIT) | (lengths == 0)).all())


def _vectors(table: pa.Table, dimension: int) -> np.ndarray | None:
    """The column of vectors, of shape (n_documents, dimension); None where it is not one."""
    column = table["vector"].combine_chunks() if "vector" in table.column_names else None
    if column is None or column.type != pa.list_(pa.float32(), dimension) or column.null_count:
        return None
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, dimension)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    texts = {name: "zstd" for name in table.column_names if name != "vector"}
    pq.write_table(
        table,
        sink,
        compression=texts | ({"vector": "none"} if "vector" in table.column_names else {}),  # noise does not pack
        use_dictionary=["metadata"],
        write_page_checksum=True,
    )
    return sink.getvalue()


def _table(store: Store, key: str, body: bytes, schema: pa.Schema) -> pa.Table:
    """A stored table with at least the columns of a schema. Raises ShardError for anything else."""
    try:
        table = pq.read_table(pa.BufferReader(body), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{store.uri(key)} is damaged: delete it, then run the reindex again") from error
    if any(name not in table.column_names or table[name].null_count for name in schema.names):
        raise ShardError(f"{store.uri(key)} is damaged: delete it, then run the reindex again")
    return table
