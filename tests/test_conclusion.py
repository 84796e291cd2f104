"""The end of a night: what it says of production, what it deletes, and what it must leave alone."""

from __future__ import annotations

import logging
import os
import time
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from pydantic_core import to_json

from tasks import night, registry, report, runs
from tasks.config import Outcome, Training, Verdict
from tasks.night import judging
from tasks.records import Begun, Plan, Started
from tasks.registry import Change
from tasks.report.messages import message, production_line
from tasks.runs import Run
from tasks.storage import Store
from tests.models import published
from tests.report_cases import material

RUNS = [f"2026112{day}T033000Z-00000000" for day in range(6)]


@pytest.fixture
def versions(store: Store, tmp_path: Path) -> list[str]:
    """Six versions, in the order in which they were published; none serves."""
    return [published(store, tmp_path / f"{i}", b"%d" % i) for i in range(6)]


def outcome(run_id: str, verdict: Verdict, before: str | None = None, after: str | None = None) -> Outcome:
    """An outcome of a night on an empty log."""
    return Outcome(
        run_id=run_id, verdict=verdict, reasons=["r"], commit=0, production_before=before, production_after=after
    )


def let_serve(store: Store, version: str, run_id: str = "run") -> Change:
    """Promote over what serves."""
    now = registry.read_production(store)
    etag = now.etag if now else None
    return registry.promote(store, version, etag, run_id=run_id, who="w", reason="r", scores={})


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let the store's clock say that it is some days later."""
    moment = datetime.now(UTC) + timedelta(days=days)
    monkeypatch.setattr(registry, "store_time", lambda _: moment)
    monkeypatch.setattr("tasks.registry.retention.store_time", lambda _: moment)


# --- what is deleted ---------------------------------------------------------------------------------------------


def test_a_concluding_run_leaves_the_checkpoints_of_another_night_under_way(store: Store) -> None:
    """The other one began before it, and has no outcome yet: its training would begin anew."""
    for run in RUNS[:2]:
        store.put(f"runs/{run}/checkpoints/latest.json", b"{}")
    night.conclude(store, outcome(RUNS[1], "held"))
    assert [entry.key for entry in store.entries("runs/") if "checkpoints" in entry.key] == [
        f"runs/{RUNS[0]}/checkpoints/latest.json"
    ]


def test_checkpoints_of_a_run_that_was_given_up_go_after_a_week(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before: it may wait for a machine, or be tried again after a weekend."""
    store.put(f"runs/{RUNS[0]}/checkpoints/latest.json", b"{}")
    later(monkeypatch, 6.9)
    assert night.retire(store).checkpoints == []
    later(monkeypatch, 7.1)
    assert night.retire(store, dry_run=True).checkpoints == [RUNS[0]]
    assert store.find(f"runs/{RUNS[0]}/checkpoints/latest.json") is not None
    assert night.retire(store).checkpoints == [RUNS[0]]
    assert store.find(f"runs/{RUNS[0]}/checkpoints/latest.json") is None


def test_retention_keeps_what_serves_what_the_ledger_names_what_a_night_uses_and_the_last_candidates(
    store: Store, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six: two served, the third is a running night's candidate, the fourth its start; and the last candidate."""
    let_serve(store, versions[0])
    let_serve(store, versions[1])
    running, over = Run(store, RUNS[1]), Run(store, RUNS[0])
    running.once(runs.BEGUN, lambda: Begun(versions[1], "etag", 0, None))
    running.put(runs.CANDIDATE.name, _trained(versions[2]))
    started = Started(1, versions[1], Training(), Plan(versions[3], 0, "why"))
    running.once(runs.STARTED, lambda: started)
    over.once(runs.BEGUN, lambda: Begun(versions[4], "etag", 0, None))
    over.put_outcome(outcome(RUNS[0], "held"))
    kept = {*versions[:4], _latest(store)}
    later(monkeypatch, 2)
    would = night.retire(store, keep=1, dry_run=True).versions
    assert set(would) == set(versions) - kept
    assert set(_stored(store)) == set(versions)
    assert night.retire(store, keep=1).versions == would
    assert set(_stored(store)) == kept
    running.put_outcome(outcome(RUNS[1], "held"))
    assert set(night.retire(store, keep=1).versions) == kept - {*versions[:2], _latest(store)}


class Ahead(datetime):
    """A clock that is 400 days ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Ahead:
        """This moment, as it believes."""
        return cls.fromtimestamp(datetime.now(UTC).timestamp() + 400 * 86_400, tz)


def test_a_candidate_whose_machine_has_a_fast_clock_is_not_old(store: Store, versions: list[str]) -> None:
    """Ages are told by the store: with every local clock 400 days ahead nothing goes."""
    real = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 400 * 86_400)
        for module in ("tasks.registry.retention", "tasks.night"):
            patch.setattr(f"{module}.datetime", Ahead, raising=False)
        assert night.retire(store, keep=1).versions == []
    assert set(_stored(store)) == set(versions)


def test_the_work_folder_keeps_what_serves_and_what_is_used(store: Store, versions: list[str], tmp_path: Path) -> None:
    """Pulled versions that are a day old and needed by nothing go; anything else that lies there stays."""
    let_serve(store, versions[0])
    let_serve(store, versions[1])
    Run(store, RUNS[0]).put(runs.CANDIDATE.name, _trained(versions[2]))
    models = tmp_path / "models"
    for version in versions[:5]:
        registry.pull(store, version, models / version)
    (models / "notes").mkdir()
    assert registry.tidy(models, set(), now=time.time()) == []
    gone = night.tidy(store, tmp_path)
    assert gone == []
    for path in models.iterdir():
        os.utime(path, (time.time() - 2 * 86_400,) * 2)
    assert set(night.tidy(store, tmp_path)) == set(versions[3:5])
    assert {path.name for path in models.iterdir()} == {*versions[:3], "notes"}


def _trained(version: str) -> bytes:
    """A `train.json` with that candidate, and the training of a report that tests look at."""
    trained = material("held").training
    assert trained is not None
    return to_json({**vars(trained), "version": version, "commit": 1, "base": "b", "started_why": "why"})


def _latest(store: Store) -> str:
    manifests = [entry for entry in store.entries("models/") if entry.key.endswith("manifest.json")]
    return max(manifests, key=lambda entry: (entry.modified, entry.key)).key.split("/")[1]


def _stored(store: Store) -> list[str]:
    return sorted({entry.key.split("/")[1] for entry in store.entries("models/")})


# --- what is said ------------------------------------------------------------------------------------------------


def test_what_is_said_of_production_follows_from_before_and_after() -> None:
    """Also when a run broke off: "as before" is only said where it is so."""
    same = outcome(RUNS[0], "failed", "a" * 32, "a" * 32)
    assert production_line(same) == f"Production is {'a' * 32}, as before."
    moved = outcome(RUNS[0], "failed", None, "b" * 32)
    assert production_line(moved) == f"Production is {'b' * 32} now; when the run began it was the base model."
    assert "as before" not in message(moved, report.Evidence(), None).text
    page = report.markdown(moved, report.Material())
    assert "production stays" not in page
    assert "production changed" in page
    assert "production stays" in report.markdown(same, report.Material())
    unknown = same.model_copy(update={"production_after": None, "production_known": False})
    assert production_line(unknown).startswith("What serves now is not known")
    page = report.markdown(unknown, report.Material())
    assert "production stays" not in page
    assert "the base model" not in page


@pytest.mark.parametrize("promoted", [True, False])
def test_a_run_that_breaks_off_ends_as_production_says(
    store: Store, versions: list[str], monkeypatch: pytest.MonkeyPatch, promoted: bool
) -> None:
    """Its conclusion failed: promoted where it had promoted, and only the conclusion is made again; else failed."""
    let_serve(store, versions[0], RUNS[0] if promoted else RUNS[1])
    ended = break_off(store, monkeypatch)
    assert ended.verdict == ("promoted" if promoted else "failed")
    assert ended.production_after == versions[0]
    assert ended.production_known
    assert promoted or ended.production_before == versions[0]  # it broke off before it could note what served
    assert any("StoreError: away" in reason for reason in ended.reasons)


@pytest.mark.parametrize("promoted", [True, False])
def test_a_run_that_breaks_off_on_a_damaged_pointer_has_an_outcome(
    store: Store, versions: list[str], monkeypatch: pytest.MonkeyPatch, promoted: bool
) -> None:
    """It does not say what serves; a promotion that the run itself knows of stays one."""
    let_serve(store, versions[0], RUNS[0])
    store.put("production.json", b'{"version": "\xff')
    ended = break_off(store, monkeypatch, verdict="promoted" if promoted else "failed")
    assert ended.verdict == ("promoted" if promoted else "failed")
    assert (ended.production_after, ended.production_known) == (None, False)
    assert "StoreError: away" in " ".join(ended.reasons)
    assert "What serves now could not be read: LedgerError" in " ".join(ended.reasons)


def test_a_run_that_breaks_off_on_a_damaged_record_has_an_outcome(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report cannot be made of what is there, so it is made of the outcome alone, and says why."""
    store.put(f"runs/{RUNS[0]}/intake.json", b"not JSON")
    ended = break_off(store, monkeypatch)
    assert ended.verdict == "failed"
    assert "The report has no details: StoreError" in ended.reasons[-1]
    assert "The report has no details" in store.get(f"runs/{RUNS[0]}/report.html").body.decode()


def break_off(store: Store, monkeypatch: pytest.MonkeyPatch, verdict: Verdict = "failed") -> Outcome:
    """End a run that broke off, its steps called as functions; what is stored is what was returned."""
    from flows import retrain as flow
    from flows.context import ThisRun

    monkeypatch.setattr(flow, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(flow.steps, "stands", flow.steps.stands.fn)
    monkeypatch.setattr(flow.steps, "conclude", lambda _, ended, **how: night.conclude(store, ended, **how)[0])
    monkeypatch.setenv("RATCHET_STORE", store.url)
    run = flow.Night(store.url, ThisRun(RUNS[0], "w"), "reason")
    run.learn(verdict=verdict)
    ended = flow._break_off(run, "StoreError: away")
    assert Run(store, RUNS[0]).outcome == ended
    return ended


def test_a_candidate_that_a_person_rolled_back_is_vetoed_by_the_decision(store: Store, versions: list[str]) -> None:
    """The reason that the report shows says who, why, and what releases it; decision and outcome say the same."""
    let_serve(store, versions[0], "one")
    let_serve(store, versions[1], "two")
    registry.rollback(store, run_id="undo", who="Ann", reason="odd results")
    (veto,) = judging._held(store, versions[1])
    assert "was rolled back by Ann" in veto
    assert f"`ratchet release {versions[1]}`" in veto
    assert judging._held(store, versions[2]) == []


def test_a_run_that_broke_off_after_its_promotion_knows_it(store: Store, versions: list[str]) -> None:
    """From the ledger: also after its version was replaced. A run that promoted nothing is told what serves."""
    assert night.stands(store, RUNS[0]) == (None, None)
    let_serve(store, versions[0], RUNS[0])
    serves, said = night.stands(store, RUNS[0])
    assert serves == versions[0]
    assert said is not None
    assert said.startswith(f"Version {versions[0]} serves since")
    let_serve(store, versions[1], RUNS[1])
    assert night.stands(store, RUNS[0]) == (versions[1], said)
    assert night.stands(store, RUNS[2]) == (versions[1], None)
