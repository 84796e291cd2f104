"""The demonstration's index: so that `ratchet search` has something to ask right after the night."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from tasks import index
from tasks.storage import Store


def build(store: Store, work: Path) -> int:
    """Let an index of the demonstration's documents follow what serves; returns how many there are.

    As `ratchet reindex` does it, in this process: there are a few thousand documents. Raises what a reindex raises.
    """
    serving = index.find_serving(store, work)
    with closing(index.open_target(None, store=store.url, work=work)) as target:
        followed = index.follow(target, serving)
        if followed is not None:
            return followed.contents.count
        embedded = index.embed(store, serving, work, workers=0)
        index.load(store, target, embedded.index)
        index.switch(store, target, embedded.index, serving, index.Rule(), work)
        return embedded.documents
