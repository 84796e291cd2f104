"""Which version serves and what served before: the production pointer and the ledger of its changes, as records.

`production.json` is the only object that is ever replaced, and only by `put_if_match` on the bytes that were
read when production was scored. It carries the whole ledger entry of the change that wrote it. The ledger entry
`promotions/<number>.json` is a copy of those bytes, written after the pointer and after the change was announced.
So a change happens in one write: before it nothing has happened, after it everything is known. Whoever finds the
last copy missing (after a crash) announces the change and writes it, and nobody moves the pointer from n to n + 1
before entry n is in the ledger. Hence the ledger has no gap and no double, its last entry is the pointer, and every
change is announced at least once.

The number rises with every change and the run id is in the bytes, so no pointer is ever the same twice: an ETag
that matches means that nothing has happened since it was read. That is broken only by hand (an old pointer
put back, a pointer deleted); then the ledger is ahead of the pointer, and everything here refuses, loudly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from tasks.config import Approval, Index
from tasks.registry.versions import Description, RegistryError, Sha256, VersionName
from tasks.storage import Blob, Store

POINTER: Final = "production.json"
_LEDGER: Final = "promotions/"

Action = Literal["promotion", "rollback"]


class LedgerError(RegistryError):
    """The pointer and the ledger contradict each other: one of them was written or deleted by hand."""


class Fingerprint(Description):
    """What a search index must know about the vectors of the version that serves."""

    weights: Sha256
    rebuild_index: bool = Field(description="Whether an index built with the previous version must be rebuilt.")
    index: Index = Field(description="The same in a word: stays, or moves.")

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_releases(cls, found: Any) -> Any:
        """Pointers that were written before there was a word for it."""
        if isinstance(found, dict) and "index" not in found and "rebuild_index" in found:
            return {**found, "index": "moves" if found["rebuild_index"] else "stays"}
        return found

    @model_validator(mode="after")
    def _once(self) -> Self:
        if self.rebuild_index != (self.index == "moves"):
            raise ValueError("index and rebuild_index contradict each other")
        return self


class Change(BaseModel):
    """One change of production: an entry of the ledger, and, while it is the last one, the pointer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: VersionName | None = Field(description="The version that serves; null: the base model, after a rollback.")
    promotion: int = Field(ge=1, description="Number of the change, from 1, without gaps.")
    previous: VersionName | None = Field(description="The version that served before; null: the base model.")
    action: Action
    run_id: str = Field(min_length=1)
    at: AwareDatetime
    who: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    scores: dict[str, FiniteFloat] = Field(default_factory=dict)
    fingerprint: Fingerprint | None = Field(description="Null when the base model serves.")
    index: Index = Field(default="moves", description="Whether the vectors of documents stay as they were.")
    approval: Approval | None = Field(None, description="Who approved a promotion; left out where nobody was asked.")

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_releases(cls, found: Any) -> Any:
        """Entries that say it only in the fingerprint."""
        if isinstance(found, dict) and "index" not in found and isinstance(found.get("fingerprint"), dict):
            inner = found["fingerprint"]
            return {**found, "index": inner.get("index", "moves" if inner.get("rebuild_index", True) else "stays")}
        return found

    @model_validator(mode="after")
    def _described(self) -> Self:
        if self.fingerprint is not None and self.fingerprint.index != self.index:
            raise ValueError("the change and its fingerprint say different things of the index")
        if (self.version is None) != (self.fingerprint is None):
            raise ValueError("a version and its fingerprint belong together")
        if self.version is None and self.action == "promotion":
            raise ValueError("only a rollback goes back to the base model")
        return self

    @property
    def serves(self) -> str:
        """What serves since this change, for people."""
        return name_of(self.version)

    @property
    def rebuild_index(self) -> bool:
        """Whether an index built for what served before must be rebuilt."""
        return self.index == "moves"

    def body(self) -> bytes:
        """The bytes of pointer and ledger entry."""
        record = self.model_dump(mode="json", exclude={"etag"})
        if self.approval is None:
            del record["approval"]  # earlier versions refuse a field that they do not know
        return json.dumps(record, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


class Production(Change):
    """What serves now, and the ETag of the pointer that says so."""

    etag: str = Field(exclude=True)


Announce = Callable[[Change], None]
"""Tells the outside of a change of production; may be called more than once for one change, with the same number."""


def silently(_: Change) -> None:
    """Announce a change to nobody."""


def name_of(version: str | None) -> str:
    """A version, or the base model, for people."""
    return f"version {version}" if version else "the base model"


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
            last = store.uri(entry_key(max(numbers)))
            raise LedgerError(
                f"{store.uri(POINTER)} is missing, but the ledger continues to {last}: copy that entry there"
            )
    change = _change(store, POINTER, blob)
    return Production(**dict(change), etag=blob.etag), blob


def _change(store: Store, key: str, blob: Blob) -> Change:
    try:
        return Change.model_validate_json(blob.body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise LedgerError(f"{store.uri(key)} is not valid: {where}: {problem['msg']}") from error


def entry_key(number: int) -> str:
    """Where entry number `number` of the ledger is."""
    return f"{_LEDGER}{number:012d}.json"


def _numbers(store: Store) -> set[int]:
    """Numbers of the ledger's entries. Raises LedgerError for anything else in its folder."""
    names = [entry.key.removeprefix(_LEDGER) for entry in store.entries(_LEDGER)]
    foreign = [name for name in names if not (len(name) == 17 and name[:12].isdecimal() and name.endswith(".json"))]
    if foreign:
        raise LedgerError(f"{store.uri(_LEDGER + foreign[0])} is not a ledger entry")
    return {int(name[:12]) for name in names}


def settle(store: Store, announce: Announce = silently) -> Production | None:
    """Read production; complete what an interrupted change left undone: its announcement, its copy in the ledger.

    Every run begins with this. Raises LedgerError when pointer and ledger contradict each other.
    """
    found = _pointer(store)
    if found is None:
        return None
    production, blob = found
    record(store, production, blob.body, announce)
    if max(_numbers(store)) > production.promotion:
        now = read_production(store)
        if now is None or now.promotion <= production.promotion:
            raise LedgerError(
                f"{store.uri(POINTER)} says change {production.promotion}, but the ledger continues to "
                f"{max(_numbers(store))}: an old pointer was put back by hand"
            )
        return settle(store, announce)  # another change happened while we were reading
    return production


def record(store: Store, change: Change, body: bytes, announce: Announce) -> None:
    """Announce a change that the pointer holds, then copy its bytes to the ledger, unless they are there already.

    In this order: the copy says that the change was announced. Raises LedgerError when the entry is another one.
    """
    key = entry_key(change.promotion)
    if store.find(key) is None:
        announce(change)
    if store.put_if_absent(key, body) is None:
        raise LedgerError(f"{store.uri(key)} is not what {store.uri(POINTER)} says")


def history(store: Store) -> list[Change]:
    """Every change of production, oldest first. Writes nothing.

    Raises LedgerError when an entry is missing or not valid, or the pointer is not the last one.
    """
    found = _pointer(store)
    if found is None:
        return []
    production, blob = found
    with ThreadPoolExecutor(16) as pool:
        earlier = list(pool.map(lambda number: entry(store, number), range(1, production.promotion)))
    last = store.find(entry_key(production.promotion))
    if last is not None and last.body != blob.body:
        raise LedgerError(f"{store.uri(entry_key(production.promotion))} is not what {store.uri(POINTER)} says")
    return [*earlier, _change(store, POINTER, blob)]


def entry(store: Store, number: int) -> Change:
    """Entry number `number` of the ledger. Raises LedgerError when it is missing or damaged."""
    blob = store.find(entry_key(number))
    if blob is None:
        raise LedgerError(f"{store.uri(entry_key(number))} is missing: the ledger has a gap")
    change = _change(store, entry_key(number), blob)
    if change.promotion != number:
        raise LedgerError(f"{store.uri(entry_key(number))} says it is change {change.promotion}")
    return change


def find_entry(store: Store, number: int) -> Change | None:
    """Entry number `number` of the ledger; None where it is missing or damaged."""
    try:
        return entry(store, number)
    except LedgerError:
        return None


def dates(changes: Sequence[Change]) -> list[datetime]:
    """When each change happened, oldest first: a change that says it came after a later one was dated by a wrong clock.

    Such a change gets the time of the one after it.
    """
    found: list[datetime] = []
    for change in reversed(changes):
        found.append(min(change.at, found[-1]) if found else change.at)
    return found[::-1]


def served_on(changes: Sequence[Change], day: date) -> list[Change]:
    """What served on a day (UTC) and why: the change in force when it began, then the changes of that day."""
    dated = [(at.astimezone(UTC).date(), change) for at, change in zip(dates(changes), changes, strict=True)]
    before = [change for at, change in dated if at < day]
    return before[-1:] + [change for at, change in dated if at == day]


def serving_since(store: Store, production: Production) -> datetime:
    """Since when production serves: never later than the store's own clock saw the pointer written.

    A change that was dated by a machine whose clock was ahead would otherwise never grow old.
    """
    written = [found.modified for found in store.entries(POINTER) if found.key == POINTER]
    return min([production.at, *written])
