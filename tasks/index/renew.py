"""An index in a target that follows what serves: loaded beside the one that serves, verified, switched to.

Blue is what serves, green what is to serve. Whatever goes wrong before the switch leaves blue as it is, and the next
call goes on with the shards that green holds. Nothing is dropped before the switch, and blue not after it: a model
that is rolled back finds its index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks.encoding import Progress
from tasks.index import shards
from tasks.index.build import Build, write_build
from tasks.index.serving import Serving
from tasks.index.targets import MIN_RECALL, Contents, GoneError, Index, Live, Target, TargetError, Verified, verify
from tasks.storage import Store


@dataclass(frozen=True)
class Rule:
    """How an index is tried and what is kept of others.

    Attributes:
        min_recall: least share of the exact nearest documents that the search structure must find.
        drop_previous: delete the index that served before as well, as after an erasure; a rollback then builds anew.
    """

    min_recall: float = MIN_RECALL
    drop_previous: bool = False


@dataclass(frozen=True)
class Renewed:
    """What became of the target: what serves now, how it was verified, and the indexes that were dropped."""

    live: Live
    verified: Verified
    dropped: tuple[str, ...] = ()


def follow(target: Target, serving: Serving) -> Live | None:
    """Switch at once to an index that the target has already, if it is of the document encoder that serves.

    So after a rollback, and after a promotion that leaves documents as they are: nothing is encoded, nothing loaded.
    Returns what serves then; None where there is no such index, and what serves was not changed. One that no longer
    holds what it was verified with does not count; unless it serves it is deleted, so that it can be loaded anew.

    Raises TargetError, also where the target is another store's.
    """
    live = _own(target, serving)
    for one in target.served():
        if one.index.documents != serving.model.identity:
            continue
        wanted = serving.live(one.index, one.contents)
        if wanted == live:
            return wanted
        if _holds(target, one.index.name, one.contents):
            target.switch(wanted, live)
            return wanted
        if live is None or live.index != one.index:
            target.drop(one.index.name)
    return None


def _own(target: Target, serving: Serving) -> Live | None:
    """What serves. Raises TargetError where it is another store's: two would switch each other's documents away."""
    live = target.live()
    if live is not None and live.store not in {"", serving.store}:
        raise TargetError(
            f"{target.address} serves the documents of {live.store}, not of {serving.store}: give each store a target "
            "of its own"
        )
    return live


def _holds(target: Target, name: str, contents: Contents) -> bool:
    """Whether an index is there and holds what it should."""
    try:
        return target.contents(name) == contents
    except GoneError:
        return False


def green(store: Store, target: Target, build: Build) -> Build:
    """What to load and to switch to: the build; or its twin, where the index that serves is the build's, but damaged.

    An index that serves is not written to, nor deleted: it may still answer.
    """
    live = target.live()
    serves = next((one for one in (build, build.twin) if live is not None and live.index == one.index), None)
    if serves is None:
        return build
    if _holds(target, serves.index.name, serves.contents):
        return serves
    write_build(store, serves.twin)
    return serves.twin


def load(store: Store, target: Target, build: Build, on_progress: Progress | None = None) -> int:
    """Load the shards of an index that the target does not hold yet; returns how many.

    Raises TargetError, ShardError, StoreError.
    """
    build = green(store, target, build)
    index = build.index
    target.prepare(index)
    missing = {one.name for one in build.shards} - _loaded(target, index)
    for number, name in enumerate(sorted(missing), 1):
        target.load(index.name, name, shards.read_shard(store, build.identity, name, build.dimension))
        if on_progress is not None:
            on_progress(number, len(missing))
    target.build(index.name)
    return len(missing)


def _loaded(target: Target, index: Index) -> set[str]:
    """Shards that an index holds; none of one that turns out damaged, which is begun anew."""
    try:
        return target.loaded(index.name)
    except GoneError:
        target.drop(index.name)
        target.prepare(index)
        return set()


def switch(
    target: Target,
    build: Build,
    serving: Serving,
    queries: np.ndarray,
    *,
    rule: Rule,
    still: Callable[[], bool] = lambda: True,
) -> Renewed | None:
    """Verify a loaded index, let it serve, and drop what nobody needs.

    Args:
        target: Where it is.
        build: What it must hold.
        serving: The model that it was built for.
        queries: Vectors of queries by that model, of shape (n_queries, dimension).
        rule: How it is tried, and what is kept.
        still: Whether that model serves still; asked last before the switch.

    Returns None, with nothing changed, where it no longer does. Raises VerificationError, SwitchedError, TargetError.
    """
    live = _own(target, serving)
    verified = verify(target, build.index, build.contents, queries, min_recall=rule.min_recall)
    if not still():
        return None
    wanted = serving.live(build.index, build.contents)
    target.switch(wanted, live)
    return Renewed(wanted, verified, tuple(_tidy(target, 1 if rule.drop_previous else 2)))


def _tidy(target: Target, keep: int) -> list[str]:
    """Drop all indexes but the `keep` that served last; returns their names."""
    kept = list(dict.fromkeys(one.index.name for one in target.served()))[:keep]
    gone = [name for name in target.indexes() if name not in kept]
    for name in gone:
        target.drop(name)
    return gone
