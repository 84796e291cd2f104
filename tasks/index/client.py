"""How a search asks an index so that a query and the documents it is compared with always come from one model.

One record of the target says which index serves and which model encodes its queries. A search reads that record,
encodes with that model, and asks that index by its name. An index that served never changes, and stays for a while
after a switch: so whatever is switched meanwhile, the answer is that of one model. Where the index is gone by then,
the search starts again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tasks.index.targets import GoneError, Hit, Live, Target, TargetError
from tasks.registry import BASE, pull
from tasks.storage import Store

QueryEncoder = Callable[[Sequence[str]], np.ndarray]
"""Texts -> float32 unit vectors of shape (n_texts, dimension), by the query side of one model."""

_ATTEMPTS: Final = 5
"""Searches of one query; another is needed only where an index was deleted since the record was read."""

_KEPT: Final = 2
"""Models held in memory: what serves, and what served before."""


@dataclass(frozen=True)
class Answer:
    """What was found for each query, and by what: index and model of the one record that was read."""

    live: Live
    hits: list[list[Hit]]


class Searcher:
    """Searches what serves. May be shared by threads."""

    def __init__(self, target: Target, load: Callable[[str], QueryEncoder]) -> None:
        """`load` gives the query encoder of a version; it is called once for each that serves (`query_encoders`)."""
        self._target = target
        self._load = load
        self._encoders: dict[str, QueryEncoder] = {}
        self._loading = threading.Lock()

    def search(self, queries: Sequence[str], k: int = 10) -> Answer:
        """The k nearest documents of each query. Raises TargetError, also where nothing serves yet."""
        for _ in range(_ATTEMPTS):
            live = self._target.live()
            if live is None:
                raise TargetError(f"{self._target.address} has no index yet: run `ratchet reindex`")
            vectors = self._encoder(live.model)(queries)
            try:
                return Answer(live, self._target.search(live.index.name, vectors, k))
            except GoneError:
                continue
        raise TargetError(f"{self._target.address} lost its index {_ATTEMPTS} times while it was searched: try again")

    def _encoder(self, model: str) -> QueryEncoder:
        found = self._encoders.get(model)
        if found is not None:
            return found
        with self._loading:
            if model not in self._encoders:
                loaded = self._load(model)
                kept = list(self._encoders.items())[1 - _KEPT :]
                self._encoders = {**dict(kept), model: loaded}  # replaced as a whole: others read it without the lock
            return self._encoders[model]


def query_encoders(store: Store, work: Path, base_model: str) -> Callable[[str], QueryEncoder]:
    """Encoders for a `Searcher`: the verified files of a version, pulled to `work`, or the base model by its name.

    What they raise is a RegistryError or a ModelError.
    """

    def load(model: str) -> QueryEncoder:
        from tasks import encoding

        named = model == BASE
        loaded = encoding.load(
            encoding.resolve_model(base_model) if named else pull(store, model, work / "models" / model)
        )
        return lambda queries: encoding.encode(loaded, queries, "query", name=f"model {model}")

    return load
