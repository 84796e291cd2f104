"""Vectors kept from night to night, on disk and in the store, so that a text is encoded once per model.

Blocks are files that are only ever added or removed, never changed: there is no index to share, so runs at the same
time cannot disagree. A block is a NumPy array of records (text hash, vector), read by memory map and without pickle.
Its name is the SHA-256 of the key it belongs to and of its bytes, so a block that was cut, altered, or put under
another model's key is noticed when it is opened, thrown away, and its texts are encoded again.

In the store a key's blocks are `cache/vectors/<key>/<sha256>.npy`, beside one empty `cache/vectors/<key>/used/<time>`
that says when the key was last asked for: the size limit removes the keys that were not asked for longest.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from tasks.encoding.encoder import Encoder, Progress, VectorError
from tasks.encoding.tokens import Role
from tasks.storage import MissingKeyError, Store

PREFIX: Final = "cache/vectors/"
LIMIT_BYTES: Final = 8 << 30
BLOCK_ROWS: Final = 8192
"""Texts that are encoded and kept together: what a killed run may lose."""

_MOST_SMALL_BLOCKS: Final = 8
"""Blocks of fewer than BLOCK_ROWS texts beyond which a key's small blocks are merged into one."""

_STALE_SECONDS: Final = 86_400
"""Age at which a temporary file belongs to a run that was killed."""

_USED: Final = "used"
"""On disk, the file whose time of change says when a key was last asked for."""

_HASH: Final = 16
"""Bytes of a text's hash: 128 bits of BLAKE2b, so that no two texts of one corpus share one."""


def text_hash(text: str) -> bytes:
    """The name of a text within a key. Lone surrogates, which no encoding accepts, still have one."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH).digest()


def _record(dimension: int) -> np.dtype[np.void]:
    return np.dtype([("text", f"V{_HASH}"), ("vector", "<f4", (dimension,))])


def _digest(key: str, path: Path) -> str:
    """SHA-256 (hex) of the key and the file's bytes: the same bytes under another key have another name."""
    digest = hashlib.sha256(key.encode() + b"\n")
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass
class VectorCache:
    """Vectors by key and text, in a folder of this machine and, when there is one, in the store.

    Attributes:
        folder: blocks on local disk; may be deleted at any time.
        store: where blocks outlive the machine; None keeps them local.
        limit_bytes: most bytes of blocks, here and in the store each.
        now: seconds since the epoch.
    """

    folder: Path
    store: Store | None = None
    limit_bytes: int = LIMIT_BYTES
    now: Callable[[], float] = field(default=time.time)

    # --- reading -----------------------------------------------------------------------------------------

    def open(self, key: str, dimension: int) -> Blocks:
        """Every sound block of a key, fetched from the store where it is not on disk; notes that the key was used.

        Unsound blocks are removed where they lie. Costs one listing, and one SHA-256 pass over each block.
        """
        folder = self.folder / key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _USED).touch()
        os.utime(folder / _USED, (self.now(), self.now()))
        remote = self._fetch(key, folder) if self.store is not None else set()
        blocks: dict[str, np.ndarray] = {}
        for path in sorted(folder.glob("*.npy")):
            block = _read(key, path, dimension)
            if block is not None:
                blocks[path.stem] = block
                continue
            path.unlink(missing_ok=True)
            if self.store is not None and path.stem in remote:
                self.store.delete([f"{PREFIX}{key}/{path.name}"])
        for path in folder.glob("*.part"):
            with suppress(FileNotFoundError):  # another run has just made it a block
                if path.stat().st_mtime < self.now() - _STALE_SECONDS:
                    path.unlink()
        if self.store is not None and not remote.issuperset(blocks):
            self._reconcile(key, blocks, remote)
        return Blocks(blocks)

    def _reconcile(self, key: str, blocks: dict[str, np.ndarray], remote: set[str]) -> None:
        """Blocks that only this disk has: upload them, or drop them where the store has all their texts (merged)."""
        stored = {text for name in remote & set(blocks) for text in blocks[name]["text"].tolist()}
        for name in sorted(set(blocks) - remote):
            path = self.folder / key / f"{name}.npy"
            if stored.issuperset(blocks[name]["text"].tolist()):
                del blocks[name]
                path.unlink(missing_ok=True)
            else:
                self._upload(key, path)

    def _fetch(self, key: str, folder: Path) -> set[str]:
        """Download the blocks that are not on disk; returns the names of all that the store holds."""
        store = self._store()
        listed = [entry.key.removeprefix(f"{PREFIX}{key}/") for entry in store.entries(f"{PREFIX}{key}/")]
        self._mark(key, [name for name in listed if name.startswith("used/")])
        names = [name for name in listed if name.endswith(".npy") and "/" not in name]

        def fetch(name: str) -> None:
            part = _temporary(folder)
            try:
                store.download(f"{PREFIX}{key}/{name}", part)
                part.replace(folder / name)
            except MissingKeyError:  # another run has just merged or removed it: its texts are encoded again
                part.unlink(missing_ok=True)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fetch, (name for name in names if not (folder / name).exists())))
        return {name.removesuffix(".npy") for name in names}

    def _mark(self, key: str, marks: Iterable[str]) -> None:
        """Replace the key's marks by one of now."""
        mark = f"used/{int(self.now()):012d}"
        self._store().put(f"{PREFIX}{key}/{mark}", b"")
        self._store().delete(f"{PREFIX}{key}/{old}" for old in marks if old < mark)

    # --- writing -----------------------------------------------------------------------------------------

    def add(self, key: str, hashes: Sequence[bytes], vectors: np.ndarray) -> None:
        """Keep vectors of shape (n, d) under the key, as one block, unless it alone is larger than the limit."""
        records = np.empty(len(hashes), _record(vectors.shape[1]))
        records["text"] = np.frombuffer(b"".join(hashes), f"V{_HASH}")
        records["vector"] = vectors
        if records.nbytes <= self.limit_bytes:
            self._write(key, records)

    def _write(self, key: str, records: np.ndarray) -> str:
        """Write a block to disk and store, each all at once; returns its name."""
        folder = self.folder / key
        folder.mkdir(parents=True, exist_ok=True)
        part = _temporary(folder)
        with part.open("wb") as file:
            np.save(file, records, allow_pickle=False)
        name = _digest(key, part)
        path = folder / f"{name}.npy"
        part.replace(path)
        if self.store is not None:
            self._upload(key, path)
        return name

    def _upload(self, key: str, path: Path) -> None:
        """Copy a block to the store; what else may lie there under its name is found unsound when it is opened."""
        with suppress(FileNotFoundError):  # another run on this machine has just merged it into a block of its own
            self._store().put_if_absent(f"{PREFIX}{key}/{path.name}", path.read_bytes())

    def compact(self, key: str, dimension: int) -> None:
        """Merge a key's small blocks into one when they have become many; a text in several keeps one vector.

        The merged block is written before the others go. It depends on them alone, so two runs that merge the same
        blocks write the same one. Memory is bounded by the small blocks'.
        """
        folder = self.folder / key
        found = {path.stem: _read(key, path, dimension) for path in sorted(folder.glob("*.npy"))}
        small = {name: block for name, block in found.items() if block is not None and len(block) < BLOCK_ROWS}
        if len(small) <= _MOST_SMALL_BLOCKS:
            return
        records = np.concatenate(list(small.values()))
        _, first = np.unique(records["text"].view(f"S{_HASH}"), return_index=True)
        merged = self._write(key, records[np.sort(first)])
        old = [name for name in small if name != merged]
        for name in old:
            (folder / f"{name}.npy").unlink(missing_ok=True)
        if self.store is not None:
            self.store.delete(f"{PREFIX}{key}/{name}.npy" for name in old)

    # --- the size limit ----------------------------------------------------------------------------------

    def trim(self, keep: str) -> None:
        """Remove the least recently used keys, here and in the store, until the blocks fit the limit.

        The key in use goes last, and then block by block: the cache stays within its limit in any case.
        """
        local = [
            _Kept(path.parent.name, path.name, size, _used(path.parent))
            for path in self.folder.glob("*/*.npy")
            if (size := _size(path)) is not None
        ]
        for kept in _beyond(local, self.limit_bytes, keep):
            (self.folder / kept.key / kept.name).unlink(missing_ok=True)
        if self.store is None:
            return
        listed = [(entry.key.removeprefix(PREFIX).split("/"), entry.size) for entry in self.store.entries(PREFIX)]
        parts = [(part, size) for part, size in listed if _is_ours(part)]
        used: dict[str, float] = {}
        for part, _ in parts:
            if part[1] == "used":
                used[part[0]] = max(used.get(part[0], 0.0), float(part[2]))
        remote = [_Kept(part[0], part[1], size, used.get(part[0], 0.0)) for part, size in parts if part[1] != "used"]
        gone = _beyond(remote, self.limit_bytes, keep)
        left = {kept.key for kept in remote} - {kept.key for kept in gone} | {keep}
        marks = ["/".join(part) for part, _ in parts if part[1] == "used" and part[0] not in left]
        self.store.delete(f"{PREFIX}{name}" for name in [*(f"{kept.key}/{kept.name}" for kept in gone), *marks])

    def _store(self) -> Store:
        if self.store is None:
            raise ValueError("this cache has no store")
        return self.store


@dataclass(frozen=True)
class _Kept:
    """One block as the size limit sees it."""

    key: str
    name: str
    size: int
    used: float


def _beyond(kept: Sequence[_Kept], limit: int, keep: str) -> list[_Kept]:
    """The blocks to remove: by key from the least recently used, `keep` last, until the rest fits."""
    excess = sum(block.size for block in kept) - limit
    gone: list[_Kept] = []
    for block in sorted(kept, key=lambda block: (block.key == keep, block.used, block.key, block.name)):
        if excess <= 0:
            break
        gone.append(block)
        excess -= block.size
    return gone


class Blocks:
    """The blocks of one key, and where in them each text is; a text in several has the vector of the first name."""

    def __init__(self, blocks: dict[str, np.ndarray]) -> None:
        self._blocks = [blocks[name] for name in sorted(blocks)]
        self._places: dict[bytes, tuple[int, int]] = {}
        for number in reversed(range(len(self._blocks))):
            for row, text in enumerate(self._blocks[number]["text"].tolist()):
                self._places[text] = (number, row)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, text: bytes) -> bool:
        return text in self._places

    def read(self, hashes: Sequence[bytes], out: np.ndarray, rows: np.ndarray) -> None:
        """Copy the vectors of texts, all of which must be there, to `out[rows]`; block by block, in file order."""
        places = np.array([self._places[text] for text in hashes], np.int64).reshape(-1, 2)
        for number, block in enumerate(self._blocks):
            chosen = np.flatnonzero(places[:, 0] == number)
            chosen = chosen[np.argsort(places[chosen, 1])]
            out[rows[chosen]] = block["vector"][places[chosen, 1]]


def _read(key: str, path: Path, dimension: int) -> np.ndarray | None:
    """A block as a memory map; None when it is not what its name and the key say, or holds no usable vectors."""
    try:
        if _digest(key, path) != path.stem:
            return None
        block = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if block.dtype != _record(dimension) or block.ndim != 1:
        return None
    return np.asarray(block)


def _is_ours(part: Sequence[str]) -> bool:
    """Whether the parts of a key below the prefix are those of a block or a mark; others are nobody's to remove."""
    block = len(part) == 2 and part[1].endswith(".npy")
    return block or (len(part) == 3 and part[1] == "used" and part[2].isdecimal())


def _size(path: Path) -> int | None:
    """Bytes of a file, or None when another run has just removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _used(folder: Path) -> float:
    """When a key on disk was last asked for, in seconds since the epoch."""
    mark = folder / _USED
    return mark.stat().st_mtime if mark.exists() else 0.0


def _temporary(folder: Path) -> Path:
    """A new empty file of this run alone."""
    handle, name = tempfile.mkstemp(suffix=".part", dir=folder)
    os.close(handle)
    return Path(name)


@dataclass(frozen=True)
class CachedEncoder:
    """An encoder that asks the cache first, and encodes each text that is new once, even when it is given twice."""

    encoder: Encoder
    cache: VectorCache

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return self.encoder.dimension

    def key(self, role: Role) -> str:
        """Hex digest of everything but the text that a vector depends on."""
        return self.encoder.key(role)

    def encode(self, texts: Sequence[str], role: Role, *, on_progress: Progress | None = None) -> np.ndarray:
        """Float32 unit vectors of shape (n_texts, dimension); what was encoded is kept slab by slab.

        Raises VectorError with the index of the text in `texts`; what was encoded before it stays kept.
        """
        key = self.key(role)
        vectors = np.empty((len(texts), self.dimension), np.float32)
        hashes = [text_hash(text) for text in texts]
        blocks = self.cache.open(key, self.dimension)
        known = np.array([row for row, text in enumerate(hashes) if text in blocks], np.int64)
        blocks.read([hashes[row] for row in known], vectors, known)

        first: dict[bytes, int] = {}
        copies: list[tuple[int, int]] = []
        for row, text in enumerate(hashes):
            if text not in blocks and first.setdefault(text, row) != row:
                copies.append((row, first[text]))
        new = list(first.values())
        done = len(texts) - len(new)
        if on_progress is not None and done:
            on_progress(done, len(texts))
        for start in range(0, len(new), BLOCK_ROWS):
            rows = new[start : start + BLOCK_ROWS]
            vectors[rows] = self._encode(
                [texts[row] for row in rows], rows, role, done + start, len(texts), on_progress
            )
            self.cache.add(key, [hashes[row] for row in rows], vectors[rows])
        for row, source in copies:
            vectors[row] = vectors[source]
        if new:
            self.cache.compact(key, self.dimension)
            self.cache.trim(keep=key)
        return vectors

    def _encode(
        self, texts: list[str], rows: list[int], role: Role, done: int, total: int, on_progress: Progress | None
    ) -> np.ndarray:
        """Encode one slab, with progress and errors in terms of all texts."""
        report = None if on_progress is None else lambda part, _: on_progress(done + part, total)
        try:
            return self.encoder.encode(texts, role, on_progress=report)
        except VectorError as error:
            raise VectorError(error.model, rows[error.index]) from error
