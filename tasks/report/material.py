"""What a night's report is made of, gathered from the run's folder and the store: bounded, however large the night."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from tasks import runs
from tasks.config import Outcome
from tasks.intake import commit_log
from tasks.storage import Store

NIGHTS: Final = 60
"""Nights of the history."""

OBJECTS: Final = 5
SLICES: Final = 12
REASONS: Final = 10
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
class Material:
    """What the pages are made of besides the outcome; whatever a night did not come to is empty.

    Attributes:
        checks: rows of the checks' table.
        by_dimension: side ("base", "production", "candidate") -> dimension -> metric -> mean.
        training: `train.json`: losses, dev scores, best step, how it was computed.
        slices: the slices of the test set, those that fell most first: name, queries, recall_at_10, mrr, judged.
        more_slices: how many there are besides.
        moved: the queries that lost and gained most, with the documents returned: `scores.json`'s `moved`.
        rejected: reason -> rows of the night's new objects.
        measures, languages: what the checks measured of the data.
        objects: new objects of the night, the largest first: key, accepted, rejected.
        more_objects: how many there are besides.
        history: scored nights, oldest first: run_id, verdict, recall_at_10 and mrr of what served after each.
        parameters: the settings of the run, group by group.
        versions: libraries by name.
        numeric_path: how vectors were computed.
    """

    checks: Sequence[Mapping[str, Any]] = ()
    by_dimension: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    slices: Sequence[Mapping[str, Any]] = ()
    more_slices: int = 0
    moved: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    measures: Mapping[str, float | None] = field(default_factory=dict)
    languages: Mapping[str, float] = field(default_factory=dict)
    objects: Sequence[Mapping[str, Any]] = ()
    more_objects: int = 0
    history: Sequence[Mapping[str, Any]] = ()
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    numeric_path: str = ""


def gather(store: Store, outcome: Outcome) -> Material:
    """Read what the steps of a run left in its folder, what the log says of its data, and the nights before it.

    A broken-off run has less of all; what is missing is left out, never made up.
    """
    folder = f"runs/{outcome.run_id}"
    checks = runs.find_json(store, f"{folder}/leaks.json") or runs.find_json(store, f"{folder}/checks.json")
    result = checks.get("result", {})
    scores = runs.find_json(store, f"{folder}/scores.json")
    slices = _slices(runs.find_json(store, f"{folder}/decision.json"))
    since = int(runs.find_json(store, f"{folder}/begin.json").get("last_commit", 0))
    entries = commit_log.read(store, range(since + 1, outcome.commit + 1)) if outcome.commit else []
    objects = sorted((source for entry in entries for source in entry.objects), key=lambda s: (-s.accepted, s.key))
    return Material(
        checks=checks.get("table", ()),
        by_dimension={side: scores[side]["by_dimension"] for side in _sides(scores)},
        training=runs.find_json(store, f"{folder}/train.json"),
        slices=slices[:SLICES],
        more_slices=max(0, len(slices) - SLICES),
        moved=scores.get("moved", {}),
        rejected=_rejected(store, entries),
        measures=result.get("measures", {}),
        languages=result.get("languages", {}),
        objects=[
            {"key": source.key, "accepted": source.accepted, "rejected": source.rejected}
            for source in objects[:OBJECTS]
        ],
        more_objects=max(0, len(objects) - OBJECTS),
        history=_history(store, outcome),
        parameters=runs.find_json(store, f"{folder}/parameters.json"),
        versions=_versions(),
        numeric_path=scores.get("numeric_path", ""),
    )


def _sides(scores: Mapping[str, Any]) -> list[str]:
    return [side for side in ("base", "production", "candidate") if side in scores]


def _slices(decision: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Slices of a decision, the largest fall first."""
    found = [
        {"name": name, "queries": of["queries"], "judged": of["judged"], **of["values"]}
        for name, of in decision.get("slices", {}).items()
    ]
    return sorted(found, key=lambda row: (min(row.get("recall_at_10", 0.0), row.get("mrr", 0.0)), row["name"]))


def _rejected(store: Store, entries: Sequence[commit_log.Commit]) -> dict[str, int]:
    """Reasons and how many rows each was given for, the most frequent first."""
    counts: Counter[str] = Counter()
    for entry in entries:
        blob = store.find(entry.rejected_rows) if entry.rejected_rows else None
        for line in blob.body.splitlines() if blob else ():
            counts[str(orjson.loads(line)["reason"])] += 1
            if counts.total() >= _MOST_REJECTED:
                return dict(counts.most_common(REASONS))
    return dict(counts.most_common(REASONS))


def _history(store: Store, outcome: Outcome) -> list[dict[str, Any]]:
    """The last nights on which models were scored, this one included: what served after each, on that night's test."""
    folders = sorted(run for run in store.folders("runs/") if run < outcome.run_id)[-NIGHTS:]
    with ThreadPoolExecutor(_THREADS) as pool:
        before = list(pool.map(lambda run: runs.read_outcome(store, run), folders))
    nights = []
    for found in [*before, outcome]:
        served = found and (found.candidate if found.verdict == "promoted" else found.production)
        if found and served and {"recall_at_10", "mrr"} <= served.scores.keys():
            figures = {name: served.scores[name] for name in ("recall_at_10", "mrr")}
            nights.append({"run_id": found.run_id, "verdict": found.verdict, **figures})
    return nights


def _versions() -> dict[str, str]:
    """Python and the libraries that a result depends on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}
