"""Texts in what an index is made of: uploaded documents, and shards of vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.index.documents import FOLDER as DOCUMENTS
from tasks.index.shards import FOLDER as INDEXES
from tasks.parsing import Document, RefusedError, read_documents
from tasks.storage import MissingKeyError, Store


def texts_of(store: Store, key: str) -> Iterator[str]:
    """Texts of the documents in an object; none where it is gone, or not one of `documents/`, or not readable."""
    if not key.startswith(DOCUMENTS):
        return
    try:
        for one in read_documents(key, store.get(key).body):
            if isinstance(one, Document):
                yield one.text
    except (MissingKeyError, RefusedError):
        return


def other_texts(store: Store, key: str) -> Iterator[str]:
    """Texts of the documents in all other objects."""
    for entry in list(store.entries(DOCUMENTS)):
        if entry.key != key:
            yield from texts_of(store, entry.key)


def shards(store: Store) -> Iterator[str]:
    """Keys of everything that holds documents for an index."""
    yield from (entry.key for entry in list(store.entries(INDEXES)) if is_shard(entry.key))


def is_shard(key: str) -> bool:
    """Whether a key is that of documents with or without their vectors."""
    return key.startswith(INDEXES) and key.endswith(".parquet")


def values(body: bytes) -> Iterator[str]:
    """Every text of a shard, those in its metadata too. An unreadable shard has none: it is made again when needed."""
    try:
        table = pq.read_table(pa.BufferReader(body), columns=["text", "metadata"])
    except (pa.ArrowException, OSError):
        return
    for batch in table.to_batches(max_chunksize=1_000):
        yield from batch.column("text").to_pylist()
        for metadata in batch.column("metadata").to_pylist():
            yield from _strings(orjson.loads(metadata))


def _strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
