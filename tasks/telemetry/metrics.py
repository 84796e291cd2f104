"""The state of a store in numbers: verdicts, scores, what serves and since when, seconds, rows, dollars.

Everything is counted anew from the outcomes of runs and from production, so no number is lost with a process.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Final, get_args

from tasks import registry, runs
from tasks.config import Outcome, Verdict
from tasks.runs import Run
from tasks.storage import Store, StoreError
from tasks.telemetry.openmetrics import Family, text_of

METRICS: Final = "metrics.txt"
"""Where the text is kept in the store."""

_THREADS: Final = 16
_MAY_CHANGE: Final = 60
"""Latest runs whose outcome may still come, or change: a run that failed may be made again."""

_FAILED: Final = re.compile(rb'^ratchet_runs_total\{verdict="failed"\} (\d+)$', re.MULTILINE)


class Metrics:
    """The numbers of one store. Kept between two texts, it reads only outcomes that it does not know."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Outcome | None] = {}
        self._failed: int | None = None

    def text(self) -> str:
        """The numbers now, as OpenMetrics text. Raises StoreError and RegistryError where the store cannot be read."""
        outcomes = self._outcomes()
        return text_of([*_of_runs(self._verdicts(outcomes), outcomes), *_of_production(self._store)])

    def _outcomes(self) -> list[Outcome]:
        """The outcome of each run that has one, the latest names first."""
        every = list(runs.backwards(self._store))
        wanted = [run for place, run in enumerate(every) if self._may_differ(run, place)]
        with ThreadPoolExecutor(_THREADS) as pool:
            self._known |= dict(zip((run.run_id for run in wanted), pool.map(_outcome, wanted), strict=True))
        found = (self._known[run.run_id] for run in every)
        return [outcome for outcome in found if outcome is not None]

    def _may_differ(self, run: Run, place: int) -> bool:
        if run.run_id not in self._known:
            return True
        return place < _MAY_CHANGE and not runs.concluded(self._known[run.run_id])

    def _verdicts(self, outcomes: Iterable[Outcome]) -> dict[str, int]:
        """Runs by verdict. What has failed once is counted for ever: a counter that falls reads as a restart."""
        counted = Counter[str](outcome.verdict for outcome in outcomes)
        if self._failed is None:
            before = self._store.find(METRICS)
            told = _FAILED.search(before.body) if before else None
            self._failed = int(told[1]) if told else 0
        self._failed = max(self._failed, counted["failed"])
        return {verdict: counted[verdict] for verdict in get_args(Verdict)} | {"failed": self._failed}


def write_metrics(store: Store) -> None:
    """Leave the text in the store. Raises StoreError and RegistryError."""
    store.put(METRICS, Metrics(store).text().encode())


def _outcome(run: Run) -> Outcome | None:
    try:
        return run.outcome
    except StoreError:  # one that is damaged must not silence the others
        return None


def _of_runs(verdicts: Mapping[str, int], outcomes: list[Outcome]) -> Iterable[Family]:
    yield Family(
        "ratchet_runs", "counter", "Runs of retrain by verdict.", [({"verdict": v}, n) for v, n in verdicts.items()]
    )
    spent = sum(outcome.cost.get("dollars", 0.0) for outcome in outcomes)
    yield Family("ratchet_training_cost_dollars", "counter", "Dollars spent on training.", _plain([spent]), "dollars")
    last = _latest(outcomes)
    if last is not None:
        yield from _of_last(last)
    judged = _latest(one for one in outcomes if one.verdict in runs.JUDGED and one.candidate is not None)
    if judged is not None:
        yield from _of_scores(judged)


def _latest(outcomes: Iterable[Outcome]) -> Outcome | None:
    """The run that ended last; one that was named after the future by a fast clock only where there is no other."""
    tomorrow = runs.run_id(datetime.now(UTC) + timedelta(days=1), "")
    return max(outcomes, key=lambda one: (one.run_id < tomorrow, one.finished_at, one.run_id), default=None)


def _of_last(last: Outcome) -> Iterable[Family]:
    labels = {"run_id": last.run_id, "verdict": last.verdict}
    yield Family("ratchet_last_run", "info", "The run that ended last.", [(labels, 1)])
    ended = _seconds(last.finished_at)
    name = "ratchet_last_run_end_timestamp_seconds"
    yield Family(name, "gauge", "When it ended, in seconds since 1970.", _plain(ended), "seconds")
    steps = [({"step": step}, seconds) for step, seconds in last.seconds.items()]
    yield Family("ratchet_last_run_step_seconds", "gauge", "How long its steps took.", steps, "seconds")
    rows = [({"kind": kind}, count) for kind, count in last.counts.items()]
    yield Family("ratchet_last_run_rows", "gauge", "Rows it worked with: accepted, rejected, new, by side.", rows)
    dollars = [last.cost["dollars"]] if "dollars" in last.cost else []
    yield Family("ratchet_last_run_cost_dollars", "gauge", "What its training cost.", _plain(dollars), "dollars")
    objects = [({"state": "pending"}, len(last.pending)), ({"state": "refused"}, len(last.refused))]
    yield Family("ratchet_last_run_objects", "gauge", "Objects that it could not read, or took nothing of.", objects)


def _of_scores(judged: Outcome) -> Iterable[Family]:
    sides = {"candidate": judged.candidate, "production": judged.production, "base": judged.base}
    scores = [
        ({"metric": metric, "side": name}, value)
        for name, side in sides.items()
        if side is not None
        for metric, value in side.scores.items()
    ]
    yield Family("ratchet_score", "gauge", "Scores of the last comparison, on the queries that decide.", scores)
    deltas = judged.deltas.items()
    for bound, what in (
        ("value", "Candidate minus production"),
        ("low", "Its lower bound"),
        ("high", "Its upper bound"),
    ):
        name = "ratchet_score_delta" + ("" if bound == "value" else f"_{bound}")
        yield Family(name, "gauge", f"{what}.", [({"metric": m}, getattr(delta, bound)) for m, delta in deltas])


def _of_production(store: Store) -> Iterable[Family]:
    production = registry.read_production(store)
    if production is None:
        return
    labels = {"version": production.version or "base", "action": production.action, "run_id": production.run_id}
    yield Family("ratchet_production", "info", "What serves, and what put it there.", [(labels, 1)])
    yield Family("ratchet_production_changes", "counter", "Promotions and rollbacks.", _plain([production.promotion]))
    since = registry.serving_since(store, production)
    age = max(0.0, (datetime.now(UTC) - since).total_seconds())
    name = "ratchet_production_start_timestamp_seconds"
    yield Family(name, "gauge", "Since when it serves, in seconds since 1970.", _plain([since.timestamp()]), "seconds")
    yield Family("ratchet_production_age_seconds", "gauge", "How long it has served.", _plain([age]), "seconds")


def _plain(values: Iterable[float]) -> list[tuple[Mapping[str, str], float]]:
    """Samples without labels."""
    return [({}, value) for value in values]


def _seconds(at: str) -> list[float]:
    """A time as seconds since 1970; nothing where there is none."""
    try:
        return [datetime.fromisoformat(at).timestamp()]
    except ValueError:
        return []
