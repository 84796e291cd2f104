"""Which version serves, and every change of that: the production pointer and the ledger.

`production.json` is the only object that is ever replaced, and only by `put_if_match` on the bytes that were
read when production was scored. It carries the whole ledger entry of the change that wrote it, and the ledger entry
`promotions/<number>.json` is a copy of those bytes, written after the pointer. So a change happens in one write:
before it nothing has happened, after it everything is known. Whoever finds the last copy missing (after a crash)
writes it, and nobody moves the pointer from n to n + 1 before entry n is in the ledger. Hence the ledger has no
gap and no double, and its last entry is the pointer.

The number rises with every change and the run id is in the bytes, so no pointer is ever the same twice: an ETag
that matches means that nothing has happened since it was read. That is broken only by hand (an old pointer
put back, a pointer deleted); then the ledger is ahead of the pointer, and everything here refuses, loudly.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from tasks.registry.versions import (
    Description,
    Manifest,
    RegistryError,
    Sha256,
    VersionError,
    VersionName,
    download,
    hold,
    publish,
    pull,
    read_manifest,
)
from tasks.storage import Blob, Store

__all__ = [
    "Change",
    "Description",
    "Fingerprint",
    "LedgerError",
    "Production",
    "ProductionChangedError",
    "RefusedError",
    "RegistryError",
    "VersionError",
    "history",
    "promote",
    "publish",
    "pull",
    "pull_production",
    "read_production",
    "rollback",
    "served_on",
    "settle",
]

POINTER: Final = "production.json"
LEDGER: Final = "promotions/"

Action = Literal["promotion", "rollback"]


class ProductionChangedError(RegistryError):
    """Production is no longer the one that was scored; nothing was written."""


class RefusedError(RegistryError):
    """The change makes no sense or the store cannot be trusted with it; nothing was written."""


class LedgerError(RegistryError):
    """The pointer and the ledger contradict each other: somebody wrote or deleted one of them by hand."""


class Fingerprint(Description):
    """What a search index must know about the vectors of the version that serves."""

    weights: Sha256
    rebuild_index: bool = Field(description="Whether an index built with the previous version must be rebuilt.")


class Change(BaseModel):
    """One change of production: an entry of the ledger, and, while it is the last one, the pointer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: VersionName
    promotion: int = Field(ge=1, description="Number of the change, from 1, without gaps.")
    previous: VersionName | None = Field(description="The version that served before.")
    action: Action
    run_id: str = Field(min_length=1)
    at: AwareDatetime
    who: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    scores: dict[str, FiniteFloat] = Field(default_factory=dict)
    fingerprint: Fingerprint

    def body(self) -> bytes:
        """The bytes of pointer and ledger entry."""
        record = self.model_dump(mode="json", exclude={"etag"})
        return json.dumps(record, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


class Production(Change):
    """What serves now, and the ETag of the pointer that says so."""

    etag: str = Field(exclude=True)


# --- reading -------------------------------------------------------------------------------------------------


def read_production(store: Store) -> Production | None:
    """What serves now, or None when nothing was ever promoted. Writes nothing.

    Raises LedgerError when the pointer cannot be read as one, or is gone although the ledger has entries:
    "nothing in production" is never concluded from damage.
    """
    found = _pointer(store)
    return None if found is None else found[0]


def _pointer(store: Store) -> tuple[Production, Blob] | None:
    blob = store.find(POINTER)
    if blob is None:
        numbers = _numbers(store)
        if not numbers:
            return None
        blob = store.find(POINTER)  # the first promotion may have happened between the two reads
        if blob is None:
            last = store.uri(_key(max(numbers)))
            raise LedgerError(f"{store.uri(POINTER)} is gone, but the ledger goes on to {last}: copy that there")
    change = _change(store, POINTER, blob)
    return Production(**dict(change), etag=blob.etag), blob


def _change(store: Store, key: str, blob: Blob) -> Change:
    try:
        return Change.model_validate_json(blob.body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise LedgerError(f"{store.uri(key)} is not valid: {where}: {problem['msg']}") from error


def _key(number: int) -> str:
    return f"{LEDGER}{number:012d}.json"


def _numbers(store: Store) -> set[int]:
    """Numbers of the ledger's entries. Raises LedgerError for anything else in its folder."""
    names = [entry.key.removeprefix(LEDGER) for entry in store.entries(LEDGER)]
    foreign = [name for name in names if not (len(name) == 17 and name[:12].isdecimal() and name.endswith(".json"))]
    if foreign:
        raise LedgerError(f"{store.uri(LEDGER + foreign[0])} is no entry of the ledger")
    return {int(name[:12]) for name in names}


def settle(store: Store) -> Production | None:
    """Read production and complete what an interrupted change left undone: its copy in the ledger.

    Every run begins with this. Raises LedgerError when pointer and ledger contradict each other.
    """
    found = _pointer(store)
    if found is None:
        return None
    production, blob = found
    if store.put_if_absent(_key(production.promotion), blob.body) is None:
        raise LedgerError(f"{store.uri(_key(production.promotion))} is not what {store.uri(POINTER)} says")
    if max(_numbers(store)) > production.promotion:
        now = read_production(store)
        if now is None or now.promotion <= production.promotion:
            raise LedgerError(
                f"{store.uri(POINTER)} says change {production.promotion}, but the ledger goes on to "
                f"{max(_numbers(store))}: an old pointer was put back by hand"
            )
        return settle(store)  # another change happened while we were reading
    return production


def history(store: Store) -> list[Change]:
    """Every change of production, oldest first. Writes nothing.

    Raises LedgerError when an entry is missing or not valid, or the pointer is not the last one.
    """
    found = _pointer(store)
    if found is None:
        return []
    production, blob = found
    with ThreadPoolExecutor(16) as pool:
        earlier = list(pool.map(lambda number: _entry(store, number), range(1, production.promotion)))
    last = store.find(_key(production.promotion))
    if last is not None and last.body != blob.body:
        raise LedgerError(f"{store.uri(_key(production.promotion))} is not what {store.uri(POINTER)} says")
    return [*earlier, _change(store, POINTER, blob)]


def _entry(store: Store, number: int) -> Change:
    blob = store.find(_key(number))
    if blob is None:
        raise LedgerError(f"{store.uri(_key(number))} is missing: the ledger has a gap")
    change = _change(store, _key(number), blob)
    if change.promotion != number:
        raise LedgerError(f"{store.uri(_key(number))} says it is change {change.promotion}")
    return change


def served_on(changes: list[Change], day: date) -> list[Change]:
    """What served on a day (UTC) and why: the change in force when it began, then the changes of that day."""
    before = [change for change in changes if change.at.astimezone(UTC).date() < day]
    during = [change for change in changes if change.at.astimezone(UTC).date() == day]
    return before[-1:] + during


# --- changing ------------------------------------------------------------------------------------------------


def promote(
    store: Store,
    version: str,
    expected_etag: str | None,
    *,
    run_id: str,
    who: str,
    reason: str,
    scores: Mapping[str, float],
) -> Change:
    """Let a published version serve, in the place of exactly the production that was scored.

    `expected_etag` is the ETag of the production that the candidate was compared with, None when there was
    none. Called again by the same run, after a crash or a lost reply, it returns the change that it made.

    Raises ProductionChangedError when production is another by now, RefusedError when the version serves already
    or the store does not honour conditional writes, VersionError when the version is not whole, and LedgerError.
    """
    current = settle(store)
    if (current.etag if current else None) != expected_etag:
        made = _made(store, version, "promotion", run_id)
        if made is None:
            serves = f"version {current.version}, put there by run {current.run_id}" if current else "nothing"
            raise ProductionChangedError(f"production changed since it was scored: now {serves} serves")
        return made
    if current is not None and current.version == version:
        raise RefusedError(f"version {version} serves already")
    return _move(store, current, version, "promotion", run_id, who, reason, scores)


def _made(store: Store, version: str, action: Action, run_id: str) -> Change | None:
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
) -> Change:
    """Put an earlier version back: the one that served before (None), or any that ever served.

    The version's files are downloaded and every hash is checked first. Called again by the same run it returns the
    change that it made. Raises RefusedError when there is nothing to go back to, the version never served or
    serves now, or the store does not honour conditional writes; ProductionChangedError when production changed
    meanwhile; VersionError when the version does not verify; and LedgerError.
    """
    current = settle(store)
    if current is None:
        raise RefusedError("nothing is in production: there is nothing to roll back")
    if current.run_id == run_id and current.action == "rollback":
        return current
    target = to_version or current.previous
    if target is None:
        raise RefusedError(f"version {current.version} is the first that served: there is no previous one")
    if target == current.version:
        raise RefusedError(f"version {target} serves already")
    served = _served(store, current, target)
    manifest = hold(store, target)
    with tempfile.TemporaryDirectory() as folder:
        download(store, target, manifest, Path(folder))
    return _move(store, current, target, "rollback", run_id, who, reason, served.scores)


def _served(store: Store, current: Production, version: str) -> Change:
    """The latest change that let a version serve.

    Reads no further back than it must: a damaged old entry does not stand in the way of a rollback at night.
    """
    for number in range(current.promotion - 1, 0, -1):
        change = _entry(store, number)
        if change.version == version:
            return change
    raise RefusedError(f"version {version} never served: a rollback only goes back")


def _move(
    store: Store,
    current: Production | None,
    version: str,
    action: Action,
    run_id: str,
    who: str,
    reason: str,
    scores: Mapping[str, float],
) -> Change:
    """Write the pointer under the condition that it is still `current` (settled), then its copy in the ledger."""
    problems = store.probe()
    if problems:
        raise RefusedError(f"{store.url} is not to be trusted with production: {'; '.join(problems)}")
    manifest = hold(store, version)
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        change = Change(
            version=version,
            promotion=current.promotion + 1 if current else 1,
            previous=current.version if current else None,
            action=action,
            run_id=run_id,
            # clocks of two machines differ; the ledger's times never go back
            at=max(now, current.at) if current else now,
            who=who,
            reason=reason,
            scores=dict(scores),
            fingerprint=_fingerprint(store, manifest, current),
        )
    except ValidationError as error:
        raise RefusedError(f"the {action} cannot be recorded: {error}") from error
    body = change.body()
    written = store.put_if_absent(POINTER, body) if current is None else store.put_if_match(POINTER, body, current.etag)
    if written is None:
        # perhaps our own write: its reply was lost and another change followed, or a twin of this run was faster
        settle(store)
        made = _made(store, version, action, run_id)
        if made is None:
            raise ProductionChangedError(f"production changed before version {version} could take its place")
        return made
    ledger = _key(change.promotion)
    if store.put_if_absent(ledger, body) is None:
        raise LedgerError(f"{store.uri(ledger)} exists already and is not what {store.uri(POINTER)} says")
    return change


def _fingerprint(store: Store, manifest: Manifest, current: Production | None) -> Fingerprint:
    return Fingerprint(
        **dict(manifest.description), weights=manifest.weights, rebuild_index=_must_rebuild(store, manifest, current)
    )


def _must_rebuild(store: Store, manifest: Manifest, current: Production | None) -> bool:
    """An index survives only when it is certain that both versions give the same vectors."""
    if current is None:
        return True
    try:
        return not manifest.same_vectors(read_manifest(store, current.version))
    except VersionError:
        return True  # a rollback away from a damaged version must not fail on that damage


# --- pulling -------------------------------------------------------------------------------------------------


def pull_production(store: Store | str, folder: Path | str) -> Path:
    """Bring the verified files of what serves now to `folder`, and return it; then `SentenceTransformer(path)`.

    `store` is a Store or its address, `s3://bucket/prefix`. Raises RegistryError when nothing is in production, or it
    does not verify.
    """
    opened = Store.open(store) if isinstance(store, str) else store
    production = read_production(opened)
    if production is None:
        raise RegistryError(f"nothing is in production in {opened.url}")
    return pull(opened, production.version, Path(folder))
