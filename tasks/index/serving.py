"""What an index has to follow: the model that serves, verified, and the identity of its document encoder."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from tasks import runs
from tasks.config import BUNDLED_MODEL
from tasks.encoding import document_identity, load, served
from tasks.index.encoder import Model, folder_of
from tasks.index.targets import Contents, Index, Live
from tasks.intake import live_tables
from tasks.registry import BASE, read_production
from tasks.splits import load_split
from tasks.storage import Store

_QUERIES: Final = 200
"""Queries by which an index is tried before it serves."""

_LATEST: Final = 20


class Serving(BaseModel):
    """The model that serves when a reindex begins.

    Attributes:
        model: what encodes documents and queries.
        promotion: number of the change of production that put it there; 0 before any.
        store: address of the store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Model
    promotion: int
    store: str

    def live(self, index: Index, contents: Contents) -> Live:
        """The record of an index that serves for this model."""
        base = self.model.base if self.model.version == BASE else ""
        return Live(index, self.model.version, contents, self.promotion, self.store, base)


def find_serving(store: Store, work: Path, base_model: str | None = None) -> Serving:
    """Pull what serves to `work`, every file verified, and say what an index must know of it.

    `base_model` is what serves before anything was promoted; None: what the last night started from.

    Raises RegistryError where what serves does not verify, ModelError where it cannot be loaded.
    """
    production = read_production(store)
    version = production.version if production is not None and production.version is not None else BASE
    base = base_model or last_base_model(store)
    folder = folder_of(store, version, base, work)
    dimension = served(load(folder, "cpu")).dimension
    model = Model(version, base, document_identity(folder), dimension)
    return Serving(model=model, promotion=production.promotion if production else 0, store=store.url)


def still_serves(store: Store, serving: Serving) -> bool:
    """Whether nothing has changed in production since."""
    production = read_production(store)
    return (production.promotion if production else 0) == serving.promotion


def last_base_model(store: Store) -> str:
    """The base model of the latest night that says one."""
    for run in islice(runs.backwards(store), _LATEST):
        settings = run.find(runs.SETTINGS)
        if settings is not None:
            return settings.training.base_model
    return BUNDLED_MODEL


def trial_queries(store: Store, most: int = _QUERIES) -> list[str]:
    """The first queries of the test side, in the order of the log: what an index is tried with before it serves."""
    found: dict[str, None] = {}
    split = None
    for table in live_tables(store):
        split = split or load_split(store)
        for query in table["query"].drop_null().unique().to_pylist():
            if query not in found and split.side(query) == "test":
                found[query] = None
                if len(found) == most:
                    return list(found)
    return list(found)
