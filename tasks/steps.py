"""Every Prefect task of Ratchet on one screen: each opens the store and calls one function of `tasks.night`.

Prefect's result cache stays off: a step's result is in the store, where another machine finds it too. Retries are
for the store and the network; whatever else fails would fail the same way again. What the UI shows on the way is for
people: a night continues without it when the Prefect API is away.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args
from uuid import UUID

import httpx
from prefect import task
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.blocks.system import Secret
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for
from tqdm import tqdm

from tasks import alerts, approval, index, night, publishing, report, runs, telemetry
from tasks.config import Checks, Gate, Limits, Model, Outcome, Training, Verdict, Watch
from tasks.intake import LogError
from tasks.pace import Pace, duration
from tasks.records import Asked, Begun, Candidate, Checked, Estimate, Question, Scored, Settings, Taken
from tasks.registry import Change, RegistryError, name_of, store_time
from tasks.report import evidence
from tasks.runs import Run
from tasks.storage import Store, StoreError
from tasks.watch import fresh
from tasks.watch.messages import news


def _store_failed(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Whether a step failed because of the store, or hung on it: the failures that another attempt can fix."""
    return isinstance(state.result(raise_on_failure=False), StoreError | TimeoutError | alerts.DeliveryError)


_LONG: Final[dict[str, Any]] = {
    "cache_policy": NO_CACHE,
    # a store that fails over is back within a minute or so, and may be away once more before a long step is done; the
    # client's own attempts last 15 to 30 s each time
    "retries": 4,
    "retry_delay_seconds": [5, 20, 60, 120],
    "retry_condition_fn": _store_failed,
    # no timeout: how long it takes is up to the data. `Training.max_minutes` bounds the training, and the store's
    # client every single read and write
}

_SHORT: Final[dict[str, Any]] = {
    **_LONG,
    # some small objects are read and written: an hour would mean that it hangs. A store that takes requests and never
    # answers costs three minutes for each of them, and must not use up the time of one attempt
    "timeout_seconds": 30 * 60,
}

_SKEW: Final = timedelta(minutes=10)
"""Difference between two clocks that is reported; what the store's own clock decides is right all the same."""

_AGAIN: Final = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds between attempts to show something in the UI: a Prefect server that restarts is back by then."""


def _show(create: Callable[[], Any], *, waits: Sequence[float] = _AGAIN) -> Any:
    """Show something in the UI; returns what `create` does, or None when the API stays away.

    It is in the store as well, so its absence from the UI must not cost the night.
    """
    for wait in (*waits, None):
        try:
            return create()
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise  # the API is there, and what it was asked is wrong
            if wait is None:
                get_run_logger().warning("not shown in the UI, since the Prefect API is away: %s", error)
                return None
            time.sleep(wait)
    raise AssertionError("unreachable: the loop returns")


class Progress(AbstractContextManager["Progress"]):
    """How far a long step is: a bar in a terminal, else a line in the log every half minute; an artifact in the UI.

    The UI is told by a thread of its own: a Prefect server that is slow or away holds up no training.
    """

    def __init__(self, key: str, what: str) -> None:
        self._what = what
        self._bar = tqdm(desc=what, disable=None, leave=False)  # None: only on a terminal
        self._artifact = _show(lambda: create_progress_artifact(0.0, key=key, description=what), waits=())
        self._teller = ThreadPoolExecutor(1, thread_name_prefix="progress")
        self._telling: Future[None] | None = None
        self._pace = Pace(what, partial(get_run_logger().info, "%s"))
        self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` is done; the UI is told every two seconds at most."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if total and now - self._told >= 2.0:
            self._told = now
            self._tell(100.0 * done / total, f"{self._what}: {done:,} of {total:,}")
        if self._bar.disable:
            self._pace(done, total)

    def _tell(self, percent: float, how_far: str) -> None:
        """Send it, unless the last one is still on its way: then the next one will do."""
        if self._artifact is not None and (self._telling is None or self._telling.done()):
            # with the run's context: the thread must find the server that the run reports to
            self._telling = self._teller.submit(copy_context().run, self._send, percent, how_far)

    def _send(self, percent: float, how_far: str) -> None:
        with suppress(httpx.HTTPError):
            update_progress_artifact(self._artifact, percent, description=how_far)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the bar; only a step that came to its end is shown as complete."""
        self._bar.close()
        self._teller.shutdown(wait=kind is None)
        if kind is None and self._artifact is not None:
            self._send(100.0, self._what)


@task(name="begin", **_SHORT)
def begin(store: str, run_id: str, settings: Settings) -> Begun:
    """Complete an interrupted promotion; note what serves, and where the last night ended."""
    opened = Store.open(store)
    telemetry.started(opened, run_id)
    ahead = datetime.now(UTC) - store_time(opened)
    if abs(ahead) > _SKEW:
        get_run_logger().warning("the clock of this machine is %s ahead of the store's: set it right", ahead)
    return night.begin(opened, run_id, settings, partial(_announce, opened))


@task(name="take in", **_LONG)
def take_in(store: str, run_id: str, last_commit: int, limits: Limits) -> Taken:
    """Commit every new object exactly once."""
    with Progress("intake", "Objects read") as progress:
        return night.take_in(Store.open(store), run_id, last_commit, limits, progress)


@task(name="check data", **_LONG)
def check(store: str, run_id: str, commit: int, since: int, base_model: str, checks: Checks) -> Checked:
    """Run the data checks, and show them as a table."""
    checked = night.check(Store.open(store), run_id, commit, since, base_model, checks)
    what = "What the data is like, check by check."
    _show(lambda: create_table_artifact([dict(row) for row in checked.table], key="data-checks", description=what))
    for warning in checked.result.warnings:
        get_run_logger().warning("%s", warning)
    return checked


@task(name="check leaks", **_LONG)
def check_leaks(store: str, run_id: str, commit: int, checks: Checks) -> Checked:
    """Count test queries that the train side nearly repeats."""
    return night.check_leaks(Store.open(store), run_id, commit, checks)


@task(name="train", **_LONG)
def train(store: str, run_id: str, commit: int, production: str | None, training: Training, work: str) -> Candidate:
    """Fine-tune, and publish the candidate."""
    logger = get_run_logger()

    def expected(estimate: Estimate) -> None:
        logger.info("training will take about %s, %.2f dollars", duration(estimate.seconds), estimate.dollars)

    with Progress("training", "Training steps") as progress:
        candidate = night.train(
            Store.open(store),
            run_id,
            commit,
            training,
            Path(work),
            progress,
            production=production,
            on_estimate=expected,
        )
    logger.info("%s", candidate.started_why)
    logger.info("candidate %s: %d steps in %.0f s", candidate.version, candidate.steps, candidate.seconds)
    return candidate


@task(name="score", **_LONG)
def score(
    store: str,
    run_id: str,
    commit: int,
    candidate: str,
    production: str | None,
    training: Training,
    gate: Gate,
    work: str,
) -> Scored:
    """Score candidate and production on the same test set, and serve the candidate from a fresh process."""
    with Progress("scoring", "Texts encoded") as progress:
        scored = night.score(
            Store.open(store), run_id, commit, candidate, production, training, gate, Path(work), progress
        )
    if scored.on_ray:
        get_run_logger().info("%s", scored.on_ray)
    return scored


@task(name="audit labels", **_LONG)
def audit(
    store: str, run_id: str, commit: int, candidate: str, production: str | None, training: Training, work: str
) -> None:
    """Look for wrong labels. Whatever becomes of it, the night goes on to the same verdict."""
    opened = Store.open(store)
    with _beside_the_verdict("the labels were not audited", partial(night.audit_failed, opened, run_id)):
        night.audit(opened, run_id, commit, candidate, production, training, Path(work))


@contextmanager
def _beside_the_verdict(what: str, failed: Callable[[str], None]) -> Iterator[None]:
    """Log what goes wrong, whatever it is, and note it in the run's folder: no verdict depends on it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the verdict needs none of it
        get_run_logger().exception(what)
        with suppress(StoreError):
            failed(f"{type(error).__name__}: {error}")


@task(name="canary", **_LONG)
def canary(store: str, run_id: str, production: str | None, training: Training, work: str) -> None:
    """Compare vectors of production with its first ones. Whatever becomes of it, the night goes on."""
    opened = Store.open(store)
    with _beside_the_verdict("the canary was not asked", partial(night.canary_failed, opened, run_id)):
        drift = night.canary(opened, run_id, production, training, Path(work))
        if drift.warning:
            get_run_logger().warning("%s", drift.warning)


@task(name="judge", **_SHORT)
def judge(store: str, run_id: str, gate: Gate, checks: Checks) -> night.Judged:
    """Decide on what was scored."""
    return night.judge(Store.open(store), run_id, gate, checks)


@task(name="promote", **_SHORT)
def promote(
    store: str, run_id: str, candidate: Model, etag: str | None, *, who: str, reason: str
) -> tuple[str | None, str]:
    """Let the candidate serve, if production is still what it was compared with; the version, and why."""
    opened = Store.open(store)
    change, why = night.promote(
        opened, run_id, candidate, etag, who=who, reason=reason, announce=partial(_announce, opened)
    )
    return (change.version if change else None), why


def _announce(store: Store, change: Change) -> None:
    """Tell the outside of a change of production, before the ledger says so."""
    alerts.announce_production(store.url, change.model_dump(mode="json"))


@task(name="stands", **_SHORT)
def stands(store: str, run_id: str) -> tuple[str | None, str | None]:
    """What serves now, and the sentence that says that this run promoted, if it did."""
    return night.stands(Store.open(store), run_id)


@task(name="retire", **_SHORT)
def retire(store: str, work: str) -> None:
    """Delete versions and checkpoints that nothing needs. What goes wrong is logged: the night is over."""
    try:
        opened = Store.open(store)
        gone, local = night.retire(opened), night.tidy(opened, Path(work))
    except (StoreError, RegistryError, OSError):
        get_run_logger().exception("nothing more was retired; `ratchet retire --dry-run` says what would be")
        return
    for what, names in (("versions", gone.versions), ("checkpoints of", gone.checkpoints), ("pulled versions", local)):
        if names:
            get_run_logger().info("deleted %s %s", what, ", ".join(names))
    if gone.vectors:
        get_run_logger().info("deleted %d shards of vectors", len(gone.vectors))


@task(name="ask for approval", **_SHORT)
def ask(store: str, outcome: Outcome, hours: float) -> Question:
    """Note that the candidate waits for a person, and write the report as it is so far; what they are asked."""
    opened = Store.open(store)
    candidate = outcome.candidate.version if outcome.candidate else None
    waiting = approval.ask(opened, outcome.run_id, str(candidate), hours)
    outcome = outcome.model_copy(update={"report": opened.uri(Run(opened, outcome.run_id).key(runs.REPORT))})
    return report.question(outcome, waiting.until, _show_report(opened, outcome, waiting.until))


def _show_report(store: Store, outcome: Outcome, until: datetime) -> str | None:
    """Write the report of a night that waits, and show it; where it is in the UI, or None: then people ask without."""
    reasons = [f"The candidate passed the gate, and waits for a person until {until:%Y-%m-%d %H:%M} UTC."]
    so_far = outcome.model_copy(update={"verdict": "held", "reasons": [*reasons, *outcome.reasons]})
    try:
        page = night.write_report(store, so_far)
    except StoreError:
        raise
    except (LogError, ValueError, KeyError, TypeError):  # something of it is damaged
        get_run_logger().exception("the candidate waits without a report")
        return None
    shown = _show(lambda: create_markdown_artifact(page, key="report", description=f"waiting: {outcome.run_id}"))
    return url_for("artifact", shown) if shown else None


@task(name="tell that a candidate waits", **_SHORT)
def tell_waiting(store: str, run_id: str, question: Question) -> None:
    """Send an alert, once; nobody is told twice of one run."""
    try:
        alerts.announce_waiting(Store.open(store).url, run_id, question, alerts.run_url())
    except alerts.DeliveryError:
        get_run_logger().exception("nobody was told; still waiting")


@task(name="publish", cache_policy=NO_CACHE)
def publish(store: str, targets: publishing.Targets) -> None:
    """Make what serves known to other registries. What fails is told, and tried again by the next run."""
    opened = Store.open(store)
    for result in publishing.publish(opened, targets, environment=_with_tokens(targets)):
        what = f"{name_of(result.version)} to {result.target} ({result.name})"
        if not result.error:
            get_run_logger().info("published %s: %s", what, result.where)
            continue
        get_run_logger().warning("did not publish %s: %s", what, result.error)
        try:
            alerts.announce_unpublished(opened.url, result, alerts.run_url())
        except alerts.DeliveryError:
            get_run_logger().exception("nobody was told")


def _with_tokens(targets: publishing.Targets) -> dict[str, str]:
    """This process's environment, with the tokens that it lacks from Prefect's secret blocks, where they are there."""
    environment = dict(os.environ)
    for target, _ in targets.named():
        variable = publishing.SECRETS[target]
        if not environment.get(variable):
            with suppress(httpx.HTTPError):  # there is no server
                token = secret(f"ratchet-{target}-token")
                if token is not None:
                    environment[variable] = token
    return environment


@task(name="tell other tools", timeout_seconds=120, cache_policy=NO_CACHE)
def tell_tools(store: str, outcome: Outcome) -> None:
    """Send the run's lineage, and renew the metrics. What goes wrong is logged: the verdict stands."""
    telemetry.ended(Store.open(store), outcome)
    _renew_metrics(store)


@task(name="renew metrics", timeout_seconds=120, cache_policy=NO_CACHE)
def renew_metrics(store: str) -> None:
    """Write what serves and how the runs ended to the store. What goes wrong is logged."""
    _renew_metrics(store)


def _renew_metrics(store: str) -> None:
    try:
        telemetry.write_metrics(Store.open(store))
    except (StoreError, RegistryError):
        get_run_logger().exception("the metrics were not renewed")


def tell_cancelled(store: str, run_id: str) -> None:
    """Send that the run is stopped from outside; no task, since it ends at once."""
    telemetry.cancelled(Store.open(store), run_id)


@task(name="conclude", **_SHORT)
def conclude(store: str, outcome: Outcome, *, details: bool = True) -> Outcome:
    """Write outcome and report, show the report in the UI, and send alerts."""
    opened = Store.open(store)
    outcome, page, charts = night.conclude(opened, outcome, details=details)
    for chart in charts:
        picture = f"data:image/png;base64,{base64.b64encode(chart.png()).decode()}"
        _show(partial(create_image_artifact, picture, key=f"chart-{chart.name}", description=chart.title))
    summary = f"{outcome.verdict}: {outcome.run_id}"
    _show(lambda: create_markdown_artifact(page, key="report", description=summary))
    _show(lambda: _tag(outcome.verdict))
    try:
        alerts.announce_outcome(
            opened.url,
            outcome,
            _evidence(opened, outcome),
            alerts.run_url(),
            regression=_regression(opened, outcome),
        )
        alerts.announce_pending(opened.url, outcome, alerts.run_url())
        alerts.announce_guards(opened.url, outcome, _unjudged(opened, outcome), alerts.run_url())
    except alerts.DeliveryError:
        # the verdict is in the store; that nobody could be told must not turn it into a failure
        get_run_logger().exception("the outcome was not announced")
    get_run_logger().info("%s: %s", outcome.verdict, " ".join(outcome.reasons))
    return outcome


def _tag(verdict: Verdict) -> None:
    """Show a night's verdict beside its name in every list of runs, which can be narrowed down to it."""
    if flow_run.id:
        tags = {*flow_run.tags} - {*get_args(Verdict)} | {verdict}  # an earlier attempt may have come to another one
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run.id), tags=sorted(tags))


def _regression(store: Store, outcome: Outcome) -> runs.Regression | None:
    """Where the run stands in a streak; what cannot be read must not cost the alert."""
    try:
        return runs.regression(store, outcome)
    except StoreError:
        get_run_logger().exception("it is not known whether the night before regressed")
        return None


def _unjudged(store: Store, outcome: Outcome) -> dict[str, str]:
    """Since when guard sets cannot be judged; tonight, where earlier runs cannot be read."""
    try:
        return runs.unjudged_guards(store, outcome)
    except StoreError:
        return {one.name: outcome.run_id for one in outcome.guards if one.verdict == "not judged"}


def _evidence(store: Store, outcome: Outcome) -> evidence.Evidence:
    """What an alert tells besides the outcome; nothing, rather than no alert, where it cannot be read."""
    if outcome.verdict != "regressed":
        return evidence.Evidence()
    try:
        return evidence.gather(store, outcome)
    except (StoreError, LogError, ValueError, KeyError):
        get_run_logger().exception("the alert goes without its evidence")
        return evidence.Evidence()


@task(name="roll back", **_SHORT)
def roll_back(store: str, to_version: str | None, *, run_id: str, who: str, reason: str) -> dict[str, object]:
    """Put an earlier version back, and send alerts."""
    from tasks import registry

    opened = Store.open(store)
    asked = Run(opened, run_id).once(runs.ROLLBACK, lambda: Asked(night.leaving(opened)))
    change = registry.rollback(
        opened,
        to_version,
        run_id=run_id,
        who=who,
        reason=reason,
        leaving=asked.leaving,
        announce=partial(_announce, opened),
    )
    return change.model_dump(mode="json")


@task(name="take in labels", **_LONG)
def take_in_labels(store: str, run_id: str, limits: Limits) -> int:
    """Commit every new object exactly once; the next night finds it there."""
    with Progress("intake", "Objects read") as progress:
        return fresh.take_in(Store.open(store), run_id, limits, progress)


@contextmanager
def _target(address: str | None, store: str, work: str) -> Iterator[index.Target]:
    """A target for the length of a step."""
    opened = index.open_target(address, store=store, work=Path(work), password=_password(address))
    try:
        yield opened
    finally:
        opened.close()


def _password(address: str | None) -> str | None:
    """What `ratchet deploy` has put into the block of the target; None leaves it to libpq."""
    return secret(index.SECRET_BLOCK) if index.takes_password(address) else None


def secret(block: str) -> str | None:
    """What a secret block of Prefect holds; None where there is no such block."""
    try:
        return str(Secret.load(block).get())  # type: ignore[union-attr] # its synchronous face
    except ValueError:  # Prefect's word for a block that does not exist
        return None


@task(name="serving", **_LONG)
def serving(store: str, base_model: str | None, work: str) -> index.Serving:
    """Pull what serves, every file verified."""
    return index.find_serving(Store.open(store), Path(work), base_model)


@task(name="follow", **_LONG)
def follow(store: str, target: str | None, found: index.Serving, work: str) -> str | None:
    """Switch at once where the target has an index of the document encoder that serves; its name."""
    with _target(target, store, work) as opened:
        live = index.follow(opened, found)
    return live.index.name if live else None


@task(name="embed", **_LONG)
def embed(store: str, found: index.Serving, limits: Limits, workers: int | None, work: str) -> index.Embedded:
    """Store the vectors of all documents, those that are there already left out."""
    with Progress("reindex", "Parts of the documents embedded") as progress:
        embedded = index.embed(Store.open(store), found, Path(work), limits, workers, progress)
    for line in embedded.said():
        get_run_logger().info("%s", line)
    return embedded


@task(name="load", **_LONG)
def load(store: str, target: str | None, name: str, work: str) -> int:
    """Load what was embedded beside what serves."""
    with _target(target, store, work) as opened, Progress("load", "Parts of the documents loaded") as progress:
        return index.load(Store.open(store), opened, name, progress)


@task(name="switch", **_LONG)
def switch(
    store: str, target: str | None, name: str, found: index.Serving, rule: index.Rule, work: str
) -> index.Renewed | None:
    """Verify what was loaded, and let it serve."""
    with _target(target, store, work) as opened:
        return index.switch(Store.open(store), opened, name, found, rule, Path(work))


@task(name="watch", **_LONG)
def watch(store: str, run_id: str, commit: int, rule: Watch, work: str) -> fresh.Seen:
    """Score what serves on fresh labels, when there are enough of them."""
    with Progress("watching", "Texts encoded") as progress:
        return fresh.look(Store.open(store), run_id, commit, rule, Path(work), progress)


@task(name="tell", **_SHORT)
def tell(store: str, seen: fresh.Seen) -> None:
    """Send an alert, once, when production has drifted or stands still."""
    opened = Store.open(store)
    for one in news(seen):
        mark = f"watch/told/{one.identity}.json"
        if opened.find(mark) is None:
            alerts.announce_news(opened.url, one, alerts.run_url())
            # after the server has the event: a crash in between tells it again under the same id, rather than never
            opened.put_if_absent(mark, b"{}")
