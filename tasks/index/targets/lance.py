"""LanceDB in a folder of this machine: one table per index, and one small file that says which serves.

The file is replaced by a rename, so whoever reads it sees one switch or the next. Tables that served are never written
again. Writers take turns by a lock file; readers need none.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from tasks.index.targets.protocol import (
    Contents,
    GoneError,
    Hit,
    Index,
    Live,
    Rows,
    TargetError,
    check_rows,
    contents_of,
    follow,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import Table

_FILE: Final = "served.json"
_LOCK: Final = "served.lock"
_DROPPED: Final = ".dropped"
"""How the folder of a table ends that is being deleted."""

_SECONDS: Final = 600.0
"""How long a writer waits for another."""

_EXACT_ROWS: Final = 20_000
"""Up to this many rows every vector is compared: that takes milliseconds, and misses nothing."""

_REFINE: Final = 4
"""The structure holds vectors in 8 bits: this many times k candidates are ranked again by the vectors themselves."""

_PROBES: Final = 32
"""Partitions that a search looks at, of about 8,000 vectors each."""

_BATCH: Final = 8_192
_LOST: Final = ("Not found", "not found", "LanceError(IO)")
"""What LanceDB says of files that are missing or cut off."""

_COLUMNS: Final = ["id", "text", "metadata", "shard", "vector"]
_SERVED: Final = TypeAdapter(list[Live])


class LanceTarget:
    """Indexes as tables of a LanceDB folder; implements `Target`. May be shared by threads."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, and create it (readable by its owner only) where there is none."""
        try:
            import lancedb
        except ImportError as error:
            raise TargetError(
                "LanceDB is not installed: install Ratchet with its extra `index` (pip install '.[index]')"
            ) from error
        self._folder = folder
        with self._words("opened"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = lancedb.connect(str(folder))
        self._lock = FileLock(folder / _LOCK, timeout=_SECONDS)

    @property
    def address(self) -> str:
        """The target for people."""
        return f"lancedb:{self._folder}"

    def live(self) -> Live | None:
        """What serves."""
        served = self._read()
        return served[0] if served else None

    def served(self) -> list[Live]:
        """What can be switched to again, the latest first."""
        there = set(self.indexes())
        return [live for live in self._read() if live.index.name in there]

    def indexes(self) -> list[str]:
        """Names of all indexes; a folder may hold tables of somebody else, which are left alone."""
        with self._words("listed"):
            names: list[str] = []
            page: str | None = None
            while True:
                listed = self._database.list_tables(page_token=page)
                names += listed.tables
                page = listed.page_token
                if not page:
                    return [name for name in names if self._is_own(name)]

    def prepare(self, index: Index) -> None:
        """Create a table, or continue one."""
        import pyarrow as pa

        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("text", pa.string(), nullable=False),
                pa.field("metadata", pa.string(), nullable=False),
                pa.field("shard", pa.string(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), index.dimension), nullable=False),
            ]
        )
        with self._turn(), self._words("prepared"):
            if not self._is_whole(index.name):
                self._forget(index.name)
                self._database.create_table(index.name, schema=schema)
        found = self._dimension(self._table(index.name))
        if found != index.dimension:
            raise TargetError(
                f"index {index.name} in {self.address} has vectors of {found} dimensions, not {index.dimension}: "
                "somebody else made it: delete it there"
            )

    def loaded(self, name: str) -> set[str]:
        """Shards that a table holds: each came in one commit."""
        with self._words("read", name):
            return {shard for batch in self._scan(name, ["shard"]) for shard in batch["shard"].unique().to_pylist()}

    def load(self, name: str, shard: str, rows: Rows) -> None:
        """Add a shard in one commit, unless it is there."""
        table = self._table(name)
        check_rows(rows, self._dimension(table))
        with self._turn():
            if any(live.index.name == name for live in self._read()):
                raise TargetError(f"index {name} in {self.address} has served, and is not written again")
            if shard in self.loaded(name):
                return
            self._check_new(name, rows.ids)
            with self._words("loaded"):
                self._table(name).add(_table(rows, shard, self._schema(table)))

    def build(self, name: str) -> None:
        """Build partitions (IVF) of 8-bit vectors, where there are enough rows for it to pay.

        For 60,000 vectors of 384 dimensions that took 1.4 s, and HNSW in 8 bits 140 s, with the same recall.
        """
        from lancedb.index import IvfSq

        table = self._table(name)
        with self._turn(), self._words("indexed"):
            if table.count_rows() > _EXACT_ROWS and not table.list_indices():
                table.create_index("vector", config=IvfSq(distance_type="cosine"))

    def contents(self, name: str) -> Contents:
        """What a table holds."""
        found = contents_of([], [], np.empty((0, 0), np.float32))
        with self._words("read", name):
            for batch in self._scan(name, ["id", "text", "vector"]):
                vectors = batch["vector"].flatten().to_numpy().reshape(batch.num_rows, -1)
                found += contents_of(batch["id"].to_pylist(), batch["text"].to_pylist(), vectors)
        return found

    def search(self, name: str, vectors: np.ndarray, k: int, *, exact: bool = False) -> list[list[Hit]]:
        """The nearest documents of each query."""
        table = self._table(name)
        hits: list[list[Hit]] = []
        for vector in np.asarray(vectors, np.float32):
            with self._words("searched", name):
                hits.append([_hit(row) for row in _query(table, vector, k, exact).to_list()])
        return hits

    def switch(self, live: Live, expected: Live | None) -> None:
        """Replace the file that says what serves."""
        with self._turn():
            served = self._read()
            if not follow(live, served[0] if served else None, expected, self.address):
                return
            if live.index.name not in self.indexes():
                raise GoneError(f"there is no index {live.index.name} in {self.address}")
            self._write([live, *(earlier for earlier in served if earlier != live)])

    def drop(self, name: str) -> None:
        """Delete a table, if it is there and does not serve."""
        with self._turn():
            self._forget(name)
            with self._words("deleted"):
                # gone at once, and not file by file: a search that is under way sees that, and asks again
                if name in self.indexes():
                    (self._folder / f"{name}.lance").rename(self._folder / f"{name}{_DROPPED}")
                for dropped in self._folder.glob(f"*{_DROPPED}"):
                    shutil.rmtree(dropped)

    def close(self) -> None:
        """Nothing is held open."""

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The turn of this writer. Raises TargetError where another one does not end, or the folder is read-only."""
        with self._words("locked"):
            self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _forget(self, name: str) -> None:
        """Delete what is kept about an index. Raises TargetError for the one that serves."""
        served = self._read()
        if served and served[0].index.name == name:
            raise TargetError(f"index {name} in {self.address} serves: switch to another before it is deleted")
        others = [earlier for earlier in served if earlier.index.name != name]
        if others != served:
            self._write(others)

    def _read(self) -> list[Live]:
        path = self._folder / _FILE
        try:
            return _SERVED.validate_json(path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            raise TargetError(
                f"{path} cannot be read as what serves ({str(error).splitlines()[0]}): restore it, or delete the "
                "folder and run `ratchet reindex`"
            ) from error

    def _write(self, served: list[Live]) -> None:
        """Put the file in its place by a rename, on disk before that."""
        with self._words("switched"):
            with NamedTemporaryFile("w", dir=self._folder, prefix=f".{_FILE}.", delete=False) as file:
                json.dump([asdict(live) for live in served], file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(self._folder / _FILE)

    def _table(self, name: str) -> Table:
        """Open a table as it is now. Raises GoneError."""
        with self._words("opened", name):
            return self._database.open_table(name)

    def _is_whole(self, name: str) -> bool:
        """Whether a table is there; not where a process was killed while it created one."""
        return any((self._folder / f"{name}.lance" / "_versions").glob("*.manifest"))

    def _is_own(self, name: str) -> bool:
        return self._is_whole(name) and self._database.open_table(name).schema.names == _COLUMNS

    def _check_new(self, name: str, ids: Sequence[str]) -> None:
        """Raise TargetError where an id comes twice, or is there already: LanceDB has no key of its own.

        A large table is not looked through for every shard; with an id twice it does not verify.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        known = pa.array(ids, pa.string())
        repeated = [one["values"] for one in known.value_counts().to_pylist() if one["counts"] > 1]
        if self._table(name).count_rows() <= _EXACT_ROWS:
            with self._words("read", name):
                for batch in self._scan(name, ["id"]):
                    repeated += batch["id"].filter(pc.is_in(batch["id"], known)).to_pylist()
        if repeated:
            raise TargetError(
                f"index {name} in {self.address} has the id {repeated[0][:80]!r} already: ids must be unique among the "
                "documents"
            )

    def _schema(self, table: Table) -> pa.Schema:
        return table.schema

    def _dimension(self, table: Table) -> int:
        return int(self._schema(table).field("vector").type.list_size)

    def _scan(self, name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        yield from self._table(name).search().select(columns).to_batches(_BATCH)

    @contextmanager
    def _words(self, done: str, name: str | None = None) -> Iterator[None]:
        """LanceDB's errors, which are the built-in ones, as a TargetError with a remedy."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            said = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            if name is not None and not (self._folder / f"{name}.lance").exists():
                raise GoneError(f"there is no index {name} in {self.address}") from error
            if name is not None and any(lost in said for lost in _LOST):
                raise GoneError(
                    f"index {name} in {self.address} is damaged ({said}): run `ratchet reindex`, which makes it anew"
                ) from error
            raise TargetError(f"{self.address} cannot be {done}: {said}; {_remedy(said)}") from error


def _table(rows: Rows, shard: str, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    vectors = pa.array(np.ascontiguousarray(rows.vectors, np.float32).ravel())
    return pa.table(
        {
            "id": list(rows.ids),
            "text": list(rows.texts),
            "metadata": [json.dumps(one, ensure_ascii=False) for one in rows.metadata],
            "shard": [shard] * len(rows.ids),
            "vector": pa.FixedSizeListArray.from_arrays(vectors, rows.vectors.shape[1]),
        },
        schema=schema,
    )


def _query(table: Table, vector: np.ndarray, k: int, exact: bool) -> LanceVectorQueryBuilder:
    from lancedb.query import LanceVectorQueryBuilder

    query = LanceVectorQueryBuilder(table, vector, "vector").distance_type("cosine").limit(k)
    query = query.select(["id", "text", "metadata", "_distance"])
    return query.bypass_vector_index() if exact else query.nprobes(_PROBES).refine_factor(_REFINE)


def _hit(row: dict[str, Any]) -> Hit:
    return Hit(row["id"], row["text"], json.loads(row["metadata"]), 1.0 - row["_distance"])


def _remedy(said: str) -> str:
    """What to do, by what the operating system says."""
    if any(full in said for full in ("No space left", "File too large", "Disk quota")):
        return "make room on the disk and start again: what was loaded is kept"
    if "could not be acquired" in said:
        return "another run writes to it: try again when that has ended"
    if "File exists" in said or "Not a directory" in said:
        return "name a folder, or one that can be made there"
    if "Permission denied" in said or "Read-only" in said:
        return "ask for the right to write there, or name another folder"
    return "what serves is as it was; see docs/troubleshooting.md"
