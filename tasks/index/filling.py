"""The cache of vectors filled by actors of Ray, so that scoring a large corpus finds them there.

Every worker encodes on the numeric path of the night, and only where its vectors are kept under the same key: the same
model, path, kind of device and libraries. Vectors go into the store, under `cache/`, and so does what a killed night
has encoded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tasks.encoding import PATHS, ModelEncoder, ModelError, VectorCache, text_hash
from tasks.index import on_ray
from tasks.index.encoder import folder_of
from tasks.registry import BASE
from tasks.storage import Store

_LEAST: Final = 2_048
"""New texts of a model below which Ray would take longer to start than they take."""

_CHUNK: Final = 1_024
"""Texts that an actor encodes at a time, and that are lost when it is killed."""


@dataclass(frozen=True)
class Saved:
    """What encoding on Ray came to: texts, seconds by the clock, and seconds that the workers took together."""

    texts: int
    wall: float
    busy: float

    def __str__(self) -> str:
        """The same for people."""
        gain = self.busy / self.wall if self.wall else 0.0
        return (
            f"{self.texts:,} texts were encoded on Ray in {self.wall:.0f} s; one worker of them would have taken "
            f"{self.busy:.0f} s ({gain:.1f} times as long)"
        )


def prefill(
    store: Store,
    encoders: Mapping[str | None, ModelEncoder],
    texts: Sequence[str],
    *,
    base: str,
    work: Path,
    workers: int,
) -> Saved | None:
    """Encode the documents that the cache lacks, for every model in turn; None where that is not worth a start.

    Args:
        store: Where cache and models are.
        encoders: By version (None: the base model) what the night scores with.
        texts: Documents.
        base: Name of the base model.
        work: Folder for models and vectors on each machine.
        workers: Actors.

    Raises RayError, and StoreError where a worker met one.
    """
    rows: list[dict[str, Any]] = []
    # models with the same documents share their vectors
    distinct = {encoder.key("document"): (version, encoder) for version, encoder in encoders.items()}
    for key, (version, encoder) in distinct.items():
        known = VectorCache(work / "vectors", store).open(key, encoder.dimension)
        new = [text for digest, text in {text_hash(text): text for text in texts}.items() if digest not in known]
        if len(new) >= _LEAST:
            model = {"version": version or BASE, "key": key, "path": encoder.path.name}
            chunks = range(0, len(new), _CHUNK)
            rows += [{"name": f"{version or BASE} {at}", "texts": new[at : at + _CHUNK], **model} for at in chunks]
    if not rows:
        return None
    clock = time.monotonic()
    done = list(on_ray.run(CacheWorker, {"store": store.url, "base": base, "work": str(work)}, rows, workers))
    return Saved(sum(one.encoded for one in done), time.monotonic() - clock, sum(one.seconds for one in done))


class CacheWorker(on_ray.Worker):
    """An actor that adds vectors to the cache; it holds one model at a time."""

    def __init__(self, store: str, base: str, work: str) -> None:
        self._url, self._base, self._work = store, base, Path(work)
        self._store: Store | None = None
        self._loaded: tuple[tuple[str, str], ModelEncoder] | None = None

    def do(self, row: dict[str, Any]) -> int:
        """Encode `texts` with the model `version` on `path`, and keep the vectors under `key`."""
        store = self._store = self._store or Store.open(self._url)
        encoder = self._encoder(store, str(row["version"]), str(row["path"]))
        if encoder.key("document") != row["key"]:
            raise ModelError(
                "this worker would give other vectors than the process of the night: another kind of device, or other "
                "versions of torch, transformers or sentence-transformers; make them the same, or set "
                "training.scoring_workers to 0"
            )
        texts = [str(text) for text in row["texts"]]
        cache = VectorCache(self._work / "vectors", store)
        cache.add(str(row["key"]), [text_hash(text) for text in texts], encoder.encode(texts, "document"))
        return len(texts)

    def _encoder(self, store: Store, version: str, path: str) -> ModelEncoder:
        if self._loaded is None or self._loaded[0] != (version, path):
            folder = folder_of(store, version, self._base, self._work)
            self._loaded = (version, path), ModelEncoder.open(folder, PATHS[path])
        return self._loaded[1]
