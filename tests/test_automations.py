"""What alerts say and react to, as the Prefect server reads it: nothing is sent, no server runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.server.utilities.user_templates import render_user_template_sync

from deployments.server import automations
from deployments.server.settings import Settings

OURS = "s3://bucket/search"
SETTINGS = Settings.model_validate({"store": {"url": f"{OURS}/"}})


def _alert(name: str, settings: Settings = SETTINGS) -> automations.Alert:
    return next(automations._testable(one) for one in automations.alerts(settings) if one.name == name)


def _takes(name: str, event: str, resource: dict[str, str], settings: Settings = SETTINGS) -> bool:
    """Whether an alert's trigger counts an event as the one that it looks for."""
    trigger = EventTrigger.model_validate(_alert(name, settings).trigger)
    received = ReceivedEvent.model_validate(
        {"occurred": datetime.now(UTC), "received": datetime.now(UTC), "event": event, "resource": resource,
         "related": [], "payload": {}, "id": uuid4()}
    )  # fmt: skip
    return trigger.covers(received) and trigger.expects(event)


def _store(url: str) -> dict[str, str]:
    return {"prefect.resource.id": f"ratchet.store.{url}", "prefect.resource.name": url}


@pytest.mark.parametrize("verdict", ["promoted", "held", "regressed", "blocked", "skipped"])
def test_only_a_night_of_this_store_resets_the_dead_mans_switch(verdict: str) -> None:
    """A run of the same deployment on another store has completed as well, and says nothing about these nights."""
    assert _takes("missing", f"ratchet.night.{verdict}", _store(OURS))
    assert not _takes("missing", f"ratchet.night.{verdict}", _store("s3://bucket/other"))
    assert not _takes("missing", f"ratchet.night.{verdict}", _store(f"{OURS}-2"))


def test_a_failed_night_resets_nothing() -> None:
    """Nor does the end of any run, whatever it was."""
    assert not _takes("missing", "ratchet.night.failed", _store(OURS))
    run = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}", "prefect.resource.name": "x"}
    assert not _takes("missing", "prefect.flow-run.Completed", run)


def test_events_of_the_store_are_matched_however_it_was_written() -> None:
    """The settings had a slash at the end; events never have one."""
    for name, event in (("regressed", "night.regressed"), ("blocked", "night.blocked"), ("stale", "production.stale")):
        assert _takes(name, f"ratchet.{event}", _store(OURS))
        assert _takes(name, f"ratchet.test.{name}", _store(OURS))
        assert not _takes(name, f"ratchet.test.{name}", _store("s3://bucket/other"))
        assert _takes(name, f"ratchet.{event}", _store("s3://any/store"), Settings())


@pytest.mark.parametrize(
    "hostile", ["<!channel> hi", "@here", "[click](http://evil.example)", "`{{ x }}` | <http://e|x>"]
)
def test_the_name_of_a_run_is_plain_in_every_alert(hostile: str) -> None:
    """Whoever starts a run names it, and its state; a name mentions nobody and links nowhere."""
    context: dict[str, Any] = {
        "event": {
            "resource": {"prefect.resource.name": hostile},
            "payload": {"validated_state": {"name": hostile, "message": hostile}},
        }
    }
    seen = 0
    for alert in map(automations._testable, automations.alerts(SETTINGS)):
        for template in (alert.subject, alert.body):
            if "resource.name" not in template:
                continue
            text = render_user_template_sync(template.replace(automations._LINK, ""), context)
            seen += 1
            assert "(" in text or "here" in text
            for forbidden in ("<", ">", "[", "]", "{", "|", "@h", "://"):
                assert forbidden not in text, text
    assert seen == 3


def test_a_test_is_marked_and_says_nothing_of_a_run() -> None:
    """The same automation, with the text of the test in place of its own."""
    payload = {"test": True, "title": "[TEST] Ratchet: failed", "message": "nothing has happened"}
    context = {"event": {"resource": {"prefect.resource.name": "x"}, "payload": payload}}
    for alert in map(automations._testable, automations.alerts(SETTINGS)):
        if alert.trigger["posture"] == "Reactive":
            assert render_user_template_sync(alert.subject, context) == payload["title"]
            assert render_user_template_sync(alert.body, context) == payload["message"]
