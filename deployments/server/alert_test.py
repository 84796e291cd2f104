"""A test of each alert: an event as a run would emit it, an automation that takes it, a channel that accepts it.

An alert that waits for something not to happen cannot be triggered at will: its message goes to the channel directly.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from deployments.server import automations
from tasks.storage import StoreError, normalise

if TYPE_CHECKING:
    from prefect.automations import Automation
    from prefect.client.orchestration import SyncPrefectClient

_SECONDS: Final = 60.0
"""How long a server may take from the event to the channel."""

_POLL_SECONDS: Final = 1.0
_ANY_STORE: Final = "s3://test/test"


@dataclass(frozen=True)
class Tested:
    """What came of one alert on one channel."""

    alert: str
    channel: str
    error: str | None = None
    directly: bool = False
    """The message went to the channel without an event."""


def send(seconds: float = _SECONDS) -> Iterator[Tested]:
    """Send each alert, marked as a test, to each of its channels; those that wait for nothing first."""
    from prefect.client.orchestration import get_client

    waiting: dict[UUID, Automation] = {}
    for automation in automations.find():
        channels = automations.channels_of(automation)
        if not channels:
            continue
        name = automation.name.removeprefix(automations.PREFIX)
        if not automation.enabled:
            yield from (Tested(name, channel, "the alert is switched off on the server") for channel in channels)
        elif automations.test_event(name) in getattr(automation.trigger, "expect", ()):
            waiting[_emit(automation, name)] = automation
        else:
            found = automations.send_directly(automation, *_message(automation, name))
            yield from (Tested(name, channel, error, directly=True) for channel, error in found)
    with get_client(sync_client=True) as client:
        yield from _delivered(client, waiting, time.monotonic() + seconds)


def _emit(automation: Automation, name: str) -> UUID:
    """Emit what the alert's trigger looks for: the same resource and relations, under the name of its test."""
    from prefect.events import emit_event

    trigger: Any = automation.trigger
    resource = _one_of(trigger.match.model_dump())
    if resource["prefect.resource.id"].startswith(automations.STORE):
        # as runs name it, not as the alert does: whether the two agree is a part of the test
        resource = {"prefect.resource.id": f"{automations.STORE}{_store_of_nights()}"}
    related = trigger.match_related
    specifications = related if isinstance(related, list) else [related]
    title, text = _message(automation, name)
    identity = uuid4()
    emit_event(
        event=automations.test_event(name),
        resource={"prefect.resource.name": "test", **resource},
        related=[
            {"prefect.resource.id": "test", **_one_of(found)} for one in specifications if (found := one.model_dump())
        ],
        payload={"test": True, "title": title, "message": text},
        id=identity,
    )
    return identity


def _one_of(labels: dict[str, Any]) -> dict[str, str]:
    """Labels that a specification matches: its first values, with something in the place of a wildcard."""
    first = {label: values if isinstance(values, str) else values[0] for label, values in labels.items()}
    return {label: value.replace("*", str(uuid4())) for label, value in first.items()}


def _store_of_nights() -> str:
    """The store that scheduled nights work on, as they name it in events."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            named = client.read_deployment_by_name("retrain/nightly").parameters.get("store")
        except ObjectNotFound:
            named = None
    try:
        return normalise(str(named or os.environ.get("RATCHET_STORE") or _ANY_STORE))
    except StoreError:
        return str(named)


def _message(automation: Automation, name: str) -> tuple[str, str]:
    """Title and text: nothing has happened, so it says when this alert is sent."""
    when = automation.description.replace("Alerts when", "It is sent when", 1)
    text = f"This is a test of the alert {name!r}; nothing has happened. {when} What to do then is in docs/alerts.md."
    return f"[TEST] Ratchet: {name}", text


def _delivered(client: SyncPrefectClient, waiting: dict[UUID, Automation], deadline: float) -> Iterator[Tested]:
    """What the server says of each message that the events must have triggered; and of those that it never sent."""
    seen: dict[tuple[UUID, int], str] = {}
    wanted = {(event, place) for event, one in waiting.items() for place in range(len(automations.channels_of(one)))}
    while wanted - set(seen) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        seen |= _actions(client, list(waiting))
    for event, automation in waiting.items():
        name = automation.name.removeprefix(automations.PREFIX)
        for place, channel in enumerate(automations.channels_of(automation)):
            yield Tested(name, channel, _error(seen.get((event, place))))


def _actions(client: SyncPrefectClient, events: list[UUID]) -> dict[tuple[UUID, int], str]:
    """Which actions the events triggered, and how each ended."""
    from prefect.events.filters import EventFilter

    found = {}
    for event in events:
        chosen = EventFilter.model_validate(
            {
                "event": {"name": [f"prefect.automation.action.{ended}" for ended in ("executed", "failed")]},
                "related": {"id": [f"prefect.event.{event}"]},
            }
        )
        for one in client.read_events(chosen, limit=50).events:  # more than an alert has channels
            found[event, int(one.payload["action_index"])] = one.event.rpartition(".")[2]
    return found


def _error(ended: str | None) -> str | None:
    """What to tell people; never the server's reason, which may hold the address of the channel."""
    if ended is None:
        return "no message was sent: the alert does not match the store of the nights, or the server does not keep up"
    return None if ended == "executed" else "the channel did not accept it"
