"""Deploying twice, and every alert on its way from a run to a webhook, with everything real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.states import Pending, Running, Scheduled, State

from deployments.server import alert_test, automations, deploy
from deployments.server.settings import AlertName, Channel, Settings, StoreSettings
from deployments.stack import local
from flows.retrain import retrain
from flows.watch_production import watch_production
from tasks import alerts, intake, night, registry, steps
from tasks.config import Delta, GuardResult, Model, Outcome, Watch
from tasks.report import Evidence, Fallen, messages
from tasks.runs import Run, run_id
from tasks.scoring import serving
from tasks.storage import Store
from tests import mail, tiny_models
from tests.flows.conftest import SETTINGS
from tests.flows.receiver import Receiver

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]


def _block(client: SyncPrefectClient, *, secrets: bool = False) -> dict[str, Any]:
    document = client.read_block_document_by_name("ratchet-hook", "custom-webhook", include_secrets=secrets)
    return document.model_dump(mode="json")


def _standing(client: SyncPrefectClient) -> dict[str, Any]:
    """Everything on the server that a deployment sets up, with ids and without the times of changes."""
    ours = client.read_automations()
    deployments = client.read_deployments(deployment_filter=DeploymentFilter())
    blocks = client.read_block_documents(include_secrets=True)
    changing = {"created", "updated", "last_polled", "status", "block_schema", "block_type"}
    return {
        "automations": sorted((str(one.id), one.model_dump_json(exclude=changing)) for one in ours),
        "deployments": sorted(
            (str(one.id), one.model_dump_json(include={"name", "parameters"})) for one in deployments
        ),
        "schedules": sorted(
            (str(one.id), one.name, schedule.slug, str(schedule.active), schedule.schedule.model_dump_json())
            for one in deployments
            for schedule in one.schedules
        ),
        "blocks": sorted(f"{one.name} {one.data}" for one in blocks),
        "pools": sorted((str(pool.id), pool.name, str(pool.type)) for pool in client.read_work_pools()),
    }


# --- deploying -------------------------------------------------------------------------------------------


def test_deploying_again_changes_nothing_but_what_was_edited(
    hook: Receiver, client: SyncPrefectClient, on_stack: local.Stack
) -> None:
    """Nothing is doubled, what was paused stays paused, and an edited threshold, cron and secret arrive."""
    environment = {**on_stack.environment(), "HOOK": hook.url}
    moved = {**environment, "HOOK": hook.url + "/new"}
    nightly = client.read_deployment_by_name("retrain/nightly")
    client.update_deployment_schedule(nightly.id, nightly.schedules[0].id, active=False)
    late = next(one for one in client.read_automations() if one.name == "ratchet: late")
    client.pause_automation(late.id)
    before = _standing(client)
    assert {name for _, name, *_ in before["schedules"]} == {"nightly", "hourly"}

    assert deploy.deploy(SETTINGS, environment=environment) == []
    assert _standing(client) == before

    edited = Settings.model_validate(
        {
            **SETTINGS.model_dump(exclude_defaults=True),
            "alerts": {"late_minutes": 45},
            "schedule": {"cron": "0 4 * * *", "timezone": "Europe/Berlin"},
            "watch": {"max_nights": 7},
        }
    )
    said = deploy.deploy(edited, environment=moved, dry_run=True)
    assert _standing(client) == before
    for line in (
        "deployment retrain/nightly: schedules.nightly.cron: 30 3 * * * -> 0 4 * * *",
        "deployment watch-production/hourly: parameters.watch: nothing -> {'max_nights': 7}",
        "automation 'ratchet: late': trigger.within: 0:30:00 -> 0:45:00",
        "block ratchet-hook: secrets changes",
    ):
        assert line in said
    assert deploy.deploy(edited, environment=moved) == said
    after = _standing(client)
    ids = {what: [one[0] for one in found] for what, found in before.items() if what != "blocks"}
    assert {what: [one[0] for one in found] for what, found in after.items() if what != "blocks"} == ids
    nightly = client.read_deployment_by_name("retrain/nightly")
    (schedule,) = nightly.schedules
    assert (schedule.active, schedule.schedule.cron, schedule.schedule.timezone) == (
        False,
        "0 4 * * *",
        "Europe/Berlin",
    )
    (late,) = [one for one in client.read_automations() if one.name == "ratchet: late"]
    assert (late.enabled, late.trigger.within) == (False, timedelta(minutes=45))
    assert _block(client, secrets=True)["data"]["secrets"]["address"] == hook.url + "/new"

    client.resume_automation(late.id)
    client.update_deployment_schedule(nightly.id, schedule.id, active=True)
    deploy.deploy(SETTINGS, environment=environment)


def test_no_secret_is_seen_and_none_means_nothing_is_changed(hook: Receiver, client: SyncPrefectClient) -> None:
    """The address is in the block alone, and hidden there; a channel without its secret stops before any change."""
    assert "a-secret-path" not in json.dumps(_block(client))
    before = _standing(client)
    assert "a-secret-path" not in json.dumps([before["automations"], before["deployments"]])
    assert deploy.deploy(SETTINGS, environment={}, dry_run=True) == []  # the block that is there is kept
    other = Settings.model_validate({"channels": {"new": {"kind": "slack", "secret_env": "NOT_SET"}}})
    with pytest.raises(deploy.DeployError, match="channel new: the environment variable NOT_SET is not set"):
        deploy.deploy(other, environment={})
    teams = Settings.model_validate({"channels": {"new": {"kind": "teams", "secret_env": "TEAMS"}}})
    with pytest.raises(deploy.DeployError, match="not what a Microsoft Teams Webhook takes") as raised:
        deploy.deploy(teams, environment={"TEAMS": "https://example.com/hunter2"})
    assert "hunter2" not in str(raised.value)
    assert _standing(client) == before


def test_the_password_of_the_index_is_in_a_block_alone(
    hook: Receiver, client: SyncPrefectClient, on_stack: local.Stack
) -> None:
    """It is hidden there, kept when somebody without it deploys, and replaced when it changes."""
    target = "postgresql://ratchet@127.0.0.1/search"
    with_index = Settings.model_validate({"index": {"target": target, "secret_env": "INDEX_PASSWORD"}})
    with pytest.raises(deploy.DeployError, match="environment variable INDEX_PASSWORD is not set"):
        deploy.deploy(with_index, environment=on_stack.environment())
    environment = {**on_stack.environment(), "INDEX_PASSWORD": "hunter2"}
    try:
        assert "block ratchet-index: new, Secret" in deploy.deploy(with_index, environment=environment)
        assert deploy.deploy(with_index, environment=environment, dry_run=True) == []
        assert deploy.deploy(with_index, environment=on_stack.environment(), dry_run=True) == []
        moved = deploy.deploy(with_index, environment={**environment, "INDEX_PASSWORD": "hunter3"}, dry_run=True)
        assert moved == ["block ratchet-index: value changes"]
        assert (steps._password(target), steps._password("lancedb:"), steps._password(None)) == ("hunter2", None, None)
        block = client.read_block_document_by_name("ratchet-index", "secret", include_secrets=False)
        assert "hunter" not in block.model_dump_json()
        assert "hunter" not in json.dumps(_standing(client)["deployments"])
        assert client.read_deployment_by_name("reindex/after-promotion").parameters["target"] == target
    finally:
        deploy.deploy(SETTINGS, environment={**on_stack.environment(), "HOOK": hook.url})
        client.delete_block_document(client.read_block_document_by_name("ratchet-index", "secret").id)


def _ratchet(stack: local.Stack, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, on the stack's server."""
    environment = {**os.environ, **stack.environment(), "NO_COLOR": "1", "COLUMNS": "200", **settings}
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", *arguments],
        cwd=local.ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_test_alert_of_each_kind_arrives(hook: Receiver, on_stack: local.Stack) -> None:
    """`ratchet alerts` lists each alert with its channel, `ratchet alerts test` sends one of each, marked as a test."""
    listed = _ratchet(on_stack, "alerts")
    assert listed.returncode == 0, listed.stderr
    lines = {line.split(maxsplit=1)[0]: line for line in listed.stdout.splitlines()}
    for name in get_args(AlertName):
        assert lines[name].endswith("(hook)")
    assert "Alerts when a critical data check failed." in lines["blocked"]

    tested = _ratchet(on_stack, "alerts", "test")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    lines = {line.split()[1]: line for line in tested.stdout.splitlines()}
    assert set(lines) == set(get_args(AlertName))
    assert all(re.match(r"sent +\S+ +to hook", line) for line in lines.values())
    # two wait for something not to happen, the others went the way of a real one
    assert {name for name, line in lines.items() if "directly" in line} == {"late", "missing"}
    for name in get_args(AlertName):
        (message,) = [one for one in hook.messages if one.subject == f"[TEST] Ratchet: {name}"]
        assert "nothing has happened. It is sent when " in message.body
    assert hook.count(lambda one: one.subject.startswith("[TEST]")) == len(get_args(AlertName))


def test_a_channel_that_takes_no_test_alert_is_named(
    hook: Receiver, client: SyncPrefectClient, on_stack: local.Stack
) -> None:
    """Nobody listens, then the block is gone, then the password is wrong: status 1 and words, never the address."""
    channels = {
        "hook": SETTINGS.channels["hook"],
        "dead": Channel(kind="webhook", secret_env="DEAD", only=("late",)),
    }
    environment = {**on_stack.environment(), "HOOK": hook.url, "DEAD": "http://127.0.0.1:9/a-secret-path"}
    deploy.deploy(Settings(channels=channels), environment=environment)
    tested = _ratchet(on_stack, "alerts", "test")
    assert tested.returncode == 1
    (failed,) = [line for line in tested.stdout.splitlines() if line.startswith("failed")]
    assert failed.split()[:4] == ["failed", "late", "to", "dead:"]
    assert f"1 of {len(get_args(AlertName)) + 1} test alerts were not accepted" in tested.stderr
    assert "a-secret-path" not in tested.stdout + tested.stderr

    client.delete_block_document(client.read_block_document_by_name("ratchet-dead", "custom-webhook").id)
    late = next(one for one in automations.find() if one.name == "ratchet: late")
    assert automations.channels_of(late) == ["a deleted channel", "hook"]
    (gone, taken) = automations.send_directly(late, "title", "text")
    assert (gone[0], taken) == ("a deleted channel", ("hook", None))
    assert "`ratchet deploy` makes it anew" in str(gone[1])
    deploy.deploy(SETTINGS, environment=environment)

    refused = _ratchet(on_stack, "alerts", PREFECT_API_AUTH_STRING="ratchet:guess")
    assert refused.returncode == 1
    assert "refuses the credentials" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_mail_arrives_through_the_server(hook: Receiver, client: SyncPrefectClient, on_stack: local.Stack) -> None:
    """Each recipient gets the text of a test alert; a mail server that refuses, and one that is away, are failures."""
    to = ("ann@example.org", "bob@example.org")
    channel = Channel(kind="smtp", secret_env="MAIL", sender="ratchet@example.org", recipients=to, only=("blocked",))
    settings = Settings(channels={"post": channel})
    with mail.running() as server:
        environment = {**on_stack.environment(), "MAIL": f"smtp://127.0.0.1:{server.port}"}
        deploy.deploy(settings, environment=environment)
        tested = _ratchet(on_stack, "alerts", "test")
        assert tested.returncode == 0, tested.stdout + tested.stderr
    assert re.search(r"sent +blocked +to post$", tested.stdout, re.MULTILINE)  # by the server, not directly
    assert sorted(one.recipient for one in server.mails) == sorted(to)
    expected = (
        "This is a test of the alert 'blocked'; nothing has happened. It is sent when a critical data check failed. "
        "What to do then is in docs/alerts.md."
    )
    for one in server.mails:
        assert (one.subject, one.body, one.kind) == ("[TEST] Ratchet: blocked", expected, "text/plain")
    away = _ratchet(on_stack, "alerts", "test")
    assert away.returncode == 1
    assert "failed  blocked      to post: the channel did not accept it" in away.stdout
    with mail.running(refused=to[0]) as server:
        deploy.deploy(settings, environment={**environment, "MAIL": f"smtp://127.0.0.1:{server.port}"})
        refusing = _ratchet(on_stack, "alerts", "test")
    assert refusing.returncode == 1
    assert [one.recipient for one in server.mails] == [to[1]]
    document = client.read_block_document_by_name("ratchet-post", "slack-webhook", include_secrets=False)
    assert "127.0.0.1" not in document.model_dump_json()
    deploy.deploy(SETTINGS, environment={**on_stack.environment(), "HOOK": hook.url})
    client.delete_block_document(document.id)


def test_a_test_notices_an_alert_that_no_night_triggers(
    hook: Receiver, client: SyncPrefectClient, on_stack: local.Stack
) -> None:
    """Automations on another spelling of the store, as a trailing slash once made them, and one that is off."""
    document = {"hook": uuid.UUID(_block(client)["id"])}
    other = StoreSettings.model_construct(url=f"{on_stack.store()}/")
    automations.apply(SETTINGS.model_copy(update={"store": other}), document)
    blocked = next(one for one in client.read_automations() if one.name == "ratchet: blocked")
    client.pause_automation(blocked.id)
    try:
        time.sleep(3)  # until the server has taken notice
        found = {tested.alert: tested for tested in alert_test.send(seconds=10)}
    finally:
        client.resume_automation(blocked.id)
        automations.apply(SETTINGS, document)
    for name in ("regressed", "stale", "drifted"):
        assert "does not match the store of the nights" in str(found[name].error)
    assert "switched off" in str(found["blocked"].error)
    assert [found[name].error for name in ("failed", "gpu-pool", "late", "missing")] == [None] * 4


# --- what runs tell themselves ---------------------------------------------------------------------------


def test_a_regression_is_told_once_with_its_text(hook: Receiver, on_stack: local.Stack) -> None:
    """Announced twice, as after a retry: one message, and it is the text that was composed, to the letter."""
    run = uuid.uuid4().hex
    outcome = Outcome(
        run_id=run,
        verdict="regressed",
        reasons=["worse"],
        commit=3,
        candidate=Model(version="c" * 16, scores={"recall_at_10": 0.7, "mrr": 0.5}),
        production=Model(version="p" * 16, scores={"recall_at_10": 0.8, "mrr": 0.6}),
        deltas={name: Delta(value=-0.1, low=-0.15, high=-0.05, confidence=0.99) for name in ("recall_at_10", "mrr")},
        production_after="p" * 16,
    )
    evidence = Evidence(
        slices=[("<!channel> {{ address }}", 40, {"mrr": -0.2})],
        queries=[Fallen("<https://evil.example|click> `{{ address }}` {% raw %} \u202e", 0.5, 0.0)],
        objects=[("pairs/dt=1/a.jsonl", 10, 1)],
    )
    for _ in range(2):
        alerts.announce_outcome(on_stack.store("x"), outcome, evidence, "http://127.0.0.1/runs/1")
    expected = messages.message(outcome, evidence, "http://127.0.0.1/runs/1")
    message = hook.once(lambda one: run in one.body or one.subject == expected.title)
    assert (message.subject, message.body) == (expected.title, expected.text)
    assert "a-secret-path" not in message.body


def test_blocked_data_is_told(hook: Receiver, night_store: Store) -> None:
    """A real night in which too many rows were rejected."""
    rows = (json.dumps({"query": f"part {i}", "document": f"made of iron {i}"}).encode() + b"\n" for i in range(150))
    night_store.put("pairs/a.jsonl", b"".join(rows) + b'{"query": "", "document": "x"}\n' * 100)
    outcome = retrain(store=night_store.url)
    assert outcome.verdict == "blocked"
    message = hook.once(lambda one: outcome.run_id in one.body)
    assert message.subject == "Ratchet: the night was blocked"
    assert "0.4" in message.body or "40" in message.body
    assert outcome.report is not None
    assert outcome.report in message.body


def test_a_guard_set_that_cannot_be_judged_is_told_once(
    hook: Receiver, night_store: Store, better: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nights that it holds, one message with what is wrong."""
    name = night_store.url.rpartition("/")[2]
    why = f"Guard set '{name}' cannot be read: there is no corpus.jsonl"
    broken = GuardResult(name=name, verdict="not judged", reasons=[why])
    candidate = Model(version=better, scores={"mrr": 0.7})
    judged = night.Judged("held", [why], candidate, Model(), guards=[broken])
    monkeypatch.setattr(night, "judge", lambda *_: judged)
    for _ in range(2):
        assert retrain(store=night_store.url, force=True).verdict == "held"
    message = hook.once(lambda one: why in one.body)
    assert message.subject == "Ratchet: a guard set cannot be judged"


def test_a_failed_run_is_told(hook: Receiver, on_stack: local.Stack, night_store: Store) -> None:
    """A corrupt pointer: what the run died of, made plain, and where to look."""
    night_store.put("production.json", b'{"version": "\xff')
    with pytest.raises(registry.RegistryError):
        retrain(store=night_store.url)
    message = hook.once(lambda one: night_store.url.rpartition("/")[2] in one.body)
    assert message.subject.startswith("Ratchet: run ")
    assert message.subject.endswith(" failed")
    assert "production.json is not valid" in message.body
    assert "s3://" not in message.body  # an address from outside is no link
    assert f"{on_stack.ui_url}/v2/runs/flow-run/" in message.body


def test_drift_and_standstill_are_told_once(hook: Receiver, night_store: Store, tmp_path: Path) -> None:
    """Two of three windows are below; the watch that looks again tells nothing again, and production is untouched."""

    def pairs(first: int) -> bytes:
        rows = ({"query": f"where is part {i}", "document": f"shelf {i}"} for i in range(first, first + 30))
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    run = "20261101T033000Z-00000000"
    night_store.put("pairs/a.jsonl", pairs(0))
    night_store.put(f"runs/{run}/intake.json", b'{"commit": %d}' % intake.take_in(night_store, writer=run).commit)
    folder = tiny_models.save(tmp_path)
    version = registry.publish(night_store, folder, serving.describe(folder, ()))
    scores = {"recall_at_10": 1.0, "mrr": 1.0}
    registry.promote(night_store, version, None, run_id=run, who="test", reason="test", scores=scores)
    before = night_store.get("production.json").body
    # the night after: one that is named after the future is not counted
    held = Outcome(run_id=run_id(datetime.now(UTC), "00000000"), verdict="held", reasons=[], commit=1)
    Run(night_store, held.run_id).put_outcome(held)

    rule = Watch(min_queries=10, max_nights=1)
    for place, drifted in ((1, False), (2, True), (3, True)):
        night_store.put(f"pairs/{place}.jsonl", pairs(100 * place))
        seen = watch_production(store=night_store.url, watch=rule)
        assert (seen["drifted_since"] is not None) == drifted, seen
    drift = hook.once(lambda one: one.subject == "Ratchet: production has drifted")
    assert version in drift.body
    assert "commits 2 to 2, 30 queries: Recall@10 1.000 to 0." in drift.body
    assert "commits 3 to 3" in drift.body
    stale = hook.once(lambda one: one.subject == "Ratchet: production has not moved")
    assert "No promotion for 1 nights" in stale.body
    assert night_store.get("production.json").body == before


def test_a_watch_of_nothing_says_so(night_store: Store) -> None:
    """An empty store: nothing serves, nothing fails."""
    seen = watch_production(store=night_store.url)
    assert (seen["version"], seen["windows"]) == (None, [])
    assert "Nothing is in production" in seen["says"]


# --- what only the server can tell -----------------------------------------------------------------------


def _run(client: SyncPrefectClient, state: State[Any]) -> FlowRun:
    """A run of retrain/nightly that no worker takes up, since it is due tomorrow."""
    nightly = client.read_deployment_by_name("retrain/nightly")
    due = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
    run = client.create_flow_run_from_deployment(nightly.id, state=due)
    client.set_flow_run_state(run.id, state, force=True)
    return run


def test_what_does_not_happen_is_told(hook: Receiver, client: SyncPrefectClient) -> None:
    """A late night, no completed night, a run that never begins, one that fell silent: with waits of some seconds."""
    waits = {"late_minutes": 0.2, "missing_hours": 0.004, "heartbeat_minutes": 0.2, "pending_minutes": 0.2}
    # past the bounds, which are for people
    quick = SETTINGS.model_copy(update={"alerts": SETTINGS.alerts.model_copy(update=waits)})
    document = {"hook": uuid.UUID(_block(client)["id"])}
    automations.apply(quick, document)
    time.sleep(3)  # until the server has taken notice
    late_state: State[Any] = State(type=StateType.SCHEDULED, name="Late")
    late_state.state_details.scheduled_time = datetime.now(UTC) + timedelta(days=1)
    late = _run(client, late_state)
    pending, silent = _run(client, Pending()), _run(client, Running())
    flow = {"id": f"prefect.flow.{silent.flow_id}", "role": "flow", "name": "retrain"}
    emit_event(
        "prefect.flow-run.heartbeat",
        resource={"prefect.resource.id": f"prefect.flow-run.{silent.id}", "prefect.resource.name": silent.name},
        related=[{f"prefect.resource.{label}": value for label, value in flow.items()}],
    )
    missing = hook.wait(lambda one: one.subject == "Ratchet: no night has completed")
    assert "No night has completed for 14 seconds" in missing.body
    for run, words in (
        (late, f"Run {late.name} was due and has not started for 12 seconds."),
        (pending, "The run is picked up by a worker and does not start within 12 seconds: its process is gone."),
        (silent, "The run gives no sign of life for 12 seconds: its process is gone."),
    ):
        message = hook.once(lambda one, run=run: run.name in one.subject + one.body)  # type: ignore[misc]
        assert words in message.body
        assert str(run.id) in message.body
    assert [client.read_flow_run(run.id).state_name for run in (pending, silent)] == ["Crashed", "Crashed"]
    client.delete_flow_run(late.id)
    automations.apply(SETTINGS, document)


def test_a_gpu_pool_without_a_worker_is_told(hook: Receiver, client: SyncPrefectClient) -> None:
    """The event as Prefect emits it; for another pool there is no alert."""
    for name in ("cpu", "gpu"):
        pool = client.read_work_pool(name)
        emit_event(
            "prefect.work-pool.not-ready",
            resource={"prefect.resource.id": f"prefect.work-pool.{pool.id}", "prefect.resource.name": name},
        )
    message = hook.once(lambda one: one.subject.startswith("Ratchet: no worker"))
    assert message.subject == "Ratchet: no worker on pool gpu"
