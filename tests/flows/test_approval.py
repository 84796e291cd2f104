"""Nights that wait for a person: the form in the Prefect UI, the command, nobody, two at once, and a run that died.

What is trained is left out of most of them: their candidate is a version that was published before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect
from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry

import flows.approval
import flows.retrain
from deployments.stack import local
from flows.retrain import retrain
from tasks import approval, registry, runs
from tasks.config import Gate, Outcome
from tasks.runs import Run
from tasks.storage import Store
from tests import hub, prefect_ui
from tests.browser import chromium
from tests.flows.nights import final, new_night, processes, wait_for
from tests.flows.receiver import Receiver
from tests.models import published

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

HOUR = Gate(approval_hours=1)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A night looks for its answer more often."""
    monkeypatch.setattr(flows.approval, "_POLL_SECONDS", 0.2)


def _meanwhile(store: Store, act: Callable[[str], None]) -> threading.Thread:
    """Do something as soon as a run of the store waits, in a thread of its own."""

    def watch() -> None:
        act(wait_for("a run that waits", lambda: _waits(store), 120))

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def _waits(store: Store) -> str | None:
    found = [entry.key.split("/")[1] for entry in store.entries("runs/") if entry.key.endswith("/waiting.json")]
    return found[0] if found else None


def _paused(client: SyncPrefectClient, run_id: str) -> FlowRun | None:
    """The run with the form, once it is paused."""
    chosen = FlowRunFilter.model_validate({"name": {"any_": [f"approve-{run_id}"]}})
    found = [run for run in client.read_flow_runs(flow_run_filter=chosen) if run.state_name == "Paused"]
    return found[0] if found else None


def _unchanged(store: Store, outcome: Outcome) -> None:
    """Nothing serves, and the outcome, the decision and the report say so."""
    assert outcome.verdict == "held"
    assert registry.read_production(store) is None
    assert not list(store.entries("promotions/"))


def test_the_command_lets_the_night_go_on(better: str, night_store: Store, hook: Receiver) -> None:
    """It is told where to answer; the answer is in outcome, report and ledger; a second one does not count."""
    said: list[str] = []

    def act(run_id: str) -> None:
        hook.wait(lambda one: one.subject == "Ratchet: a candidate waits" and run_id in one.body)
        approval.answer(night_store, run_id, "approved", by="Ada", comment="looks right")
        with pytest.raises(approval.ApprovalError) as refused:
            approval.answer(night_store, run_id, "rejected", by="Bob")
        said.append(str(refused.value))

    thread = _meanwhile(night_store, act)
    outcome = retrain(store=night_store.url, gate=HOUR)
    thread.join()
    assert outcome.verdict == "promoted", outcome.reasons
    assert "has its answer already. Approved by Ada" in said[0]
    assert outcome.approval is not None
    assert (outcome.approval.by, outcome.approval.comment) == ("Ada", "looks right")
    (change,) = registry.history(night_store)
    assert (change.version, change.approval) == (better, outcome.approval)
    report = night_store.get(f"runs/{outcome.run_id}/report.html").body.decode()
    assert "Approved by Ada, as they named themselves, at " in report
    assert "approval" in outcome.seconds
    (told,) = [one for one in hook.messages if one.subject == "Ratchet: a candidate waits"]
    assert "/runs/flow-run/" in told.body.splitlines()[-1]
    assert f"ratchet approve {outcome.run_id}" in told.body
    assert f"Report: {night_store.url}/runs/{outcome.run_id}/report.html" in told.body


def test_nobody_answers_in_time(better: str, night_store: Store) -> None:
    """The candidate is held, production is untouched; the next night, with nothing new, does not ask again."""
    outcome = retrain(store=night_store.url, gate=Gate(approval_hours=0.001))
    _unchanged(night_store, outcome)
    assert outcome.reasons[0] == "Held: nobody approved within 0.001 hours."
    with pytest.raises(approval.ApprovalError, match="has its answer already"):
        approval.answer(night_store, outcome.run_id, "approved", by="Ada")
    assert retrain(store=night_store.url, gate=HOUR).verdict == "skipped"


def test_the_form_and_the_command_at_once(better: str, night_store: Store, client: SyncPrefectClient) -> None:
    """A form without a name is refused by the server; the command is first, so what the form says does not count."""

    def act(run_id: str) -> None:
        run = wait_for("the form", lambda: _paused(client, run_id))
        for wrong in ({}, {"decision": "approve"}, {"decision": "perhaps", "name": "Bob"}):
            refused = client.resume_flow_run(run.id, run_input=wrong)
            assert refused.status.value == "REJECT"
        approval.answer(night_store, run_id, "rejected", by="Ada", comment="no")
        client.resume_flow_run(run.id, run_input={"decision": "approve", "name": "Bob"})

    thread = _meanwhile(night_store, act)
    outcome = retrain(store=night_store.url, gate=HOUR)
    thread.join()
    _unchanged(night_store, outcome)
    assert outcome.reasons[0].startswith("Rejected by Ada")


def test_a_name_of_blanks_is_asked_for_again(better: str, night_store: Store, client: SyncPrefectClient) -> None:
    """The server takes it, the record does not: the form is there once more."""

    def act(run_id: str) -> None:
        for name in ("  ", "Bob"):
            run = wait_for("the form", lambda: _paused(client, run_id))
            client.resume_flow_run(run.id, run_input={"decision": "approve", "name": name, "comment": "fine"})

    thread = _meanwhile(night_store, act)
    outcome = retrain(store=night_store.url, gate=HOUR)
    thread.join()
    assert outcome.verdict == "promoted", outcome.reasons
    assert outcome.approval is not None
    assert (outcome.approval.by, outcome.approval.comment) == ("Bob", "fine")


def test_production_changes_while_somebody_thinks(better: str, night_store: Store, tmp_path: Path) -> None:
    """Approved, but no longer what was compared: held, and the pointer keeps the bytes of the other night."""
    seen: list[bytes] = []

    def act(run_id: str) -> None:
        other = published(night_store, tmp_path / "other", b"other")
        registry.promote(night_store, other, None, run_id="other", who="night", reason="nightly", scores={})
        seen.append(night_store.get("production.json").body)
        approval.answer(night_store, run_id, "approved", by="Ada")

    thread = _meanwhile(night_store, act)
    outcome = retrain(store=night_store.url, gate=HOUR)
    thread.join()
    assert outcome.verdict == "held"
    assert "production changed since it was scored" in outcome.reasons[0]
    assert any(reason.startswith("Approved by Ada") for reason in outcome.reasons)
    assert [night_store.get("production.json").body] == seen


def test_the_wait_outlives_an_api_that_is_away(
    better: str, night_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No form can be shown; the command still lets the night go on."""

    def away(**_: Any) -> SyncPrefectClient:
        raise httpx.ConnectError("all connection attempts failed")

    monkeypatch.setattr(flows.approval, "get_client", away)
    thread = _meanwhile(night_store, lambda run: approval.answer(night_store, run, "approved", by="Ada") and None)
    outcome = retrain(store=night_store.url, gate=HOUR)
    thread.join()
    assert outcome.verdict == "promoted", outcome.reasons


def test_publishing_comes_after_the_verdict_and_cannot_change_it(
    better: str, night_store: Store, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is away: promoted all the same, and told; the next night, skipped, publishes with a block's token."""
    with hub.running() as found:
        monkeypatch.setenv("RATCHET_HF_REPO", "team/search")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
        outcome = retrain(store=night_store.url)
        assert outcome.verdict == "promoted", outcome.reasons
        pointer = night_store.get("production.json").body
        written = night_store.get(f"runs/{outcome.run_id}/outcome.json").body
        told = hook.wait(lambda one: one.subject == "Ratchet: what serves is not published")
        assert better in told.body
        assert hub.TOKEN not in told.body
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.delenv("HF_TOKEN")
        Secret(value=hub.TOKEN).save("ratchet-huggingface-token")
        assert retrain(store=night_store.url).verdict == "skipped"
        assert found.repositories["team/search"].files["model.safetensors"] == b"candidate"
    assert night_store.get("production.json").body == pointer
    assert night_store.get(f"runs/{outcome.run_id}/outcome.json").body == written
    assert Run(night_store, outcome.run_id).read(runs.PUBLISHED_HUGGINGFACE).version == better


@pytest.mark.slow
def test_a_person_approves_in_the_ui(on_stack: local.Stack, tmp_path: Path) -> None:
    """A whole night by its deployment: its page shows the paused run, Resume the form with figures, and it promotes."""
    made = new_night(on_stack)
    run = made.start(gate={"approval_hours": 1})
    run_id = wait_for("the candidate to wait", lambda: _waits(made.store))
    api = prefect_ui.api(on_stack)
    with api, chromium() as browser, prefect_ui.signed_in(browser, on_stack, tmp_path) as page:
        wanted = {"flow_runs": {"name": {"any_": [f"approve-{run_id}"]}, "state": {"name": {"any_": ["Paused"]}}}}
        (paused,) = wait_for("the form", lambda: api.post("flow_runs/filter", json=wanted).json())
        page.goto(f"{on_stack.ui_url}/v2/runs/flow-run/{paused['id']}")
        page.get_by_role("button", name="Open menu").click()
        page.get_by_role("menuitem", name="Resume").click()
        form = page.get_by_role("dialog", name="Resume Flow Run")
        expect(form).to_contain_text("passed the gate against the base model", timeout=prefect_ui.PATIENCE)
        expect(form.get_by_role("cell", name="Recall@10")).to_be_visible()
        form.get_by_text("Select", exact=True).click()
        page.get_by_role("option", name="approve", exact=True).click()
        form.get_by_label("Name").fill("Ada")
        form.get_by_label("Comment").fill("looks <b>right</b>")
        form.get_by_role("button", name="Resume").click()
        expect(form).not_to_be_visible(timeout=prefect_ui.PATIENCE)
        wait_for("the end of the night", lambda: api.get(f"flow_runs/{run}").json()["state"]["type"] == "COMPLETED")
    outcome = made.assert_promoted(run)
    assert outcome.approval is not None
    assert (outcome.approval.by, outcome.approval.comment) == ("Ada", "looks <b>right</b>")
    report = made.store.get(f"runs/{outcome.run_id}/report.html").body.decode()
    assert "looks &lt;b&gt;right&lt;/b&gt;" in report
    (change,) = registry.history(made.store)
    assert change.approval == outcome.approval


@pytest.mark.slow
def test_a_night_killed_while_it_waits_is_retried_in_the_ui(on_stack: local.Stack, client: SyncPrefectClient) -> None:
    """An answer that came while nobody waited counts: the next attempt trains nothing again, and promotes."""
    made = new_night(on_stack)
    run = made.start(gate={"approval_hours": 1})
    run_id = wait_for("the candidate to wait", lambda: _waits(made.store))
    until = Run(made.store, run_id).read(runs.WAITING).until
    for process in processes(on_stack, run):
        process.kill()
    assert final(client, run) == "Crashed"
    log = on_stack.state / "logs" / "worker-cpu.log"  # the worker sees it too, some seconds after the runner
    wait_for("the worker's report", lambda: "prefect.flow_runs.worker - Check whether" in log.read_text())
    approval.answer(made.store, run_id, "approved", by="Ada")
    trained = made.store.get(f"runs/{run_id}/train.json").etag
    client.set_flow_run_state(run, AwaitingRetry())  # what the button in the UI does
    wait_for("the second attempt", lambda: client.read_flow_run(run).run_count == 2)
    assert final(client, run) == "Completed"
    outcome = made.assert_promoted(run)
    assert outcome.approval is not None
    assert outcome.approval.by == "Ada"
    assert Run(made.store, run_id).read(runs.WAITING).until == until
    assert made.store.get(f"runs/{run_id}/train.json").etag == trained
