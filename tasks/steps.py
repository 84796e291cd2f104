"""Every Prefect task of Ratchet on one screen: each opens the store and calls one function of `tasks.night`.

Prefect's result cache stays off: a step's result is in the store, where another machine finds it too. Retries are
for the store and the network; whatever else fails would fail the same way again. No step has a timeout of its
own: training is bounded by `Training.max_minutes`, reads and writes by the store's client.
"""

from __future__ import annotations

import base64
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from prefect import task
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from tqdm import tqdm

from tasks import alerts, evidence, fresh, night
from tasks.commit_log import LogError
from tasks.config import Checks, Gate, Model, Outcome, Training, Watch
from tasks.storage import Store, StoreError


def _store_failed(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Whether a step failed because of the store: the one failure that another attempt can mend."""
    return isinstance(state.result(raise_on_failure=False), StoreError)


_STEP: Final[dict[str, Any]] = {
    "cache_policy": NO_CACHE,
    "retries": 3,
    "retry_delay_seconds": [5, 20, 60],  # a store that fails over is back within a minute or so
    "retry_condition_fn": _store_failed,
}


class Progress(AbstractContextManager["Progress"]):
    """How far a long step is: a bar in the terminal, where there is one, and a progress artifact in the UI."""

    def __init__(self, key: str, what: str) -> None:
        self._what = what
        self._bar = tqdm(desc=what, disable=None, leave=False)  # None: only on a terminal
        self._artifact: Any = create_progress_artifact(0.0, key=key, description=what)
        self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` is done; the UI is told every two seconds at most."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if total and time.monotonic() - self._told >= 2.0:
            self._told = time.monotonic()
            how_far = f"{self._what}: {done:,} of {total:,}"
            update_progress_artifact(self._artifact, 100.0 * done / total, description=how_far)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the bar; only a step that came to its end is shown as complete."""
        self._bar.close()
        if kind is None:
            update_progress_artifact(self._artifact, 100.0, description=self._what)


@task(name="begin", **_STEP)
def begin(store: str, run_id: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Complete an interrupted promotion; note what serves, and where the last night ended."""
    return night.begin(Store.open(store), run_id, parameters)


@task(name="take in", **_STEP)
def take_in(store: str, run_id: str, last_commit: int) -> dict[str, Any]:
    """Commit every new object exactly once."""
    with Progress("intake", "Objects read") as progress:
        return night.take_in(Store.open(store), run_id, last_commit, progress)


@task(name="check data", **_STEP)
def check(store: str, run_id: str, commit: int, since: int, base_model: str, rule: Checks) -> dict[str, Any]:
    """Run the data checks, and show them as a table."""
    found = night.check(Store.open(store), run_id, commit, since, base_model, rule)
    create_table_artifact(found["table"], key="data-checks", description="What the data is like, check by check.")
    for warning in found["result"]["warnings"]:
        get_run_logger().warning("%s", warning)
    return found


@task(name="check leaks", **_STEP)
def check_leaks(store: str, run_id: str, commit: int, base_model: str, rule: Checks, work: str) -> dict[str, Any]:
    """Count test queries that the train side nearly repeats."""
    with Progress("leak-check", "Queries encoded by the base model") as progress:
        return night.check_leaks(Store.open(store), run_id, commit, base_model, rule, Path(work), progress)


@task(name="train", **_STEP)
def train(
    store: str, run_id: str, commit: int, production: str | None, training: Training, work: str
) -> dict[str, Any]:
    """Fine-tune, and publish the candidate."""
    with Progress("training", "Training steps") as progress:
        found = night.train(Store.open(store), run_id, commit, training, Path(work), progress, production=production)
    get_run_logger().info("%s", found["started_why"])
    get_run_logger().info("candidate %s: %d steps in %.0f s", found["version"], found["steps"], found["seconds"])
    return found


@task(name="score", **_STEP)
def score(
    store: str,
    run_id: str,
    commit: int,
    candidate: str,
    production: str | None,
    training: Training,
    gate: Gate,
    work: str,
) -> dict[str, Any]:
    """Score candidate and production on the same test set, and serve the candidate from a fresh process."""
    with Progress("scoring", "Texts encoded") as progress:
        return night.score(
            Store.open(store), run_id, commit, candidate, production, training, gate, Path(work), progress
        )


@task(name="judge", **_STEP)
def judge(store: str, run_id: str, gate: Gate, rule: Checks) -> dict[str, Any]:
    """Decide on what was scored."""
    return night.judge(Store.open(store), run_id, gate, rule)


@task(name="promote", **_STEP)
def promote(
    store: str, run_id: str, candidate: Model, etag: str | None, *, who: str, reason: str
) -> tuple[str | None, str]:
    """Let the candidate serve, if production is still what it was compared with; the version, and why."""
    opened = Store.open(store)
    change, why = night.promote(opened, run_id, candidate, etag, who=who, reason=reason)
    if change is not None:
        alerts.announce_production(opened.url, change.model_dump(mode="json"))
    return (change.version if change else None), why


@task(name="conclude", **_STEP)
def conclude(store: str, outcome: Outcome) -> Outcome:
    """Write outcome and report, show the report in the UI, and tell whoever listens."""
    opened = Store.open(store)
    outcome, page, charts = night.conclude(opened, outcome)
    for chart in charts:
        picture = f"data:image/png;base64,{base64.b64encode(chart.png()).decode()}"
        create_image_artifact(picture, key=f"chart-{chart.name}", description=chart.title)
    create_markdown_artifact(page, key="report", description=f"{outcome.verdict}: {outcome.run_id}")
    alerts.announce_outcome(opened.url, outcome, _evidence(opened, outcome), alerts.run_url())
    get_run_logger().info("%s: %s", outcome.verdict, " ".join(outcome.reasons))
    return outcome


def _evidence(store: Store, outcome: Outcome) -> evidence.Evidence:
    """What an alert tells besides the outcome; nothing, rather than no alert, where it cannot be read."""
    if outcome.verdict != "regressed":
        return evidence.Evidence()
    try:
        return evidence.gather(store, outcome)
    except (StoreError, LogError, ValueError, KeyError):
        get_run_logger().exception("the alert goes without its evidence")
        return evidence.Evidence()


@task(name="roll back", **_STEP)
def roll_back(store: str, to_version: str | None, *, run_id: str, who: str, reason: str) -> dict[str, Any]:
    """Put an earlier version back, and tell whoever listens."""
    from tasks import registry

    opened = Store.open(store)
    pointer = registry.rollback(opened, to_version, run_id=run_id, who=who, reason=reason).model_dump(mode="json")
    alerts.announce_production(opened.url, pointer)
    return pointer


@task(name="take in labels", **_STEP)
def take_in_labels(store: str, run_id: str) -> int:
    """Commit every new object exactly once; the next night finds it there."""
    with Progress("intake", "Objects read") as progress:
        return fresh.take_in(Store.open(store), run_id, progress)


@task(name="watch", **_STEP)
def watch(store: str, run_id: str, commit: int, rule: Watch, work: str) -> dict[str, Any]:
    """Score what serves on fresh labels, when there are enough of them."""
    with Progress("watching", "Texts encoded") as progress:
        return fresh.look(Store.open(store), run_id, commit, rule, Path(work), progress).model_dump(mode="json")


@task(name="tell", **_STEP)
def tell(store: str, seen: dict[str, Any]) -> None:
    """Tell whoever listens, once, that production has drifted or stands still."""
    opened, found = Store.open(store), fresh.Seen.model_validate(seen)
    for news in alerts.news(found):
        mark = f"watch/told/{news.identity}.json"
        if opened.find(mark) is None:
            alerts.announce_news(opened.url, news, alerts.run_url())
            # after the event: a crash in between tells it again under the same id, rather than never
            opened.put_if_absent(mark, b"{}")
