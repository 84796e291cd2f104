"""The folders of runs in the store: ids that sort, every file in them once, and which run concluded last."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final, Generic, Literal, TypeVar, cast, get_args

from pydantic import TypeAdapter, ValidationError

from tasks.config import Approval, Outcome, Verdict
from tasks.records import (
    Asked,
    Audited,
    Begun,
    Candidate,
    Checked,
    Drift,
    Published,
    Scored,
    Settings,
    Started,
    Taken,
    Waiting,
)
from tasks.storage import Store, StoreError

T = TypeVar("T")

Regression = Literal["began", "goes on", "ended"]
"""Where a run stands in a streak of nights that regress."""

JUDGED: Final = ("promoted", "held", "regressed")
"""Verdicts of runs whose candidate was compared with production."""

_RUNS: Final = "runs/"
_RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_LOOKED_AT: Final = 3
"""Concluded runs among which the last one is sought."""

_LATEST: Final = 60
"""Runs among which one may still be under way."""


@dataclass(frozen=True)
class File(Generic[T]):
    """A JSON file of a run's folder, and the record that it holds."""

    name: str
    type: type[T]


SETTINGS: Final = File("parameters.json", Settings)
BEGUN: Final = File("begin.json", Begun)
TAKEN: Final = File("intake.json", Taken)
CHECKED: Final = File("checks.json", Checked)
LEAKS: Final = File("leaks.json", Checked)
STARTED: Final = File("start.json", Started)
CANDIDATE: Final = File("train.json", Candidate)
SCORED: Final = File("scores.json", Scored)
OUTCOME: Final = File("outcome.json", Outcome)
ROLLBACK: Final = File("rollback.json", Asked)
AUDITED: Final = File("audit.json", Audited)
WAITING: Final = File("waiting.json", Waiting)
APPROVAL: Final = File("approval.json", Approval)
PUBLISHED_MLFLOW: Final = File("published-mlflow.json", Published)
PUBLISHED_HUGGINGFACE: Final = File("published-huggingface.json", Published)
DRIFT: Final = File("canary.json", Drift)

DECISION: Final = "decision.json"
DATA_DOCS: Final = "data_docs.html"
PER_QUERY: Final = "per_query.parquet"
TO_JUDGE: Final = "to_judge.jsonl"
GUARDS: Final = "guards/"
SUSPECTS: Final = "suspects.jsonl"
REPORT: Final = "report.html"
CHECKPOINTS: Final = "checkpoints/"

NAMES: Final = (
    *(file.name for file in (SETTINGS, BEGUN, TAKEN, CHECKED, LEAKS, STARTED, CANDIDATE, SCORED, OUTCOME, ROLLBACK)),
    *(file.name for file in (WAITING, APPROVAL, PUBLISHED_MLFLOW, PUBLISHED_HUGGINGFACE)),
    AUDITED.name, DRIFT.name,
    DECISION, DATA_DOCS, PER_QUERY, TO_JUDGE, GUARDS, SUSPECTS, REPORT, CHECKPOINTS,
)  # fmt: skip
"""Everything that a run's folder may hold; `docs/store.md` says what each is."""


@dataclass(frozen=True)
class Run:
    """One run's folder in the store. Runs only add to their folders, and only to their own."""

    store: Store
    run_id: str

    def key(self, name: str) -> str:
        """The key of a file of this run."""
        return f"{_RUNS}{self.run_id}/{name}"

    def once(self, file: File[T], compute: Callable[[], T]) -> T:
        """The record in a file, computed and written only when it is not there yet.

        This is what lets a night that was interrupted anywhere be run again: finished steps are read, on
        whichever machine the next attempt runs. Of two attempts at once, the first to write wins for both.
        """
        return once(self.store, self.key(file.name), file.type, compute)

    def find(self, file: File[T]) -> T | None:
        """The record in a file, or None while the step that writes it has not run; StoreError for anything else."""
        return find(self.store, self.key(file.name), file.type)

    def read(self, file: File[T]) -> T:
        """The record in a file; MissingKeyError when the step that writes it has not run."""
        key = self.key(file.name)
        return _parse(self.store, key, self.store.get(key).body, file.type)

    def put(self, name: str, body: bytes) -> None:
        """Write a file that a later attempt may write again."""
        self.store.put(self.key(name), body)

    def put_outcome(self, outcome: Outcome) -> None:
        """Write `outcome.json`; a later attempt of the same run may write it again: failed, then done."""
        self.put(OUTCOME.name, _adapter(Outcome).dump_json(outcome, indent=2))

    @property
    def outcome(self) -> Outcome | None:
        """What the run came to, or None while it has no outcome; StoreError when what is there is not one.

        Also None for a verdict that only a newer version knows: going back a version must not stop the nights.
        """
        key = self.key(OUTCOME.name)
        blob = self.store.find(key)
        if blob is None or _is_of_newer_version(blob.body):
            return None
        return _parse(self.store, key, blob.body, Outcome)


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


def once(store: Store, key: str, kind: type[T], compute: Callable[[], T]) -> T:
    """The record under `key`, computed and written only when nothing is there; see `Run.once`."""
    found = store.find(key)
    if found is None:
        body = _adapter(kind).dump_json(compute())
        if store.put_if_absent(key, body) is not None:
            return _parse(store, key, body, kind)
        found = store.get(key)
    return _parse(store, key, found.body, kind)


def find(store: Store, key: str, kind: type[T]) -> T | None:
    """The record under `key`, or None where there is nothing; StoreError when what is there is not such a record."""
    blob = store.find(key)
    return None if blob is None else _parse(store, key, blob.body, kind)


def backwards(store: Store, *, before: str | None = None) -> Iterator[Run]:
    """Every run of the store, the latest first.

    Args:
        store: Where the runs are.
        before: Leave out this run and later ones (the run that asks).
    """
    for name in reversed(store.folders(_RUNS)):
        if _RUN_ID.fullmatch(name) and (before is None or name < before):
            yield Run(store, name)


def last_concluded(store: Store, *, before: str | None = None) -> Outcome | None:
    """The run that came to a verdict other than `failed` on the latest commit, or None on the first night.

    The clock that named a run may have been wrong, the commits are counted; so of the latest few the one with the
    highest commit is it, and among equals the latest that is not named after the future.
    """
    tomorrow = run_id(datetime.now(UTC) + timedelta(days=1), "")
    found: list[Outcome] = []
    plausible = 0
    for run in backwards(store, before=before):
        outcome = run.outcome
        if outcome is not None and concluded(outcome):
            found.append(outcome)
            plausible += run.run_id < tomorrow
        if plausible == _LOOKED_AT:
            break
    return max(found, key=lambda one: (one.commit, one.run_id < tomorrow, one.run_id), default=None)


def last_good(store: Store, before: str) -> Outcome | None:
    """The last night before a run that came to a model which was not worse than production."""
    outcomes = (run.outcome for run in backwards(store, before=before))
    return next((one for one in outcomes if one is not None and one.verdict in ("promoted", "held")), None)


def regression(store: Store, outcome: Outcome) -> Regression | None:
    """Where this run stands in a streak of nights that regress; nights on which nothing was judged are passed over."""
    if outcome.verdict not in JUDGED:
        return None
    outcomes = (run.outcome for run in backwards(store, before=outcome.run_id))
    last = next((one.verdict for one in outcomes if one is not None and one.verdict in JUDGED), None)
    if outcome.verdict == "regressed":
        return "goes on" if last == "regressed" else "began"
    return "ended" if last == "regressed" else None


def unjudged_guards(store: Store, outcome: Outcome) -> dict[str, str]:
    """Guard sets that could not be judged, each with the first run of the streak in which it could not."""
    since = {one.name: outcome.run_id for one in outcome.guards if one.verdict == "not judged"}
    going = set(since)
    for earlier in backwards(store, before=outcome.run_id) if since else ():
        found = earlier.outcome
        if found is None or found.verdict not in JUDGED:
            continue
        going &= {one.name for one in found.guards if one.verdict == "not judged"}
        if not going:
            break
        since |= dict.fromkeys(going, earlier.run_id)
    return since


def unfinished(store: Store) -> list[Run]:
    """Of the latest runs those that came to no verdict: under way, killed, or failed and perhaps tried again."""
    latest = islice(backwards(store), _LATEST)
    return [run for run in latest if not concluded(run.outcome)]


def concluded(outcome: Outcome | None) -> bool:
    """Whether a run came to a verdict; a failed one may be tried again."""
    return outcome is not None and outcome.verdict != "failed"


def _is_of_newer_version(body: bytes) -> bool:
    """Whether an outcome is whole but for its verdict, a word that this version does not know."""
    try:
        verdict = json.loads(body)["verdict"]
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(verdict, str) and verdict not in get_args(Verdict)


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return _made(cast(Hashable, kind))


@functools.cache
def _made(kind: Any) -> TypeAdapter[Any]:
    """What reads and writes records of a type; it takes milliseconds to make."""
    return TypeAdapter(kind)


def _parse(store: Store, key: str, body: bytes, kind: type[T]) -> T:
    try:
        record: T = _adapter(kind).validate_json(body)
    except ValidationError as error:
        raise StoreError(f"{store.uri(key)} is not a valid {kind.__name__}: {error}") from error
    return record
