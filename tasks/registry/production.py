"""Changing which version serves: promotion by a night, rollback by a person, both under conditional writes.

`tasks.registry.ledger` says what is written, in which order, and why.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from tasks.config import Approval, Index
from tasks.registry.clock import store_time
from tasks.registry.holds import find_held
from tasks.registry.ledger import (
    POINTER,
    Action,
    Announce,
    Change,
    Fingerprint,
    Production,
    entry,
    find_entry,
    history,
    name_of,
    read_production,
    record,
    settle,
    silently,
)
from tasks.registry.versions import (
    Manifest,
    RegistryError,
    VersionError,
    download,
    hold,
    pull,
    read_manifest,
)
from tasks.storage import Store

BASE: Final = "base"
"""Name under which a rollback asks for the base model: what serves before anything was promoted."""

_SKEW: Final = timedelta(hours=1)
"""Up to this much an entry of the ledger may lie in the store's future, and the next one is still dated after it."""


class ProductionChangedError(RegistryError):
    """Production is no longer the one that was scored or left; nothing was written."""


class RefusedError(RegistryError):
    """The change makes no sense or the store cannot be trusted with it; nothing was written."""


@dataclass(frozen=True)
class _Wish:
    """A change that somebody wants; what it follows is only known when it is written."""

    version: str | None
    action: Action
    run_id: str
    who: str
    reason: str
    scores: Mapping[str, float]
    announce: Announce
    base_documents: str | None = None
    approval: Approval | None = None


def promote(  # noqa: PLR0913 # what the ledger says of a change, and what it follows
    store: Store,
    version: str,
    expected_etag: str | None,
    *,
    run_id: str,
    who: str,
    reason: str,
    scores: Mapping[str, float],
    announce: Announce = silently,
    base_documents: str | None = None,
    approval: Approval | None = None,
) -> Change:
    """Let a published version serve, in the place of exactly the production that was scored.

    `expected_etag` is the ETag of the production that the candidate was compared with, None when there was
    none. `base_documents` is the document identity of the base model: an index that was built with it stays where the
    version has the same and no other version serves.

    `announce` is called once the change has happened, before it is copied to the ledger. Called again by the
    same run, after a crash or a lost reply, it returns the change that it made.

    Raises ProductionChangedError when production is another by now, RefusedError when the version serves already,
    was rolled back by a person and not released, or the store does not honour conditional writes, VersionError when
    the version is not whole, and LedgerError.
    """
    current = settle(store, announce)
    if (current.etag if current else None) != expected_etag:
        made = _made(store, run_id, "promotion", version)
        if made is None:
            serves = f"{current.serves}, put there by run {current.run_id}," if current else "nothing"
            raise ProductionChangedError(f"production changed since it was scored: now {serves} serves")
        return made
    if current is not None and current.version == version:
        raise RefusedError(f"version {version} serves already")
    wish = _Wish(version, "promotion", run_id, who, reason, scores, announce, base_documents, approval)
    return _move(store, current, wish)


def _made(store: Store, run_id: str, action: Action, version: str | None) -> Change | None:
    """The change that this run made already, if it did."""
    of_run = [c for c in history(store) if (c.run_id, c.action, c.version) == (run_id, action, version)]
    return of_run[-1] if of_run else None


def rollback(
    store: Store,
    to_version: str | None = None,
    *,
    run_id: str,
    who: str,
    reason: str,
    leaving: int | None = None,
    announce: Announce = silently,
) -> Change:
    """Put an earlier version back: the one that served before (None), any that ever served, or the base model (BASE).

    The version's files are downloaded and every hash is checked first. The versions that are left are held: no night
    promotes them until they are released. `leaving` is the number of the change that was in force when the rollback
    was asked for: what came in between is not rolled back unseen. Called again by the same run it returns the change
    that it made, whatever came after it.

    Raises RefusedError when there is nothing to go back to, the version never served or serves now, or the store does
    not honour conditional writes; ProductionChangedError when production changed meanwhile; VersionError when the
    version does not verify; and LedgerError.
    """
    current = settle(store, announce)
    if current is None:
        raise RefusedError("nothing is in production: there is nothing to roll back")
    made = _rolled_back(store, current, run_id)
    if made is not None:
        return made
    if leaving is not None and current.promotion != leaving:
        raise ProductionChangedError(
            f"production changed since this rollback was asked for: now {current.serves} serves, put there by run "
            f"{current.run_id}. See `ratchet history`, and ask again"
        )
    target = {None: current.previous, BASE: None}.get(to_version, to_version)
    if target == current.version:
        raise RefusedError(f"{name_of(target)} serves already")
    scores: Mapping[str, float] = {}
    if target is not None:
        scores = _served(store, current, target).scores
        manifest = hold(store, target)
        with tempfile.TemporaryDirectory() as folder:
            download(store, target, manifest, Path(folder))
    return _move(store, current, _Wish(target, "rollback", run_id, who, reason, scores, announce))


def _rolled_back(store: Store, current: Production, run_id: str) -> Change | None:
    """The rollback that this run made already, if it did; a damaged old entry does not stand in the way."""
    if (current.run_id, current.action) == (run_id, "rollback"):
        return current
    with ThreadPoolExecutor(16) as pool:
        entries = list(pool.map(lambda number: find_entry(store, number), range(1, current.promotion)))
    return next((one for one in entries if one and (one.run_id, one.action) == (run_id, "rollback")), None)


def _served(store: Store, current: Production, version: str) -> Change:
    """The latest change that let a version serve.

    Reads no further back than it must: a damaged old entry does not stand in the way of a rollback at night.
    """
    for number in range(current.promotion - 1, 0, -1):
        change = entry(store, number)
        if change.version == version:
            return change
    raise RefusedError(f"version {version} never served: a rollback only goes back")


def _move(store: Store, current: Production | None, wish: _Wish) -> Change:
    """Write the pointer if it is still `current` (settled), announce the change, copy it to the ledger."""
    problems = store.probe()
    if problems:
        raise RefusedError(f"{store.url} is not to be trusted with production: {'; '.join(problems)}")
    change = _change(store, current, wish)
    body = change.body()
    written = store.put_if_absent(POINTER, body) if current is None else store.put_if_match(POINTER, body, current.etag)
    if written is None:
        # perhaps our own write: its reply was lost and another change followed, or a twin of this run was faster
        settle(store, wish.announce)
        made = _made(store, wish.run_id, wish.action, wish.version)
        if made is None:
            raise ProductionChangedError(f"production changed before {name_of(wish.version)} could take its place")
        return made
    record(store, change, body, wish.announce)
    return change


def _change(store: Store, current: Production | None, wish: _Wish) -> Change:
    """The entry of the ledger that fulfils a wish. Raises RefusedError for what may not happen."""
    manifest = None if wish.version is None else hold(store, wish.version)
    if manifest is not None and wish.action == "promotion":
        holds = find_held(store, str(wish.version), manifest.weights)
        if holds is not None:
            raise RefusedError(str(holds))
    now = store_time(store)  # clocks of machines differ, and may be far off
    at = max(now, current.at) if current and current.at - now <= _SKEW else now
    index: Index = "stays" if _same_documents(store, manifest, current, wish.base_documents) else "moves"
    try:
        return Change(
            version=wish.version,
            promotion=current.promotion + 1 if current else 1,
            previous=current.version if current else None,
            action=wish.action,
            run_id=wish.run_id,
            at=at,
            who=wish.who,
            reason=wish.reason,
            scores=dict(wish.scores),
            fingerprint=None if manifest is None else _fingerprint(manifest, index),
            index=index,
            approval=wish.approval,
        )
    except ValidationError as error:
        raise RefusedError(f"the {wish.action} cannot be recorded: {error}") from error


def _fingerprint(manifest: Manifest, index: Index) -> Fingerprint:
    return Fingerprint(
        **dict(manifest.description), weights=manifest.weights, rebuild_index=index == "moves", index=index
    )


def _same_documents(
    store: Store, manifest: Manifest | None, current: Production | None, base_documents: str | None
) -> bool:
    """Whether it is certain that a version (None: the base model) gives documents the vectors that `current` gives.

    Of the base model the ledger knows only what was said when it was left: that an index stayed.
    """
    if manifest is None:
        return current is not None and current.previous is None and current.index == "stays"
    documents = manifest.description.documents
    if current is None or current.version is None or current.fingerprint is None:
        return documents is not None and documents == base_documents
    if documents is not None and current.fingerprint.documents is not None:
        return documents == current.fingerprint.documents
    try:
        return manifest.same_vectors(read_manifest(store, current.version))
    except VersionError:
        return False  # a rollback away from a damaged version must not fail on that damage


def pull_production(store: Store | str, folder: Path | str) -> Path:
    """Bring the verified files of what serves now to `folder`, and return it; then `SentenceTransformer(path)`.

    `store` is a Store or its address, `s3://bucket/prefix`. Raises RegistryError when nothing is in production, it
    does not verify, or its weights are not those that production names.
    """
    opened = Store.open(store) if isinstance(store, str) else store
    production = read_production(opened)
    if production is None:
        raise RegistryError(f"nothing is in production in {opened.url}")
    if production.version is None or production.fingerprint is None:
        raise RegistryError(
            f"the base model serves in {opened.url}, since {production.at:%Y-%m-%d %H:%M} UTC ({production.reason}): "
            "there is no version to pull"
        )
    weights = read_manifest(opened, production.version).weights
    if weights != production.fingerprint.weights:
        raise RegistryError(
            f"version {production.version} has other weights than {opened.uri(POINTER)} names: {weights[:16]} is not "
            f"{production.fingerprint.weights[:16]}; roll back, or promote again"
        )
    return pull(opened, production.version, Path(folder))
