"""What an alert tells of a regressed night besides its scores: where it fell most, and which data is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks import runs
from tasks.config import Outcome
from tasks.gate import Decision
from tasks.intake import commit_log
from tasks.report.labels import blamed
from tasks.runs import File, Run
from tasks.scoring import movers
from tasks.storage import Store

_SLICES = 3
_QUERIES = 5


@dataclass(frozen=True)
class Fallen:
    """A query that the candidate answers worse: the rank of its first relevant document, 1/MRR, before and after."""

    query: str
    before: float
    after: float


@dataclass(frozen=True)
class Evidence:
    """What is told of a night besides its outcome; empty where it could not be read."""

    slices: Sequence[tuple[str, int, Mapping[str, float]]] = ()
    """The slices that fell most: name, number of queries, and the difference by metric."""
    queries: Sequence[Fallen] = ()
    """The queries that fell most."""
    since: str | None = None
    """The last night whose model was not worse; None: there was none."""
    objects: Sequence[tuple[str, int, int]] = ()
    """What was taken in since: key, rows accepted, rows rejected."""
    blamed: Sequence[str] = ()
    """Which upload probably made it worse."""


def gather(store: Store, outcome: Outcome) -> Evidence:
    """The evidence of a regressed night, from its folder and the commit log.

    Raises StoreError, LogError or ValueError when something cannot be read; the alert is sent without it then.
    """
    run = Run(store, outcome.run_id)
    slices = run.read(File(runs.DECISION, Decision)).slices
    worst = sorted(slices.items(), key=lambda item: min(item[1].values.values()))
    lost, _ = movers.moved(store.get(run.key(runs.PER_QUERY)).body, _QUERIES)
    audited = run.find(runs.AUDITED)
    good = runs.last_good(store, outcome.run_id)
    since = good.commit if good else 0
    return Evidence(
        slices=[(name, part.queries, part.values) for name, part in worst[:_SLICES] if min(part.values.values()) < 0],
        queries=[Fallen(one.query, one.before["mrr"], one.after["mrr"]) for one in lost],
        since=good.run_id if good else None,
        objects=[
            (source.key, source.accepted, source.rejected)
            for commit in commit_log.read(store, range(since + 1, outcome.commit + 1))
            for source in commit.objects
        ],
        blamed=blamed(audited) if audited else (),
    )
