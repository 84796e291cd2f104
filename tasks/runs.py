"""The run's own folder in the store: its id, its outcome, and which run concluded last."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

import orjson
from pydantic import ValidationError

from tasks.config import Outcome
from tasks.storage import Store, StoreError

_RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")


def run_id(scheduled: datetime, identity: str) -> str:
    """An id that sorts by time and is the same for every attempt of one run.

    Args:
        scheduled: When the run was due; aware, any time zone.
        identity: A hex identity that no other run has (a UUID); its first eight digits are used.
    """
    return f"{scheduled.astimezone(UTC):%Y%m%dT%H%M%SZ}-{identity.replace('-', '')[:8]}"


def now() -> str:
    """This moment in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def once(store: Store, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON object under `key`, computed and written only when it is not there yet.

    This is what lets a night that was interrupted anywhere be run again: finished steps are read, on
    whichever machine the next attempt runs. Of two attempts at once, the first to write wins for both.
    """
    found = store.find(key)
    if found is None:
        body = orjson.dumps(compute(), option=orjson.OPT_SORT_KEYS)
        if store.put_if_absent(key, body) is not None:
            return dict(orjson.loads(body))
        found = store.get(key)
    return dict(orjson.loads(found.body))


def find_json(store: Store, key: str) -> dict[str, Any]:
    """The JSON object under `key`, or an empty one where there is none."""
    blob = store.find(key)
    return {} if blob is None else dict(orjson.loads(blob.body))


def write_outcome(store: Store, outcome: Outcome) -> str:
    """Store `runs/<run_id>/outcome.json`; returns its key.

    A run's outcome may be written again by a later attempt of the same run: failed, then done.
    """
    key = f"runs/{outcome.run_id}/outcome.json"
    store.put(key, orjson.dumps(outcome.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
    return key


def read_outcome(store: Store, run: str) -> Outcome | None:
    """The outcome of a run, or None while it has none.

    Raises StoreError when what is there is not an outcome.
    """
    key = f"runs/{run}/outcome.json"
    blob = store.find(key)
    if blob is None:
        return None
    try:
        return Outcome.model_validate_json(blob.body)
    except ValidationError as error:
        raise StoreError(f"{store.uri(key)} is not an outcome: {error}") from error


def last_concluded(store: Store, *, before: str | None = None) -> Outcome | None:
    """The latest run that came to a verdict other than `failed`, or None on the first night.

    Args:
        store: Where the runs are.
        before: Leave out this run and later ones (the run that asks).
    """
    for _, outcome in _earlier(store, before):
        if _concluded(outcome):
            return outcome
    return None


def interrupted(store: Store, *, before: str) -> list[str]:
    """Runs that came to no verdict, newest first: those between the run `before` and the last that concluded."""
    return [run for run, _ in takewhile(lambda found: not _concluded(found[1]), _earlier(store, before))]


def _concluded(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.verdict != "failed"


def _earlier(store: Store, before: str | None) -> Iterator[tuple[str, Outcome | None]]:
    """Each run before a certain one, newest first, and its outcome if it has one."""
    for run in reversed(store.folders("runs/")):
        if _RUN_ID.fullmatch(run) and (before is None or run < before):
            yield run, read_outcome(store, run)
