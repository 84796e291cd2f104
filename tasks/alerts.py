"""Outcomes and changes of production as Prefect events, with their texts; automations send them on.

The id of every event is derived from what it reports, so a step that is retried, or a run that is repeated,
emits the same event again instead of a second one: the server acts on an id once. An event counts as emitted when the
server has taken it; what is marked as told is marked after that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

import httpx
from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from tasks.config import Outcome
from tasks.publishing import Result
from tasks.records import Question
from tasks.registry import name_of
from tasks.report import Evidence
from tasks.report.messages import guard_message, message, pending_message, recovery, unpublished_message
from tasks.runs import Regression
from tasks.watch.messages import News

_AGAIN: Final = (2.0, 5.0, 10.0, 20.0, 40.0)
"""Seconds between attempts: a Prefect server that restarts is back by then."""

PENDING_NIGHTS: Final = 3
"""Nights in a row after which an object that cannot be read is worth an alert."""


class DeliveryError(Exception):
    """An event could not be handed to the Prefect server."""


def announce_outcome(
    store_url: str,
    outcome: Outcome,
    evidence: Evidence | None = None,
    run_url: str | None = None,
    *,
    regression: Regression | None = None,
) -> None:
    """Emit `ratchet.night.<verdict>` with the scores, the differences, where the report lies, and the text.

    Nights that regress come in streaks, for the same reason. Of a regression that goes on from the night before, the
    event is `ratchet.night.regressed-again`, which no alert waits for; the first night after it that does not regress
    emits `ratchet.regression.ended` as well.
    """
    payload = outcome.model_dump(
        mode="json",
        include={
            "run_id",
            "verdict",
            "reasons",
            "commit",
            "counts",
            "candidate",
            "production",
            "deltas",
            "production_before",
            "production_after",
            "production_known",
            "guidance",
            "approval",
            "report",
            "reason",
        },
    )
    said = message(outcome, evidence or Evidence(), run_url)
    payload |= {"title": said.title, "message": said.text}
    again = "-again" if regression == "goes on" else ""
    _emit(f"ratchet.night.{outcome.verdict}{again}", store_url, outcome.run_id, payload)
    if regression == "ended":
        said = recovery(outcome, run_url)
        _emit(
            "ratchet.regression.ended",
            store_url,
            outcome.run_id,
            {"run_id": outcome.run_id, "title": said.title, "message": said.text},
        )


def announce_pending(store_url: str, outcome: Outcome, run_url: str | None = None) -> None:
    """Emit `ratchet.objects.pending` for each object that three nights in a row could not read, once for each.

    Every further night emits the same event again, in case it was lost: the server acts on an id once.
    """
    for pending in outcome.pending:
        if pending.nights >= PENDING_NIGHTS:
            said = pending_message(pending, run_url)
            payload = {**pending.model_dump(mode="json"), "title": said.title, "message": said.text}
            _emit("ratchet.objects.pending", store_url, f"{pending.key}#{pending.since}", payload)


def announce_guards(store_url: str, outcome: Outcome, since: Mapping[str, str], run_url: str | None = None) -> None:
    """Emit `ratchet.guard.unjudged` for each guard set that could not be judged; once for each streak of such nights.

    `since` names the first run of the streak of each.
    """
    for one in outcome.guards:
        if one.name in since:
            said = guard_message(one, run_url)
            payload = {**one.model_dump(mode="json"), "title": said.title, "message": said.text}
            _emit("ratchet.guard.unjudged", store_url, f"{one.name}#{since[one.name]}", payload)


def announce_production(store_url: str, pointer: Mapping[str, Any]) -> None:
    """Emit `ratchet.production.changed` with the new pointer: version, fingerprint, previous, who and why.

    Each of these functions raises DeliveryError when the server does not take the event.
    """
    _emit("ratchet.production.changed", store_url, str(pointer["promotion"]), dict(pointer))


def announce_waiting(store_url: str, run_id: str, question: Question, run_url: str | None = None) -> None:
    """Emit `ratchet.approval.waiting`: a candidate waits for a person; `run_url` is where the form is."""
    text = f"{question.message}\n{run_url or 'its address is not known'}"
    payload = {"run_id": run_id, "until": question.until.isoformat(), "message": text}
    _emit("ratchet.approval.waiting", store_url, run_id, {**payload, "title": "Ratchet: a candidate waits"})


def announce_unpublished(store_url: str, result: Result, run_url: str | None = None) -> None:
    """Emit `ratchet.publishing.failed`: once for each change of production and target, however often it is tried."""
    said = unpublished_message(result.target, result.name, name_of(result.version), result.error, run_url)
    payload = {**asdict(result), "title": said.title, "message": said.text}
    _emit("ratchet.publishing.failed", store_url, f"{result.target}#{result.name}#{result.promotion}", payload)


def announce_news(store_url: str, news: News, run_url: str | None = None) -> None:
    """Emit what the watch of production has found: `ratchet.production.drifted` or `ratchet.production.stale`."""
    text = news.message.text + (f"\nRun: {run_url}" if run_url else "")
    _emit(news.event, store_url, news.identity, {**news.payload, "title": news.message.title, "message": text})


def run_url() -> str | None:
    """Where the running flow is seen in the Prefect UI; None where no address of one is configured."""
    return url_for("flow-run", flow_run.id) if flow_run.id else None


def _emit(name: str, store_url: str, identity: str, payload: dict[str, Any]) -> None:
    """Hand an event to the server. Raises DeliveryError when it does not take it."""
    event = Event.model_validate(
        {
            "event": name,
            "resource": {"prefect.resource.id": f"ratchet.store.{store_url}", "prefect.resource.name": store_url},
            "related": _related(),
            "payload": payload,
            "id": uuid5(NAMESPACE_URL, f"{store_url}#{name}#{identity}"),
        }
    )
    _deliver(event)


def _related() -> list[dict[str, str]]:
    """The running flow, so that the event is shown with it."""
    if not flow_run.id:
        return []
    of_run = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.role": "flow-run"}
    return [{**of_run, "prefect.resource.name": flow_run.name or ""}]


def _deliver(event: Event, *, waits: Sequence[float] = _AGAIN) -> None:
    """Post an event until the server has taken it, or patience ends."""
    for wait in (*waits, None):
        try:
            with get_client(sync_client=True) as client:
                client.request("POST", "/events", json=[event.model_dump(mode="json")])
        except httpx.HTTPError as error:
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
            if wait is None or refused:
                raise DeliveryError(f"the Prefect server did not take the event {event.event}: {error}") from error
            time.sleep(wait)
        else:
            return
