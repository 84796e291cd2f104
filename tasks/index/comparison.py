"""What a search finds with the model that serves, beside what it found with the one before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tasks import runs
from tasks.index import shards
from tasks.index.build import Build, read_build
from tasks.index.client import Searcher, query_encoders
from tasks.index.encoder import folder_of
from tasks.index.targets import Hit, Live, Target
from tasks.registry import BASE, name_of, read_production
from tasks.storage import Store

if TYPE_CHECKING:
    from tasks.encoding import NumericPath

MOST_DOCUMENTS: Final = 20_000
"""Up to this many documents are compared with a model that has no index; more would take minutes."""


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


def compare(store: Store, target: Target, query: str, k: int, base_model: str, work: Path) -> Comparison:
    """Search the index that serves, and the documents as the model before it would have them.

    The former index is used where the target still has it. Otherwise the model before encodes the documents, those
    left out whose vectors a night has cached on this machine, and every document is compared.

    Raises TargetError where there is no index yet, RegistryError, ModelError, StoreError.
    """
    load = query_encoders(store, work, base_model)
    answer = Searcher(target, load).search([query], k)
    live = answer.live
    after = Side(_named(live.model), answer.hits[0], _among(live, "its index"))
    notes = list(_notes(store, live))
    former = next((one for one in target.served() if one.model != live.model), None)
    if former is not None:
        hits = target.search(former.index.name, load(former.model)([query]), k)[0]
        return Comparison(Side(_named(former.model), hits, _among(former, "its former index")), after, tuple(notes))
    before = _before(store, live)
    if before is None:
        notes.append("nothing served before: after a promotion both models are shown side by side")
    elif live.contents.count > MOST_DOCUMENTS:
        notes.append(
            f"{_named(before)}, which served before, has no index here any more, and {live.contents.count:,} documents "
            "are too many to encode for one question"
        )
    else:
        hits = _exactly(store, live, before, query, k, base_model, work)
        return Comparison(Side(_named(before), hits, _among(live, "vectors of the night")), after, tuple(notes))
    return Comparison(None, after, tuple(notes))


def _named(model: str) -> str:
    return name_of(None if model == BASE else model)


def _among(live: Live, where: str) -> str:
    return f"{live.contents.count:,} documents, {where}"


def _notes(store: Store, live: Live) -> list[str]:
    """Where the index lags behind production."""
    production = read_production(store)
    serves = BASE if production is None or production.version is None else production.version
    if serves == live.model:
        return []
    return [
        f"{_named(serves)} is in production, but the index is still that of {_named(live.model)}: run `ratchet reindex`"
    ]


def _before(store: Store, live: Live) -> str | None:
    """The model that served before what the index follows; None where nothing did."""
    production = read_production(store)
    if production is None or production.promotion < live.promotion or live.promotion == 0:
        return None
    from tasks.registry.ledger import entry

    change = production if production.promotion == live.promotion else entry(store, live.promotion)
    before = change.previous or BASE
    return None if before == live.model else before


def _exactly(store: Store, live: Live, model: str, query: str, k: int, base_model: str, work: Path) -> list[Hit]:
    """Compare every document of the index that serves, by another model; vectors of earlier nights are used."""
    from tasks.encoding import CachedEncoder, ModelEncoder, VectorCache

    ids, texts = _documents(store, read_build(store, live.index.name))
    own = ModelEncoder.open(folder_of(store, model, base_model, work), _path_of_night(store))
    # the cache of this machine alone: a search writes nothing to the store
    encoder = CachedEncoder(own, VectorCache(work / "vectors"))
    scores = encoder.encode(texts, "document") @ own.encode([query], "query")[0]
    best = np.argsort(-scores, kind="stable")[:k]
    return [Hit(ids[row], texts[row], {}, float(scores[row])) for row in best]


def _documents(store: Store, build: Build) -> tuple[list[str], list[str]]:
    """Ids and texts of an index."""
    ids: list[str] = []
    texts: list[str] = []
    for one in build.shards:
        rows = shards.read_shard(store, build.identity, one.name, build.dimension)
        ids += rows.ids
        texts += rows.texts
    return ids, texts


def _path_of_night(store: Store) -> NumericPath:
    """The numeric path of the night that promoted what serves: its cached vectors are by that path."""
    from tasks.encoding import BF16, FP32, PLAIN

    production = read_production(store)
    scored = runs.Run(store, production.run_id).find(runs.SCORED) if production is not None else None
    name = scored.numeric_path if scored is not None else ""
    return {path.name: path for path in (PLAIN, FP32, BF16)}.get(name, FP32)
