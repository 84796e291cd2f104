"""What a vector store must do so that an index can be built beside the one that serves, and switched to in one step.

A target holds several indexes at once, each under its own name. An index is filled shard by shard (green), and
never changes once it was switched to (blue): whoever names an index searches the vectors of one model, whatever is
switched meanwhile. One record, `Live`, says which index serves and which model encodes its queries; the switch
replaces it under a condition, and appends, so that what served before can be switched back to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

_NAME: Final = re.compile(r"[a-z0-9]{1,32}")
_MODULUS: Final = 1 << 64


class TargetError(Exception):
    """A target cannot do what it was asked to; what serves is as it was. The message names the remedy."""


class SwitchedError(TargetError):
    """The target serves another index than the one that the switch was meant to follow; nothing was changed."""


class GoneError(TargetError):
    """The index that was named is not in the target, or not any more."""


class NoIndexError(TargetError):
    """Nothing serves in the target yet."""


@dataclass(frozen=True)
class Index:
    """An index before it serves.

    Attributes:
        name: 1 to 32 lowercase letters and digits, the same for the same documents, model and settings, so that an
            interrupted build is continued. It becomes a part of table names.
        documents: identity of the document encoder; models with the same identity share an index.
        dimension: components of a vector.
    """

    name: str
    documents: str
    dimension: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise TargetError(f"{self.name!r} is not a valid index name: use 1 to 32 lowercase letters and digits")


@dataclass(frozen=True)
class Contents:
    """What an index holds: rows, and a checksum of ids, texts and vectors that does not depend on their order."""

    count: int
    checksum: str

    def __add__(self, other: Contents) -> Contents:
        """The contents of both; that of an empty index is `contents_of` no rows."""
        total = (int(self.checksum, 16) + int(other.checksum, 16)) % _MODULUS
        return Contents(self.count + other.count, f"{total:016x}")


@dataclass(frozen=True)
class Live:
    """What serves.

    Attributes:
        index: the index to search.
        model: version of the model whose query encoder its queries need, or `tasks.registry.BASE`.
        contents: what the index held when it was verified.
        promotion: number of the change in the ledger that this follows; 0 before any promotion.
        store: address of the store whose documents they are; empty where an earlier release made the index.
        base: where `model` is the base model, its name.
    """

    index: Index
    model: str
    contents: Contents
    promotion: int
    store: str = ""
    base: str = ""


@dataclass(frozen=True)
class Rows:
    """Documents with their vectors, as columns of one length.

    Attributes:
        ids: unique within an index.
        texts: what was embedded.
        metadata: one JSON object per document.
        vectors: float32 unit vectors of shape (n_documents, dimension).
    """

    ids: Sequence[str]
    texts: Sequence[str]
    metadata: Sequence[dict[str, Any]]
    vectors: np.ndarray


@dataclass(frozen=True)
class Hit:
    """A document that was found; `score` is its cosine similarity to the query."""

    id: str
    text: str
    metadata: dict[str, Any]
    score: float


@runtime_checkable
class Target(Protocol):
    """A vector store. Every method may raise TargetError; none but `switch` changes what serves."""

    @property
    def address(self) -> str:
        """The target for people, without a secret."""

    def live(self) -> Live | None:
        """What serves; None before the first switch."""

    def served(self) -> list[Live]:
        """Everything that was switched to and can be switched to again, the latest first: `live()`, if any, leads."""

    def indexes(self) -> list[str]:
        """Names of all indexes that are there, unfinished ones included."""

    def prepare(self, index: Index) -> None:
        """Create an index, or continue one. Raises TargetError where one of this name has another dimension."""

    def loaded(self, name: str) -> set[str]:
        """Shards that an index holds whole."""

    def load(self, name: str, shard: str, rows: Rows) -> None:
        """Add a shard in one step: all of it or nothing. A shard that is loaded already is left as it is.

        Raises TargetError where the index has served, the dimension differs, or an id comes twice. An id of an earlier
        shard may be found by `verify` alone.
        """

    def build(self, name: str) -> None:
        """Make the search structure of an index that holds all its shards; at once where that was done before."""

    def contents(self, name: str) -> Contents:
        """What an index holds, read back from the store."""

    def search(self, name: str, vectors: np.ndarray, k: int, *, exact: bool = False) -> list[list[Hit]]:
        """The k nearest documents of each query vector (shape (n_queries, dimension)), the nearest first.

        `exact` compares with every document; without it the search structure is used. A vector of zeros, as static
        embeddings give where they know no word, finds nothing and is not found. Raises GoneError.
        """

    def switch(self, live: Live, expected: Live | None) -> None:
        """Let an index serve if `expected` still does; at once where `live` serves already.

        An earlier index, or the same one for another model, may be named. Raises SwitchedError when something else
        serves, and GoneError where the index is not there.
        """

    def drop(self, name: str) -> None:
        """Delete an index, if it is there. Raises TargetError for the one that serves."""

    def close(self) -> None:
        """Give back connections and files."""


def follow(live: Live, current: Live | None, expected: Live | None, address: str) -> bool:
    """Whether a switch has to be made; not where it was made already. Raises SwitchedError unless `expected` serves."""
    if current == live:
        return False
    if current != expected:
        now = "nothing serves" if current is None else f"index {current.index.name} serves, for model {current.model}"
        raise SwitchedError(f"{address} was switched by somebody else: now {now}; nothing was changed")
    return True


def check_rows(rows: Rows, dimension: int) -> None:
    """Raise TargetError unless rows fit into an index: columns of one length, finite float32 vectors."""
    shape = rows.vectors.shape
    if shape != (len(rows.ids), dimension):
        raise TargetError(f"vectors of shape {shape} do not fit: expected ({len(rows.ids)}, {dimension})")
    if not len(rows.ids) == len(rows.texts) == len(rows.metadata):
        raise TargetError(f"{len(rows.ids)} ids, {len(rows.texts)} texts and {len(rows.metadata)} metadata differ")
    if not np.isfinite(rows.vectors).all():
        raise TargetError("a vector is not finite: it could never be found")


def contents_of(ids: Sequence[str], texts: Sequence[str], vectors: np.ndarray) -> Contents:
    """Count and checksum of rows: the sum, modulo 2**64, of a hash of each row.

    A row is hashed with the lengths of its id and text, so that no two rows give the same bytes. U+0000, which
    PostgreSQL cannot store, counts as U+FFFD, which is stored in its place.
    """
    total = 0
    components = np.ascontiguousarray(vectors, dtype="<f4")
    for identity, text, vector in zip(ids, texts, components, strict=True):
        parts = storable(identity).encode(), storable(text).encode()
        head = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
        digest = hashlib.blake2b(head + vector.tobytes(), digest_size=8).digest()
        total += int.from_bytes(digest, "little")
    return Contents(len(ids), f"{total % _MODULUS:016x}")


def storable(text: str) -> str:
    """A text as every target can store it."""
    return text.replace("\0", "\ufffd")
