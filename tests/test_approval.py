"""The answer of a person: the first counts, once; what is refused; and what a promotion makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli import app, nights
from deployments.cli.common import CliError
from tasks import approval, night, registry, report, runs
from tasks.config import Approval, Model
from tasks.gate import Decision
from tasks.records import Waiting
from tasks.runs import Run
from tasks.storage import Store
from tests import report_cases
from tests.models import published

RUN = "20261128T033000Z-0123abcd"


@pytest.fixture
def waiting(store: Store, tmp_path: Path) -> str:
    """A run whose candidate waits for an hour; the candidate."""
    version = published(store, tmp_path / "candidate", b"candidate")
    approval.ask(store, RUN, version, 1.0)
    return version


def test_of_many_answers_at_once_one_counts(store: Store, waiting: str) -> None:
    """Sixteen people answer: one is told that it counts, each other who was first, and the record is that one's."""
    assert Run(store, RUN).read(runs.WAITING).candidate == waiting

    def give(number: int) -> Approval | str:
        try:
            decision = "approved" if number % 2 else "rejected"
            return approval.answer(store, RUN, decision, by=f"person {number}", comment="yes")  # type: ignore[arg-type] # two of its values
        except approval.ApprovalError as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(give, range(16)))
    (counts,) = [one for one in said if isinstance(one, Approval)]
    assert approval.find(store, RUN) == counts
    others = [one for one in said if isinstance(one, str)]
    assert len(others) == 15
    assert all(f"has its answer already. {counts}" in one for one in others)


def test_an_answer_that_nobody_waits_for_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown, not waiting, too late, without a name, too long: each is said, and nothing is written."""
    with pytest.raises(approval.ApprovalError, match=f"there is no run {RUN} in s3://"):
        approval.answer(store, RUN, "approved", by="Ada")
    store.put(f"runs/{RUN}/begin.json", b"{}")
    with pytest.raises(approval.ApprovalError, match="does not wait for an answer"):
        approval.answer(store, RUN, "approved", by="Ada")
    approval.ask(store, RUN, "v", 1.0)
    for by, comment in ((" \u200b\n", ""), ("a" * 201, ""), ("Ada", "b" * 2001)):
        with pytest.raises(approval.ApprovalError, match="needs a name"):
            approval.answer(store, RUN, "approved", by=by, comment=comment)
    monkeypatch.setattr(approval, "_now", lambda: datetime.now(UTC) + timedelta(hours=1, minutes=1))
    with pytest.raises(approval.ApprovalError, match="it is too late"):
        approval.answer(store, RUN, "approved", by="Ada")
    assert approval.find(store, RUN) is None


def test_a_run_that_is_tried_again_waits_until_the_same_moment(store: Store, waiting: str) -> None:
    """Whatever the hours are then; and the end of the wait is an answer like another."""
    first = Run(store, RUN).read(runs.WAITING)
    assert approval.ask(store, RUN, "another", 100.0) == first
    assert first.until - first.since == timedelta(hours=1)
    late = approval.expire(store, RUN)
    assert str(late) == "Held: nobody approved within 1 hours"
    with pytest.raises(approval.ApprovalError, match=r"already\. Held: nobody approved within 1 hours"):
        approval.answer(store, RUN, "approved", by="Ada")
    assert approval.expire(store, RUN) == late


def test_an_answer_at_the_last_moment_counts(store: Store, waiting: str) -> None:
    """It came before the end was written down."""
    given = approval.answer(store, RUN, "approved", by="Ada\x1b[31m", comment="  two\nlines ")
    assert (given.by, given.comment) == ("Ada [31m", "two lines")
    assert approval.expire(store, RUN) == given


def _promote(store: Store, version: str, etag: str | None = None) -> tuple[registry.Change | None, str]:
    run = Run(store, RUN)
    run.put(runs.DECISION, json.dumps({"verdict": "promoted", "reasons": ["better"]}).encode())
    return night.promote(store, RUN, Model(version=version, scores={"mrr": 0.7}), etag, who="night", reason="nightly")


def test_who_approved_is_in_the_ledger(store: Store, waiting: str, tmp_path: Path) -> None:
    """In the pointer as well; a promotion that nobody was asked about has no such field, as before."""
    given = approval.answer(store, RUN, "approved", by="Ada", comment="looks right")
    change, _ = _promote(store, waiting)
    assert change is not None
    (entry,) = registry.history(store)
    assert entry.approval == given
    assert json.loads(store.get("production.json").body)["approval"]["by"] == "Ada"
    other = published(store, tmp_path / "other", b"other")
    current = registry.read_production(store)
    assert current is not None
    registry.promote(store, other, current.etag, run_id="next", who="night", reason="nightly", scores={})
    assert "approval" not in json.loads(store.get("promotions/000000000002.json").body)


@pytest.mark.parametrize("late", [False, True])
def test_a_rejected_candidate_is_held(store: Store, waiting: str, late: bool) -> None:
    """Or one that nobody approved in time: the decision says so too, and production does not change."""
    given = approval.expire(store, RUN) if late else approval.answer(store, RUN, "rejected", by="Ada", comment="no")
    change, why = _promote(store, waiting)
    assert (change, why) == (None, f"{given}.")
    decision = Run(store, RUN).read(runs.File(runs.DECISION, Decision))
    assert (decision.verdict, decision.reasons) == ("held", (why, "better"))
    assert registry.read_production(store) is None


def test_a_guard_set_that_changes_while_somebody_thinks_holds(store: Store, waiting: str) -> None:
    """The candidate was not scored on it; a second attempt of a run that has promoted already promotes again."""
    given = approval.answer(store, RUN, "approved", by="Ada")
    store.put("guard/new/corpus.jsonl", b"")
    change, why = _promote(store, waiting)
    assert change is None
    assert "Guard set 'new' came while the night ran" in why
    assert registry.read_production(store) is None
    store.delete(["guard/new/corpus.jsonl"])
    assert _promote(store, waiting)[0] is not None
    store.put("guard/new/corpus.jsonl", b"")
    again, _ = _promote(store, waiting)
    assert again is not None
    assert again.approval == given


def test_an_approval_does_not_move_a_production_that_has_changed(store: Store, waiting: str, tmp_path: Path) -> None:
    """While somebody was thinking another night promoted: held, and the pointer keeps its bytes."""
    other = published(store, tmp_path / "other", b"other")
    registry.promote(store, other, None, run_id="other", who="night", reason="nightly", scores={})
    before = store.get("production.json").body
    approval.answer(store, RUN, "approved", by="Ada")
    change, why = _promote(store, waiting)
    assert change is None
    assert "production changed since it was scored" in why
    assert store.get("production.json").body == before


def _shorten(store: Store, version: str) -> None:
    store.put(f"models/{version}/model.safetensors", b"candid")


def _change(store: Store, version: str) -> None:
    store.put(f"models/{version}/model.safetensors", b"CANDIDATE")


def _remove(store: Store, version: str) -> None:
    store.delete([f"models/{version}/model.safetensors"])


@pytest.mark.parametrize("damage", [_shorten, _change, _remove])
def test_an_approved_candidate_that_was_damaged_meanwhile_never_serves(
    store: Store, waiting: str, tmp_path: Path, damage: Callable[[Store, str], None]
) -> None:
    """Its file is shorter, changed or gone: the promotion fails with its name, and the pointer keeps its bytes."""
    other = published(store, tmp_path / "other", b"other")
    registry.promote(store, other, None, run_id="other", who="night", reason="nightly", scores={})
    before = store.get("production.json")
    approval.answer(store, RUN, "approved", by="Ada")
    damage(store, waiting)
    with pytest.raises(registry.VersionError, match=f"{waiting}.*model.safetensors"):
        night.promote(store, RUN, Model(version=waiting), before.etag, who="night", reason="nightly")
    assert store.get("production.json").body == before.body
    assert len(registry.history(store)) == 1


def _command(store: Store, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    with CliRunner().isolation() as (out, _, _), monkeypatch.context() as patch:
        patch.setattr(nights.console, "_file", None)
        app([*arguments, "--store", store.url], standalone_mode=False)
        return out.getvalue().decode()


def test_the_command_answers_once(store: Store, waiting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says whom it names; a second one, and one of an unknown run, end with status 1 and say why."""
    assert list(approval.waiting(store)) == [RUN]
    assert f"Version {waiting} waits for approval until" in _command(store, monkeypatch, "history")
    said = _command(store, monkeypatch, "approve", RUN, "--reject", "--by", "Ada", "--comment", "too [bold]soon[/]")
    given = approval.find(store, RUN)
    assert given is not None
    assert (given.answer, given.by, given.comment) == ("rejected", "Ada", "too [bold]soon[/]")
    assert "Rejected by Ada, as they named themselves, at " in said
    assert "too [bold]soon[/]" in said
    assert approval.waiting(store) == {}
    with pytest.raises(CliError, match="has its answer already"):
        _command(store, monkeypatch, "approve", RUN)
    with pytest.raises(CliError, match="there is no run"):
        _command(store, monkeypatch, "approve", "20261128T033000Z-ffffffff")


def test_the_form_and_the_alert_show_nothing_from_outside_as_markup() -> None:
    """Reasons may hold names of slices: plain in the alert; the form has the figures, in a table."""
    outcome = report_cases.outcome("promoted").model_copy(
        update={
            "reasons": ["slice <!channel> [x](http://evil.example) | a", "MRR rose."],
            "production_before": "a|b*c*",
        }
    )
    asked = report.question(outcome, datetime(2026, 11, 28, 15, 30, tzinfo=UTC), "http://127.0.0.1/artifact/1")
    assert "| Recall\\@10 | 0.9156 | 0.9422 |" in asked.form
    assert "against a\\|b\\*c\\*. Approve it until 2026-11-28 15:30 UTC" in asked.form
    assert "[The report](http://127.0.0.1/artifact/1)" in asked.form
    assert "ratchet approve 20261124T033000Z-0123abcd" in asked.message
    assert not set("<>[]") & set(asked.message)
    assert "http://evil" not in asked.message


def test_waiting_is_a_record_that_comes_back(store: Store, waiting: str) -> None:
    """Its moments are those of the store's clock, with their zone."""
    found = Run(store, RUN).read(runs.WAITING)
    assert isinstance(found, Waiting)
    assert abs(found.since - registry.store_time(store)) < timedelta(minutes=1)
