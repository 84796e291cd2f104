"""Faults that are planted into the code, to see that the simulation finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final
from unittest import mock

from tasks import night, registry, runs
from tasks.config import Outcome
from tasks.intake import commit_log
from tasks.registry import holds, ledger, production, retention, versions
from tasks.splits import Split
from tasks.storage import Store

Patch = Any


def _unconditional(name: str) -> list[Patch]:
    """A put without its condition, which the probe of the store does not notice."""
    patch = mock.patch.object(Store, name, lambda self, key, body, *_: self.put(key, body))
    return [patch, mock.patch.object(Store, "probe", return_value=[])]


def _no_reading_back() -> list[Patch]:
    """A lost reply is taken for a lost race."""
    real = Store._conditional

    def put(self: Store, key: str, body: bytes, condition: dict[str, Any]) -> str | None:
        where = {"Bucket": self.bucket, "Key": self.prefix + key, **condition}
        reply, _ = real(self, key, lambda client: client.put_object(Body=body, **where))
        return None if reply is None else str(reply["ETag"])

    return [mock.patch.object(Store, "_put_conditionally", put)]


def _mark_before_event() -> list[Patch]:
    """The ledger says that a change was announced before it was."""

    def record(store: Store, change: Any, body: bytes, announce: Callable[[Any], None]) -> None:
        known = store.find(ledger.entry_key(change.promotion)) is not None
        store.put_if_absent(ledger.entry_key(change.promotion), body)
        if not known:
            announce(change)

    return [mock.patch.object(ledger, "record", record), mock.patch.object(production, "record", record)]


def _no_announcement_by_others() -> list[Patch]:
    """Whoever completes an interrupted change tells nobody."""
    real = ledger.settle
    told = {"announce": registry.silently}

    def settle(store: Store, announce: Any = None) -> Any:
        del announce
        return real(store, **told)

    return [mock.patch.object(production, "settle", settle), mock.patch.object(registry, "settle", settle)]


def _unsettled() -> list[Patch]:
    """Production moves although the entry of the change before is missing."""

    def settle(store: Store, announce: Any = None) -> Any:
        del announce
        return registry.read_production(store)

    return [mock.patch.object(production, "settle", settle), mock.patch.object(registry, "settle", settle)]


def _no_quarantine() -> list[Patch]:
    """Rejected rows are not brought into quarantine by whoever commits next."""
    return [mock.patch.object(commit_log, "complete", return_value=None)]


def _marker_unseen() -> list[Patch]:
    """A promotion does not look whether its version is being deleted."""
    return [mock.patch.object(versions, "_check_not_retired", return_value=None)]


def _fast_clock() -> list[Patch]:
    """Retention tells ages by a machine whose clock is 400 days ahead."""
    real = retention.store_time

    def ahead(store: Store) -> datetime:
        return real(store) + timedelta(days=400)

    return [mock.patch.object(retention, "store_time", ahead)]


def _others_checkpoints() -> list[Patch]:
    """A night that concludes deletes the checkpoints of all runs without a verdict."""
    real = night.conclude

    def conclude(store: Store, outcome: Outcome) -> Any:
        done = real(store, outcome)
        for run in runs.unfinished(store):
            store.delete([entry.key for entry in store.entries(run.key(runs.CHECKPOINTS))])
        return done

    return [mock.patch.object(night, "conclude", conclude)]


def _not_held() -> list[Patch]:
    """What a person rolled back is promoted again."""
    return [mock.patch.object(production, "find_held", return_value=None)]


def _held_by_the_last_only() -> list[Patch]:
    """Only the version that served last is held, not those that were passed over."""
    real = holds._target
    return [mock.patch.object(holds, "_target", lambda changes, place: max(real(changes, place), place - 2))]


def _new_salt() -> list[Patch]:
    """A split that was lost is made anew (nothing loses it here: it is not found for once)."""
    real = Split.side
    calls = iter(range(10**9))

    def side(self: Split, query: str) -> Any:
        return real(Split("lost") if next(calls) % 50 == 0 else self, query)

    return [mock.patch.object(Split, "side", side)]


def _removes_by_part() -> list[Patch]:
    """Objects that a partial listing does not show are taken for gone."""
    from tasks.intake import take

    real = take.look

    def look(store: Store, log: Any, limits: Any, *, full: bool) -> Any:
        found = real(store, log, limits, full=full)
        listed = {entry.key for entry in list(store.entries("pairs/dt="))}
        gone = sorted(set(log.objects) - listed)
        return found if found.full else type(found)(found.new, gone, found.ignored, found.full)

    return [mock.patch.object(take, "look", look)]


def _outcome_from_memory() -> list[Patch]:
    """A run that broke off is concluded as failed, whatever it had promoted."""
    return [mock.patch.object(night, "stands", return_value=(None, None))]


def _keeps_the_moved() -> list[Patch]:
    """The log keeps the rows of objects that are gone."""

    def remove(self: Any, log: Any, keys: Iterable[str], full: bool) -> bool:
        del self, log, keys, full
        return True

    from tasks.intake import take

    return [mock.patch.object(take._Taking, "_remove", remove)]


PLANTED: Final[dict[str, Callable[[], list[Patch]]]] = {
    "put_if_absent without its condition": lambda: _unconditional("put_if_absent"),
    "put_if_match without its condition": lambda: _unconditional("put_if_match"),
    "a lost reply is taken for a lost race": _no_reading_back,
    "the mark before its event": _mark_before_event,
    "nobody announces for the dead": _no_announcement_by_others,
    "a change over one that is not in the ledger": _unsettled,
    "rejected rows stay out of quarantine": _no_quarantine,
    "removals from a partial listing": _removes_by_part,
    "removals are not committed": _keeps_the_moved,
    "a promotion does not look for the marker": _marker_unseen,
    "retention by a fast clock": _fast_clock,
    "checkpoints of others are deleted": _others_checkpoints,
    "a version that was rolled back is promoted": _not_held,
    "only the last version is held": _held_by_the_last_only,
    "a lost split is made anew": _new_salt,
    "an outcome from memory": _outcome_from_memory,
}
"""By what is wrong: what to patch."""


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The code with one fault in it."""
    patches = PLANTED[name]()
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()
