"""Versions that a person rolled back: no night promotes them again until somebody releases them.

Nothing is written to hold a version. A rollback from change m back to what served with change s leaves every version
that changes s + 1 to m brought; the ledger says so in the same write that moves production. What lifts it is written:
`releases/<number of the rollback>-<version>.json`, or a later change that puts the version back into production.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.registry.clock import store_time
from tasks.registry.ledger import Change, history
from tasks.registry.versions import RegistryError
from tasks.storage import Store


@dataclass(frozen=True)
class Held:
    """A version that was rolled back, the hash of its weights, and the rollback that holds it."""

    version: str
    weights: str
    rollback: Change

    @property
    def key(self) -> str:
        """Where its release is written."""
        return f"releases/{self.rollback.promotion:012d}-{self.version}.json"

    def __str__(self) -> str:
        by, at = self.rollback.who, f"{self.rollback.at:%Y-%m-%d %H:%M} UTC"
        return (
            f"version {self.version} was rolled back by {by} at {at} ({self.rollback.reason}), "
            f"and is held until `ratchet release {self.version}`"
        )


def held(store: Store) -> list[Held]:
    """Versions that are held, those of the latest rollback first. Raises LedgerError when the ledger is not whole."""
    found = _rolled_back(history(store))
    released = {entry.key for entry in store.entries("releases/")} if found else set()
    return [one for one in found if one.key not in released]


def find_held(store: Store, version: str, weights: str) -> Held | None:
    """What holds a version, or another version with the same weights; None where nothing does."""
    return next((one for one in held(store) if version == one.version or weights == one.weights), None)


def release(store: Store, version: str, *, who: str, reason: str) -> list[Held]:
    """Let nights promote a version again that was rolled back; returns what held it.

    Raises RegistryError when nothing holds it.
    """
    every = held(store)
    found = [one for one in every if one.version == version]
    if not found:
        names = ", ".join(one.version for one in every) or "none"
        raise RegistryError(f"version {version} is not held; held versions: {names}")
    at = store_time(store).isoformat()
    for one in found:
        record = {"version": version, "rollback": one.rollback.promotion, "who": who, "reason": reason, "at": at}
        # the first to write it is the one that released it
        store.put_if_absent(one.key, json.dumps(record, sort_keys=True, indent=1).encode() + b"\n")
    return found


def _rolled_back(changes: Sequence[Change]) -> list[Held]:
    """Versions that a rollback left, and that did not serve again since; those of the latest rollback first."""
    found: dict[str, Held] = {}
    for place, change in enumerate(changes):
        if change.version is not None:
            found.pop(change.version, None)
        if change.action == "rollback":
            for left in changes[_target(changes, place) + 1 : place]:
                if left.version not in {None, change.version} and left.fingerprint is not None:
                    found.pop(str(left.version), None)
                    found[str(left.version)] = Held(str(left.version), left.fingerprint.weights, change)
    return list(found.values())[::-1]


def _target(changes: Sequence[Change], place: int) -> int:
    """Place of the change that a rollback went back to; -1 for the base model, before any change."""
    version = changes[place].version
    return max((at for at in range(place) if changes[at].version == version), default=-1)
