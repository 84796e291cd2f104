"""What a night's report is made of, gathered from the run's folder and the store: bounded, however large the night."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final

import orjson

from tasks import runs
from tasks.config import DECISIVE, Outcome, Verdict
from tasks.gate import NEW_DOCUMENTS, Decision
from tasks.intake import commit_log
from tasks.records import Audited, Band, Drift, Moved, Reindexing, Trained
from tasks.runs import File, Run
from tasks.storage import Store

NIGHTS: Final = 60
"""Nights of the history."""

_OBJECTS: Final = 5
_SLICES: Final = 12
_REASONS: Final = 10
"""Rows of a list in the report; how many more there are is said."""

_THREADS: Final = 16
_MOST_REJECTED: Final = 100_000
"""Rejected rows of the night that are counted by reason; a night with more has one cause, and it shows by then."""

_PACKAGES: Final = (
    "torch",
    "transformers",
    "sentence-transformers",
    "numpy",
    "pyarrow",
    "great-expectations",
    "prefect",
)


@dataclass(frozen=True)
class SliceRow:
    """One slice of the test set: candidate minus production."""

    name: str
    queries: int
    judged: bool
    recall_at_10: float
    mrr: float


@dataclass(frozen=True)
class ObjectRow:
    """One new object, and how many of its rows were accepted and rejected."""

    key: str
    accepted: int
    rejected: int


@dataclass(frozen=True)
class NightRow:
    """A scored night, and the scores of what served after it."""

    run_id: str
    verdict: Verdict
    recall_at_10: float
    mrr: float


@dataclass(frozen=True)
class Material:
    """What the pages are made of besides the outcome; whatever a night did not come to is empty.

    Attributes:
        checks: rows of the checks' table.
        by_dimension: side ("base", "production", "candidate") -> dimension -> metric -> mean.
        training: how the candidate was trained.
        slices: the slices of the test set: new documents first, then those that fell most.
        more_slices: how many there are besides.
        by_similarity: the gain by how near training came to a query.
        judged_since: candidates that were judged since the last promotion, this one included; the more, the luckier
            is the one that is promoted.
        moved: the queries that lost and gained most, with the documents returned.
        rejected: reason -> rows of the night's new objects.
        measures, languages: what the checks measured of the data.
        objects: new objects of the night, the largest first.
        more_objects: how many there are besides.
        history: scored nights, oldest first.
        parameters: the settings of the run, group by group.
        versions: libraries by name.
        numeric_path: how vectors were computed.
        audit: what was found of the labels.
        drift: production's vectors beside its first ones.
        reindexing: what becomes of an index of documents.
    """

    checks: Sequence[Mapping[str, str]] = ()
    by_dimension: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    training: Trained | None = None
    slices: Sequence[SliceRow] = ()
    more_slices: int = 0
    by_similarity: Sequence[Band] = ()
    judged_since: int = 0
    moved: Moved = field(default_factory=Moved)
    rejected: Mapping[str, int] = field(default_factory=dict)
    measures: Mapping[str, float | None] = field(default_factory=dict)
    languages: Mapping[str, float] = field(default_factory=dict)
    objects: Sequence[ObjectRow] = ()
    more_objects: int = 0
    history: Sequence[NightRow] = ()
    parameters: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    numeric_path: str = ""
    audit: Audited | None = None
    drift: Drift | None = None
    reindexing: Reindexing | None = None


def gather(store: Store, outcome: Outcome) -> Material:
    """Read what the steps of a run left in its folder, what the log says of its data, and the nights before it.

    A broken-off run has less of all; what is missing is left out, never made up.
    """
    run = Run(store, outcome.run_id)
    checks = run.find(runs.LEAKS) or run.find(runs.CHECKED)
    scored, begun, settings = run.find(runs.SCORED), run.find(runs.BEGUN), run.find(runs.SETTINGS)
    slices = _slices(run.find(File(runs.DECISION, Decision)))
    taken = run.find(runs.TAKEN)
    since = taken.since if taken and taken.since is not None else begun.last_commit if begun else 0
    before = _before(store, outcome)
    entries = commit_log.read(store, range(since + 1, outcome.commit + 1)) if outcome.commit else []
    objects = sorted((source for entry in entries for source in entry.objects), key=lambda s: (-s.accepted, s.key))
    return Material(
        checks=checks.table if checks else (),
        by_dimension={name: side.by_dimension for name, side in scored.sides.items()} if scored else {},
        training=run.find(runs.CANDIDATE),
        slices=slices[:_SLICES],
        more_slices=max(0, len(slices) - _SLICES),
        by_similarity=scored.by_similarity if scored else (),
        judged_since=_judged_since(before, outcome),
        moved=scored.moved if scored else Moved(),
        rejected=_rejected(store, entries),
        measures=checks.result.measures if checks else {},
        languages=checks.result.languages if checks else {},
        objects=[ObjectRow(source.key, source.accepted, source.rejected) for source in objects[:_OBJECTS]],
        more_objects=max(0, len(objects) - _OBJECTS),
        history=_history(before, outcome),
        parameters={name: group.model_dump(mode="json") for name, group in vars(settings).items()} if settings else {},
        versions=_versions(),
        numeric_path=scored.numeric_path if scored else "",
        audit=run.find(runs.AUDITED),
        drift=run.find(runs.DRIFT),
        reindexing=scored.reindexing if scored else None,
    )


def _slices(decision: Decision | None) -> list[SliceRow]:
    """Slices of a decision: new documents first, then the largest fall."""
    rows = [
        SliceRow(name, part.queries, part.judged, **{metric: part.values.get(metric, 0.0) for metric in DECISIVE})
        for name, part in (decision.slices.items() if decision else ())
    ]
    return sorted(rows, key=lambda row: (row.name != NEW_DOCUMENTS, min(row.recall_at_10, row.mrr), row.name))


def _rejected(store: Store, entries: Sequence[commit_log.Commit]) -> dict[str, int]:
    """Reasons and how many rows each was given for, the most frequent first."""
    counts: Counter[str] = Counter()
    for entry in entries:
        blob = store.find(entry.rejected_rows) if entry.rejected_rows else None
        for line in blob.body.splitlines() if blob else ():
            counts[str(orjson.loads(line)["reason"])] += 1
            if counts.total() >= _MOST_REJECTED:
                return dict(counts.most_common(_REASONS))
    return dict(counts.most_common(_REASONS))


def _before(store: Store, outcome: Outcome) -> list[Outcome]:
    """The last runs before this one that have an outcome, oldest first."""
    earlier = list(islice(runs.backwards(store, before=outcome.run_id), NIGHTS))
    with ThreadPoolExecutor(_THREADS) as pool:
        return [found for found in pool.map(lambda run: run.outcome, reversed(earlier)) if found is not None]


def _judged_since(before: Sequence[Outcome], outcome: Outcome) -> int:
    """Candidates judged since the last promotion among these runs, this one included."""
    verdicts = [outcome.verdict, *takewhile("promoted".__ne__, (one.verdict for one in reversed(before)))]
    return sum(verdict in runs.JUDGED for verdict in verdicts)


def _history(before: Sequence[Outcome], outcome: Outcome) -> list[NightRow]:
    """The last nights on which models were scored, this one included: what served after each, on that night's test."""
    nights = []
    for night in [*before, outcome]:
        served = night.candidate if night.verdict == "promoted" else night.production
        if served and {*DECISIVE} <= served.scores.keys():
            nights.append(NightRow(night.run_id, night.verdict, *(served.scores[name] for name in DECISIVE)))
    return nights


def _versions() -> dict[str, str]:
    """Python and the libraries that a result depends on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}
