"""One whole index in the store: the shards that it needs, made where they are missing, and the record that names them.

May be killed anywhere and run again: every shard that was stored is found by its name, and not made again. The record
comes last and is named by its content, so the same documents and document encoder give the same index.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Final

import numpy as np
import orjson
from pydantic import TypeAdapter, ValidationError

from tasks.encoding import Progress
from tasks.index import on_ray, shards
from tasks.index.documents import Documents, Origin
from tasks.index.encoder import Model, ShardEncoder, ShardWorker
from tasks.index.on_ray import Done, RayError
from tasks.index.shards import Shard, ShardError
from tasks.index.targets import Contents, Index, contents_of
from tasks.storage import Store

_DIGITS: Final = 32


@dataclass(frozen=True)
class Listed:
    """A shard of an index, and what it holds."""

    name: str
    count: int
    checksum: str


@dataclass(frozen=True)
class Build:
    """An index as `indexes/builds/<name>.json` has it: nothing of when, where or for which version it was made.

    Its `twin` has the same contents under another name: for a target whose index was damaged while it serves.
    """

    identity: str
    dimension: int
    shards: tuple[Listed, ...]
    origin: Origin | None = None
    """Where the documents come from; None where an earlier release wrote the record."""
    second: bool = False

    @property
    def twin(self) -> Build:
        """The same contents under the other name."""
        return replace(self, second=not self.second)

    def body(self) -> bytes:
        """The one way to write it down."""
        fields = {name: value for name, value in asdict(self).items() if value}
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n"

    @property
    def index(self) -> Index:
        """The index by its name, which its content gives it."""
        return Index(hashlib.sha256(self.body()).hexdigest()[:_DIGITS], self.identity, self.dimension)

    @property
    def contents(self) -> Contents:
        """What a target that has loaded it must hold."""
        nothing = contents_of([], [], np.empty((0, self.dimension), np.float32))
        return reduce(Contents.__add__, (Contents(one.count, one.checksum) for one in self.shards), nothing)


@dataclass(frozen=True)
class Built:
    """What a build came to: the index, and texts that were encoded for it by this run."""

    build: Build
    encoded: int
    made: int
    """Shards that were not there before."""


def build(
    store: Store,
    model: Model,
    documents: Documents,
    work: Path,
    *,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> Built:
    """Store the vectors of documents, those that are there already left out, and the record of the whole.

    Args:
        store: Where they go.
        model: What encodes.
        documents: What is encoded.
        work: Folder for models on each machine that encodes.
        workers: Actors of Ray that encode; 0: this process, without Ray; None: on a cluster one for each GPU or every
            four cores, on this machine the same, and this process where that is one.
        on_progress: Called with the shards that are done, and all of them.

    Raises ShardError where what was stored does not read back, VectorError, StoreError.
    """
    wanted = [shards.shard_of(part).name for part in documents.parts()]
    there = [shards.name_of(entry.key) for entry in shards.stored(store, model.identity)]
    found = dict(_sound(store, model, sorted(set(wanted) & set(there))))
    missing = {name: shards.older(name, there) for name in wanted if name not in found}
    done, encoded = len(found), 0
    parts = zip(wanted, documents.parts(), strict=True)
    new = (Shard(name, part.documents) for name, part in parts if name in missing)
    for made in _made(store, model, new, work, missing, workers) if missing else ():
        found[made.name] = _contents(store, model, made.name)
        encoded += made.encoded
        done += 1
        if on_progress is not None:
            on_progress(done, len(wanted))
    listed = tuple(Listed(name, found[name].count, found[name].checksum) for name in wanted)
    whole = Build(model.identity, model.dimension, listed, documents.origin)
    write_build(store, whole)
    store.delete(shards.staged_key(name) for name in missing)
    return Built(whole, encoded, len(missing))


def write_build(store: Store, build: Build) -> None:
    """Put down the record of an index, unless it is there."""
    store.put_if_absent(f"{shards.BUILDS}{build.index.name}.json", build.body())


def read_build(store: Store, name: str) -> Build:
    """The index of a name. Raises ShardError where its record is not what it is named after; MissingKeyError."""
    key = f"{shards.BUILDS}{name}.json"
    blob = store.get(key)
    try:
        found = TypeAdapter(Build).validate_json(blob.body)
    except ValidationError as error:
        raise ShardError(f"{store.uri(key)} is damaged: delete it, then run the reindex again") from error
    if found.index.name != name:
        raise ShardError(f"{store.uri(key)} is damaged: delete it, then run the reindex again")
    return found


def _sound(store: Store, model: Model, names: Sequence[str]) -> Iterator[tuple[str, Contents]]:
    """What shards hold that are there; a damaged one is removed, and made again."""
    for name in names:
        try:
            yield name, _contents(store, model, name)
        except ShardError:
            store.delete([shards.shard_key(model.identity, name)])


def _contents(store: Store, model: Model, name: str) -> Contents:
    """What a shard holds, read back."""
    rows = shards.read_shard(store, model.identity, name, model.dimension)
    return contents_of(rows.ids, rows.texts, rows.vectors)


def _made(
    store: Store,
    model: Model,
    new: Iterator[Shard],
    work: Path,
    missing: Mapping[str, list[str]],
    workers: int | None,
) -> Iterator[Done]:
    """Make the missing shards, here or on Ray; `new` are their documents."""
    actors = _actors(workers, len(missing))
    if actors == 0:
        encoder = ShardEncoder(store, model, work)
        for shard in new:
            yield Done(shard.name, encoder.make(shard, missing[shard.name]), 0.0)
        return
    for shard in new:
        shards.stage(store, shard)
    settings = {"store": store.url, "model": asdict(model), "work": str(work)}
    # a list is never empty: a column of nothing but empty ones would have no type
    rows = [{"name": name, "older": older or [""]} for name, older in missing.items()]
    yield from on_ray.run(ShardWorker, settings, rows, actors)


def _actors(workers: int | None, missing: int) -> int | None:
    """How many actors of Ray make the missing shards; 0: this process; None: as many as the cluster suggests."""
    if workers == 0 or not missing:
        return 0
    installed = importlib.util.find_spec("ray") is not None
    if workers is not None:
        if not installed:
            raise RayError("Ray is not installed: install Ratchet with its extra `index`, or ask for workers=0")
        return workers
    if os.environ.get("RAY_ADDRESS"):
        return None
    import torch

    actors = on_ray.suggested(torch.cuda.device_count(), os.cpu_count() or 1)
    # one actor does what this process does, and more of them than shards have nothing to do
    return actors if installed and min(actors, missing) > 1 else 0
