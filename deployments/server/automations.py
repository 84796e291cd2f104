"""Alerts as code: what is watched for, after how long, and what is said; upserted by name on the Prefect server.

Every alert is one automation, "ratchet: NAME", with one notification per channel. What a run can tell itself (a night's
verdict, drift, staleness) is an event that carries its text; what a run cannot tell, because it is dead or was never
born, is seen by the server. `docs/alerts.md` says what to do about each.

An automation is written only where it differs: rewriting it would restart the clocks of the ones that wait for
something not to happen. One that was switched off in the UI stays off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, get_args
from uuid import UUID

from deployments.server import channels, differences, following
from deployments.server.settings import AlertName, Settings
from tasks.config import Verdict
from tasks.report.messages import REPLACEMENTS

if TYPE_CHECKING:
    from prefect.automations import Automation

PREFIX: Final = "ratchet: "

STORE: Final = "ratchet.store."
"""Before a store's address in the id of the resource that Ratchet's own events are about."""

_CONCLUDED: Final = tuple(f"night.{verdict}" for verdict in get_args(Verdict) if verdict != "failed")

_ENDED: Final = ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled")
_ALIVE: Final = frozenset({"Running", "Retrying", "Paused", "Suspended", "Cancelling", *_ENDED})
"""States that end waiting for a run that was picked up."""

_SAME: Final = timedelta(minutes=5)
"""How long after a run's end a further state of it tells nothing new."""

_PLAIN: Final = "".join(f" | replace({old!r}, {new!r})" for old, new in REPLACEMENTS)
"""`tasks.alerts.plain` as Jinja filters, for text that Prefect hands on: no mention, no link, no markup."""

_RUN: Final = f"{{{{ event.resource['prefect.resource.name']{_PLAIN} | truncate(100) }}}}"
"""The name of a run is chosen by the person who starts it, so it is made plain."""

_LINK: Final = "Run: {{ flow_run | ui_url }}"
_STATE: Final = "event.payload.validated_state"


@dataclass(frozen=True)
class Alert:
    """What is watched for, and what is said when it happens. `subject` and `body` are Jinja templates."""

    name: AlertName
    when: str
    trigger: Mapping[str, Any]
    subject: str
    body: str


def alerts(settings: Settings) -> tuple[Alert, ...]:
    """Every alert, in the order in which they are listed."""
    late = timedelta(minutes=settings.alerts.late_minutes)
    missing = timedelta(hours=settings.alerts.missing_hours)
    told = {"subject": "{{ event.payload.title }}", "body": "{{ event.payload.message }}"}
    nightly = [_flow("retrain"), {"prefect.resource.role": "deployment", "prefect.resource.name": "nightly"}]
    return (
        Alert(
            "regressed",
            "a fine-tuned model is significantly worse than production",
            _event(settings, "night.regressed", "regression.ended"),
            **told,
        ),
        Alert("blocked", "a critical data check failed", _event(settings, "night.blocked"), **told),
        Alert(
            "failed",
            "a run failed or crashed",
            {
                "posture": "Reactive",
                "expect": {f"prefect.flow-run.{state}" for state in ("Failed", "TimedOut", "Crashed")},
                "match": {"prefect.resource.id": "prefect.flow-run.*"},
                # a fine-tune that crashes is tried again by the night that waits for it, which fails if that fails
                "match_related": _flow("retrain", "watch-production", "rollback", "reindex"),
                # once per run: a report whose reply was lost is made again
                "for_each": {"prefect.resource.id"},
                "within": _SAME,
            },
            f"Ratchet: run {_RUN} {{{{ {_STATE}.name{_PLAIN} | lower }}}}",
            f"Run {_RUN} ended {{{{ {_STATE}.name{_PLAIN} }}}}. "
            "A run that breaks off before its promotion changes nothing.\n"
            f"{{{{ ({_STATE}.message | default('No message.')){_PLAIN} | truncate(600) }}}}\n{_LINK}\n"
            "The next run continues where this one stopped; to start it now, press Run on retrain/nightly.",
        ),
        Alert(
            "late",
            f"a night was due and has not started for {_words(late)}",
            {
                "posture": "Proactive",
                "after": {"prefect.flow-run.Late"},
                "expect": {f"prefect.flow-run.{state}" for state in ("Pending", *_ALIVE)},
                "for_each": {"prefect.resource.id"},
                "match": {"prefect.resource.id": "prefect.flow-run.*"},
                "match_related": nightly,
                "within": late,
            },
            "Ratchet: the night is late",
            f"Run {_RUN} was due and has not started for {_words(late)}. Is a worker running on pool cpu?\n{_LINK}",
        ),
        Alert(
            "missing",
            f"no night has completed for {_words(missing)}",
            {
                # of this store: a run on another one says nothing about the nights
                **_event(settings, *_CONCLUDED),
                "posture": "Proactive",
                **({} if settings.store.url else {"match_related": nightly}),
                "within": missing,
            },
            "Ratchet: no night has completed",
            f"No night has completed for {_words(missing)}. Is its schedule paused, is a worker "
            "running on pool cpu, did the last runs fail?",
        ),
        Alert("stale", "production has not moved for too long", _event(settings, "production.stale"), **told),
        Alert(
            "gpu-pool",
            "no worker serves the work pool gpu",
            {
                "posture": "Reactive",
                "expect": {"prefect.work-pool.not-ready"},
                "match": {"prefect.resource.id": "prefect.work-pool.*", "prefect.resource.name": "gpu"},
            },
            "Ratchet: no worker on pool gpu",
            "The work pool gpu has no worker. Nights wait for one before they can train: start it, or look at its log.",
        ),
        Alert(
            "wrong-promotion",
            "production finds less than the version before it",
            _event(settings, "production.wrong"),
            **told,
        ),
        Alert("drifted", "production finds less on fresh labels", _event(settings, "production.drifted"), **told),
        Alert("pending", "an object could not be read for three nights", _event(settings, "objects.pending"), **told),
        Alert(
            "guard", "a guard set cannot be judged, so nothing is promoted", _event(settings, "guard.unjudged"), **told
        ),
        Alert("waiting", "a candidate waits for a person to approve it", _event(settings, "approval.waiting"), **told),
        Alert(
            "unpublished",
            "what serves could not be published to another registry",
            _event(settings, "publishing.failed"),
            **told,
        ),
    )


def apply(settings: Settings, channels: Mapping[str, UUID | None], *, dry_run: bool = False) -> list[str]:
    """Bring the server's automations into line with the settings; returns a line for each difference.

    Args:
        settings: Thresholds, and which channel gets what.
        channels: The block of each channel; None where it is not on the server yet, which only a dry run allows.
        dry_run: Change nothing.
    """
    from prefect.client.orchestration import get_client

    wanted = {automation.name: automation for automation in _wanted(settings, channels)}
    lines: list[str] = []
    with get_client(sync_client=True) as client:
        found = {one.name: one for one in client.read_automations() if one.name.startswith(PREFIX)}
        for name, automation in wanted.items():
            before = found.pop(name, None)
            if before is None:
                lines.append(f"automation {name!r}: new")
                if not dry_run:
                    client.create_automation(automation)
                continue
            differing = differences.changes(f"automation {name!r}", _compared(before), _compared(automation))
            lines += differing
            if differing and not dry_run:
                client.update_automation(before.id, automation.model_copy(update={"enabled": before.enabled}))
        for name, left in found.items():
            lines.append(f"automation {name!r}: removed")
            if not dry_run:
                client.delete_automation(left.id)
    return lines


def find() -> list[Automation]:
    """Ratchet's automations on the server: those that send something first, each by name."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = [one for one in client.read_automations() if one.name.startswith(PREFIX)]
    return sorted(found, key=lambda one: (not _documents(one), one.name))  # type: ignore[arg-type] # two classes of that name


def channels_of(automation: Automation) -> list[str]:
    """Names of the channels that an automation sends to, as the settings have them."""
    return [_channel(_block(document)) for document in _documents(automation)]


def send_directly(automation: Automation, title: str, text: str) -> Iterator[tuple[str, str | None]]:
    """Send a message to each channel of an alert, without an event: the channel's name, and what went wrong."""
    import httpx
    from prefect.blocks.abstract import NotificationError

    for document in _documents(automation):
        block = _block(document)
        channel = _channel(block)
        if block is None:
            yield channel, "its block is no longer on the server; `ratchet deploy` makes it anew"
            continue
        try:
            with block.raise_on_failure():
                block.notify(body=text, subject=title)
        except (NotificationError, httpx.HTTPError, httpx.InvalidURL) as error:
            # the kind alone: the message of an HTTP error holds the address, which is a secret
            yield channel, type(error).__name__
        else:
            yield channel, None


def test_event(name: str) -> str:
    """The name of the event that triggers an alert as a test."""
    return f"ratchet.test.{name}"


def _documents(automation: Automation) -> list[UUID]:
    from prefect.events.actions import SendNotification

    return [action.block_document_id for action in automation.actions if isinstance(action, SendNotification)]


def _block(document: UUID) -> Any:
    """The block of a channel; None where somebody deleted it."""
    import prefect.blocks.notifications  # noqa: F401 # the classes that documents are loaded as
    from prefect.blocks.core import Block
    from prefect.exceptions import ObjectNotFound

    try:
        return Block.load_from_ref(document)
    except ValueError as error:
        if isinstance(error.__context__, ObjectNotFound):
            return None
        raise


def _channel(block: Any) -> str:
    """A channel's name, from that of its block."""
    return block._block_document_name.removeprefix(channels.PREFIX) if block is not None else "a deleted channel"


def _compared(automation: Any) -> dict[str, Any]:
    """What an automation is, without what the server adds and what people switch."""
    fields = ("description", "trigger", "actions")
    dumped: dict[str, Any] = automation.model_dump(include=set(fields))
    dumped["trigger"].pop("id", None)
    return dumped


def _wanted(settings: Settings, channels: Mapping[str, UUID | None]) -> Iterator[Any]:
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    for alert in map(_testable, alerts(settings)):
        actions = [
            # a dry run may have no block yet: the difference is shown all the same
            SendNotification(block_document_id=channels[name] or UUID(int=0), subject=alert.subject, body=alert.body)
            for name, channel in sorted(settings.channels.items())
            if channel.gets(alert.name)
        ]
        if actions:
            trigger = EventTrigger.model_validate(alert.trigger)
            description = f"Alerts when {alert.when}."
            yield AutomationCore(
                name=f"{PREFIX}{alert.name}", description=description, trigger=trigger, actions=actions
            )
    yield from _zombies(settings)
    if settings.index.target:
        yield following.automation(f"{PREFIX}{following.NAME}", _event(settings, "production.changed"))


def _testable(alert: Alert) -> Alert:
    """The alert, triggered by its test as well; what waits for something not to happen cannot be tested so."""
    if alert.trigger["posture"] != "Reactive":
        return alert
    trigger = {**alert.trigger, "expect": {*alert.trigger["expect"], test_event(alert.name)}}
    told = "{{% if event.payload.test %}}{{{{ event.payload.{field} }}}}{{% else %}}{usual}{{% endif %}}"
    return replace(
        alert,
        trigger=trigger,
        subject=told.format(field="title", usual=alert.subject),
        body=told.format(field="message", usual=alert.body),
    )


def _zombies(settings: Settings) -> Iterator[Any]:
    """Runs whose process is gone without a word: they become Crashed, which frees their place, and alerts."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    flows = _flow("retrain", "fine-tune", "watch-production", "rollback", "reindex", "approval")
    silent = timedelta(minutes=settings.alerts.heartbeat_minutes)
    pending = timedelta(minutes=settings.alerts.pending_minutes)
    for name, when, after, expect, within in (
        (
            "crash silent runs",
            f"gives no sign of life for {_words(silent)}",
            "heartbeat",
            ("heartbeat", "Paused", "Suspended", "AwaitingRetry", *_ENDED),
            silent,
        ),
        (
            "crash runs that never begin",
            f"is picked up by a worker and does not start within {_words(pending)}",
            "Pending",
            ("Scheduled", "AwaitingConcurrencySlot", *_ALIVE),
            pending,
        ),
    ):
        trigger = EventTrigger.model_validate(
            {
                "posture": "Proactive",
                "after": {f"prefect.flow-run.{after}"},
                "expect": {f"prefect.flow-run.{state}" for state in expect},
                "for_each": {"prefect.resource.id"},
                "match": {"prefect.resource.id": "prefect.flow-run.*"},
                "match_related": flows,
                "within": within,
            }
        )
        action = ChangeFlowRunState(state=StateType.CRASHED, message=f"The run {when}: its process is gone.")
        yield AutomationCore(
            name=f"{PREFIX}{name}", description=f"Crashes a run that {when}.", trigger=trigger, actions=[action]
        )


def _event(settings: Settings, *names: str) -> dict[str, Any]:
    """A trigger on any of some events of Ratchet's own, of the store that is deployed where one is named."""
    return {
        "posture": "Reactive",
        "expect": {f"ratchet.{name}" for name in names},
        "match": {"prefect.resource.id": f"{STORE}{settings.store.url or '*'}"},
    }


def _flow(*names: str) -> dict[str, Any]:
    return {"prefect.resource.role": "flow", "prefect.resource.name": list(names)}


def _words(length: timedelta) -> str:
    """A length of time as people say it."""
    minutes = length.total_seconds() / 60
    if minutes < 2:
        return f"{length.total_seconds():.0f} seconds"
    return f"{minutes:.4g} minutes" if minutes <= 120 else f"{minutes / 60:.4g} hours"
