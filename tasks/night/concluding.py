"""The report and the outcome of a night."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks import report, runs
from tasks.config import Index, Outcome
from tasks.report import material
from tasks.runs import Run
from tasks.storage import Store

if TYPE_CHECKING:
    from tasks.report.charts import Chart


def write_report(store: Store, outcome: Outcome) -> str:
    """Write the report of a night that has not ended, for those who have to decide; returns it as Markdown."""
    gathered = material.gather(store, outcome)
    Run(store, outcome.run_id).put(runs.REPORT, report.html(outcome, gathered).encode())
    return report.markdown(outcome, gathered)


def conclude(store: Store, outcome: Outcome, *, details: bool = True) -> tuple[Outcome, str, list[Chart]]:
    """Write the report and the outcome; returns the outcome as written, the report as Markdown, and its charts.

    Without details the report holds what the outcome says, and nothing else is read from the store.

    After a verdict the training's checkpoints are of no more use; after a failure the next attempt needs them. Those
    of other runs are not looked at here: a run without a verdict may be under way (see `retire`).
    """
    run = Run(store, outcome.run_id)
    outcome = outcome.model_copy(update={"report": store.uri(run.key(runs.REPORT)), "index": _index(store, outcome)})
    gathered = material.gather(store, outcome) if details else material.Material()
    run.put(runs.REPORT, report.html(outcome, gathered).encode())
    run.put_outcome(outcome)
    if outcome.verdict != "failed":
        store.delete([entry.key for entry in store.entries(run.key(runs.CHECKPOINTS))])
    return outcome, report.markdown(outcome, gathered), report.charts_of(outcome, gathered)


def _index(store: Store, outcome: Outcome) -> Index | None:
    """What the ledger says of an index at the promotion that this run made; None where it made none."""
    from tasks import registry

    if outcome.verdict != "promoted":
        return None
    try:
        last = registry.read_production(store)
        changes = [last] if last and last.run_id == outcome.run_id else registry.history(store)
        made = [change for change in changes if change.run_id == outcome.run_id]
    except registry.RegistryError:  # the outcome says what serves as far as it is known, and must be written
        return None
    return made[-1].index if made else None
