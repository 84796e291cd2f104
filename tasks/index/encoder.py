"""Shards made by one worker: the verified model, loaded once and only where something is new to it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tasks.encoding import FP16, FP32, PATHS, PLAIN, ModelEncoder, VectorCache, choose_path, resolve_model, text_hash
from tasks.index import shards
from tasks.index.on_ray import Worker
from tasks.index.shards import Shard
from tasks.registry import BASE, pull_to_work, read_production
from tasks.runs import SCORED, Run, once
from tasks.storage import Store, StoreError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from tasks.encoding import NumericPath
    from tasks.encoding.cache import Blocks

_SAMPLE: Final = 512


@dataclass(frozen=True)
class Model:
    """Which model encodes: what crosses to a worker, as plain texts.

    Attributes:
        version: published version, or `tasks.registry.BASE`.
        base: name of the base model, as in `Training.base_model`.
        identity: identity of its document encoder.
        dimension: components of a vector.
    """

    version: str
    base: str
    identity: str
    dimension: int


@dataclass(frozen=True)
class Chosen:
    """How the documents of one encoder are encoded, as its first worker wrote it down (`encoder.json`).

    Another numeric path gives slightly other vectors, and a choice by measurement may differ from worker to worker.
    """

    model: str
    dimension: int
    path: str


def encoder_key(identity: str) -> str:
    """Where it is written down how the documents of one encoder are encoded."""
    return f"{shards.FOLDER}{identity}/encoder.json"


def folder_of(store: Store, version: str, base: str, work: Path) -> Path:
    """The verified files of a model: a version is pulled to `work`, the base model found by its name."""
    return resolve_model(base) if version == BASE else pull_to_work(store, version, work)


def path_of_night(store: Store, version: str) -> NumericPath | None:
    """The numeric path of the night whose candidate a version was: its cached vectors are by that path.

    None where it is not what serves, or the night did not say.
    """
    production = read_production(store)
    if production is None or production.version != version:
        return None
    scored = None
    with suppress(StoreError):  # a record of another release
        scored = Run(store, production.run_id).find(SCORED)
    return PATHS.get(scored.numeric_path) if scored is not None else None


@dataclass
class ShardEncoder:
    """Makes the shards of one document encoder."""

    store: Store
    model: Model
    work: Path
    _loaded: ModelEncoder | None = field(default=None, init=False)
    _cached: Blocks | None = field(default=None, init=False)

    def make(self, shard: Shard, older: list[str]) -> int:
        """Store a shard; returns how many texts were encoded for it. `older` are shards that may hold some already."""
        texts = shard.documents["text"].to_pylist()
        hashes = [text_hash(text) for text in texts]
        known = shards.known_vectors(self.store, self.model.identity, older, self.model.dimension, set(hashes))
        new = {digest: text for digest, text in zip(hashes, texts, strict=True) if digest not in known}
        if new:
            encoder = self._encoder(list(new.values()))
            known.update(self._of_night(encoder, list(new)))
            new = {digest: text for digest, text in new.items() if digest not in known}
        if new:
            encoded = encoder.encode(list(new.values()), "document")
            known.update(zip(new, encoded, strict=True))
        shards.write(self.store, self.model.identity, shard, np.stack([known[digest] for digest in hashes]))
        return len(new)

    def _of_night(self, encoder: ModelEncoder, hashes: list[bytes]) -> dict[bytes, np.ndarray]:
        """Vectors that a night has computed with this model, on this numeric path, and cached."""
        if self._cached is None:
            cache = VectorCache(self.work / "vectors", self.store)
            self._cached = cache.open(encoder.key("document"), encoder.dimension)
        there = [digest for digest in hashes if digest in self._cached]
        vectors = np.empty((len(there), encoder.dimension), np.float32)
        self._cached.read(there, vectors, np.arange(len(there)))
        return dict(zip(there, vectors, strict=True))

    def _encoder(self, texts: list[str]) -> ModelEncoder:
        """The model on the numeric path that its first worker chose; loaded once."""
        if self._loaded is None:
            folder = folder_of(self.store, self.model.version, self.model.base, self.work)
            plain = ModelEncoder.open(folder, PLAIN)
            path = PATHS.get(self._chosen(plain.model, texts[:_SAMPLE]).path, FP32)
            on_cpu = plain.model.device.type == "cpu"
            self._loaded = replace(plain, path=FP32 if path == FP16 and on_cpu else path)
        return self._loaded

    def _chosen(self, model: SentenceTransformer, sample: list[str]) -> Chosen:
        def choose() -> Chosen:
            path = path_of_night(self.store, self.model.version) or choose_path([model], sample)
            return Chosen(self.model.version, self.model.dimension, path.name)

        return once(self.store, encoder_key(self.model.identity), Chosen, choose)


class ShardWorker(Worker):
    """An actor that makes shards from their staged documents; connection and model are made with the first one."""

    def __init__(self, store: str, model: dict[str, Any], work: str) -> None:
        self._store, self._model, self._work = store, model, work
        self._encoder: ShardEncoder | None = None

    def do(self, row: dict[str, Any]) -> int:
        """Make the shard `name`; `older` are shards that may hold some of its vectors."""
        if self._encoder is None:
            self._encoder = ShardEncoder(Store.open(self._store), Model(**self._model), Path(self._work))
        shard = shards.read_staged(self._encoder.store, str(row["name"]))
        return self._encoder.make(shard, [str(one) for one in row["older"] if one])
