"""How a search asks an index so that a query and the documents it is compared with always come from one model.

One record of the target says which index serves and which model encodes its queries. A search reads that record,
encodes with that model, and asks that index by its name. An index that served never changes, and stays for a while
after a switch: so whatever is switched meanwhile, the answer is that of one model. Where the index is gone by then,
the search starts again.

A model that begins to serve has to be fetched and loaded. Until it is, searches are answered by the former model on
the former index, which is kept for this.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tasks.index.encoder import folder_of
from tasks.index.targets import GoneError, Hit, Live, NoIndexError, Target, TargetError
from tasks.storage import Store

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

QueryEncoder = Callable[[Sequence[str]], np.ndarray]
"""Texts -> float32 unit vectors of shape (n_texts, dimension), by the query side of one model."""

_LOG: Final = logging.getLogger(__name__)
_ATTEMPTS: Final = 5
"""Searches of one query; another is needed only where an index was deleted since the record was read."""

_PAUSE_SECONDS: Final = 30.0
"""Between two attempts to load a model that could not be loaded."""


@dataclass(frozen=True)
class Answer:
    """What was found for each query, and by what: index and model of one record."""

    live: Live
    hits: list[list[Hit]]


@dataclass(frozen=True)
class _Ready:
    """A record with the query encoder of its model, loaded."""

    live: Live
    encode: QueryEncoder


class Searcher:
    """Searches what serves. May be shared by threads."""

    def __init__(self, target: Target, load: Callable[[str], QueryEncoder]) -> None:
        """`load` gives the query encoder of a version; it is called once for each that serves (`query_encoders`)."""
        self._target = target
        self._load = load
        self._ready: _Ready | None = None  # replaced as a whole: searches read it without a lock
        self._loading = threading.Lock()
        self._not_before = 0.0

    def search(self, queries: Sequence[str], k: int = 10) -> Answer:
        """The k nearest documents of each query.

        Raises TargetError, also where nothing serves yet; and what loading raises, where there is no former model.
        `Answer.live` is what answered. That is what served before while the model of the new index is being loaded,
        or cannot be.
        """
        for _ in range(_ATTEMPTS):
            live = self._target.live()
            if live is None:
                raise NoIndexError(f"{self._target.address} has no index yet: run `ratchet reindex`")
            ready = self._for(live)
            try:
                return Answer(ready.live, self._target.search(ready.live.index.name, ready.encode(queries), k))
            except GoneError:
                self._ready = None  # the next attempt waits for what serves now
        raise TargetError(
            f"{self._target.address} lost its index {_ATTEMPTS} times while it was searched: try again, or run "
            "`ratchet reindex`"
        )

    def _for(self, live: Live) -> _Ready:
        """What answers: the record itself once its model is loaded, and until then what served before."""
        ready = self._ready
        if ready is None:
            with self._loading:
                return self._prepared(live)
        if _same_model(ready.live, live):
            return self._renewed(ready, live)
        if time.monotonic() >= self._not_before and self._loading.acquire(
            blocking=False
        ):  # else it is being loaded already
            threading.Thread(target=self._prepare, args=(live,), daemon=True).start()
        return ready

    def _prepare(self, live: Live) -> None:
        """Load a model while searches go on; takes over the lock of the thread that started it."""
        try:
            self._prepared(live)
        except Exception:  # noqa: BLE001 - whatever it is: searches go on with what served before, and the next one tries again
            self._not_before = time.monotonic() + _PAUSE_SECONDS
            _LOG.exception("the model %s, which serves, cannot be loaded: the former one answers", live.model)
        finally:
            self._loading.release()

    def _prepared(self, live: Live) -> _Ready:
        ready = self._ready
        if ready is not None and _same_model(ready.live, live):
            return self._renewed(ready, live)
        self._ready = ready = _Ready(live, encoder_of(live, self._load, self._target.address))
        return ready

    def _renewed(self, ready: _Ready, live: Live) -> _Ready:
        """The same model with the index that it has by now."""
        if ready.live == live:
            return ready
        self._ready = ready = _Ready(live, ready.encode)
        return ready


def encoder_of(live: Live, load: Callable[[str], QueryEncoder], address: str) -> QueryEncoder:
    """The query encoder of a record's model. Raises TargetError where the index is another base model's."""
    encode = load(live.model)
    if getattr(encode, "documents", live.index.documents) != live.index.documents:
        raise TargetError(
            f"index {live.index.name} in {address} was made with another model than the one found for {live.model}: "
            f"name its base model{live.base and f', {live.base}'}, or run `ratchet reindex`"
        )
    return encode


def _same_model(one: Live, other: Live) -> bool:
    """Whether one encoder is right for both: `base` may stand for several models, whose documents differ."""
    return (one.model, one.index.documents) == (other.model, other.index.documents)


@dataclass(frozen=True)
class _Queries:
    """The query side of a model; `documents` is the identity of its document encoder."""

    model: SentenceTransformer
    name: str
    documents: str

    def __call__(self, queries: Sequence[str]) -> np.ndarray:
        from tasks import encoding

        return encoding.encode(self.model, queries, "query", name=f"model {self.name}")


def query_encoders(store: Store, work: Path, base_model: str) -> Callable[[str], QueryEncoder]:
    """Encoders for a `Searcher`: the verified files of a version, pulled to `work`, or the base model by its name.

    What they raise is a RegistryError, a ModelError or a StoreError.
    """

    def load(model: str) -> QueryEncoder:
        from tasks import encoding

        folder = folder_of(store, model, base_model, work)
        return _Queries(encoding.load(folder), model, encoding.document_identity(folder))

    return load
