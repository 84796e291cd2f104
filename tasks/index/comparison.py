"""What a search finds with the model that serves, beside what it found with the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from tasks.encoding import FP32, CachedEncoder, ModelEncoder, VectorCache, text_hash
from tasks.index import shards
from tasks.index.build import Build, read_build
from tasks.index.client import QueryEncoder, Searcher, encoder_of, query_encoders
from tasks.index.encoder import folder_of, path_of_night
from tasks.index.serving import last_base_model
from tasks.index.targets import Hit, Live, Target
from tasks.registry import BASE, name_of, read_production
from tasks.storage import Store

_MOST_DOCUMENTS: Final = 10_000
"""Up to this many documents are compared by a model that has no index: to encode more would take long."""


@dataclass(frozen=True)
class Side:
    """The nearest documents of one query by one model; `how` says among what they were looked for, and how."""

    model: str
    hits: list[Hit]
    how: str


@dataclass(frozen=True)
class Comparison:
    """Both sides, and what there is to say; `before` is None where there is nothing to compare with."""

    before: Side | None
    after: Side
    notes: tuple[str, ...]


def compare(
    store: Store,
    target: Target,
    query: str,
    k: int,
    work: Path,
    on_step: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Search the index that serves, and the documents as the model before it would have them.

    The former index is used where the target still has it. Otherwise the model before encodes the documents, those
    left out whose vectors a night has cached on this machine, and every document is compared; `on_step` says so.

    Raises TargetError where there is no index yet, RegistryError, ModelError, StoreError.
    """
    serves = target.live()
    places = _Places(store, target, work, (serves and serves.base) or last_base_model(store))
    answer = Searcher(target, places.load).search([query], k)
    live = answer.live
    after = Side(_named(live.model), answer.hits[0], _among(live, "its index"))
    before, note = _earlier_side(places, live, query, k, on_step)
    unknown = "" if after.hits else f"{after.model} knows no word of the question"
    return Comparison(before, after, tuple(one for one in (unknown, _lag(store, live), note) if one))


@dataclass(frozen=True)
class _Places:
    """Where models, documents and indexes are."""

    store: Store
    target: Target
    work: Path
    base_model: str

    def load(self, model: str) -> QueryEncoder:
        """The query encoder of a model."""
        return query_encoders(self.store, self.work, self.base_model)(model)


def _earlier_side(
    places: _Places, live: Live, query: str, k: int, on_step: Callable[[str], None]
) -> tuple[Side | None, str]:
    """What the model before finds; or None, and why."""
    kept = next((one for one in places.target.served() if one.model != live.model), None)
    if kept is not None:
        places = replace(places, base_model=kept.base or places.base_model)
        encode = encoder_of(kept, places.load, places.target.address)
        hits = places.target.search(kept.index.name, encode([query]), k)[0]
        return Side(_named(kept.model), hits, _among(kept, "its former index")), ""
    before = _before(places.store, live)
    if before is None:
        return None, "nothing served before: after a promotion both models are shown side by side"
    if live.contents.count > _MOST_DOCUMENTS:
        return None, (
            f"{_named(before)}, which served before, has no index here, and {live.contents.count:,} documents are too "
            "many to compare one by one"
        )
    former = _former(places, live, before)
    if former.unknown:
        on_step(f"encoding {former.unknown:,} documents by {_named(before)}, which has no index here; they are kept")
    return Side(_named(before), former.search(query, k), _among(live, "every one compared")), ""


def _named(model: str) -> str:
    return name_of(None if model == BASE else model)


def _among(live: Live, where: str) -> str:
    return f"{live.contents.count:,} documents, {where}"


def _lag(store: Store, live: Live) -> str:
    """Where the index lags behind production."""
    production = read_production(store)
    serves = BASE if production is None or production.version is None else production.version
    if serves == live.model:
        return ""
    return (
        f"{_named(serves)} is in production, but the index is still that of {_named(live.model)}: run `ratchet reindex`"
    )


def _before(store: Store, live: Live) -> str | None:
    """The model that served before what the index follows; None where nothing did."""
    production = read_production(store)
    if production is None or production.promotion < live.promotion or live.promotion == 0:
        return None
    from tasks.registry.ledger import entry

    change = production if production.promotion == live.promotion else entry(store, live.promotion)
    before = change.previous or BASE
    return None if before == live.model else before


@dataclass(frozen=True)
class _Former:
    """A model without an index here: every document is compared by its vectors, which are cached on this machine.

    A night has cached those of its corpus; others are encoded, and cached too. A search writes nothing to the store.
    """

    encoder: ModelEncoder
    cache: VectorCache
    ids: list[str]
    texts: list[str]

    @cached_property
    def unknown(self) -> int:
        """Documents that have to be encoded."""
        known = self.cache.open(self.encoder.key("document"), self.encoder.dimension)
        return sum(text_hash(text) not in known for text in self.texts)

    def search(self, query: str, k: int) -> list[Hit]:
        """The k nearest documents."""
        vectors = CachedEncoder(self.encoder, self.cache).encode(self.texts, "document")
        scores = vectors @ self.encoder.encode([query], "query")[0]
        best = np.argsort(-scores, kind="stable")[:k]
        return [Hit(self.ids[row], self.texts[row], {}, float(scores[row])) for row in best]


def _former(places: _Places, live: Live, model: str) -> _Former:
    ids, texts = _documents(places.store, read_build(places.store, live.index.name))
    path = path_of_night(places.store, live.model) or FP32
    encoder = ModelEncoder.open(folder_of(places.store, model, places.base_model, places.work), path)
    return _Former(encoder, VectorCache(places.work / "vectors"), ids, texts)


def _documents(store: Store, build: Build) -> tuple[list[str], list[str]]:
    """Ids and texts of an index."""
    ids: list[str] = []
    texts: list[str] = []
    for one in build.shards:
        rows = shards.read_shard(store, build.identity, one.name, build.dimension)
        ids += rows.ids
        texts += rows.texts
    return ids, texts
