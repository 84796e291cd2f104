"""Runs: ids that sort, steps that are done once, and the night that concluded last."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from tasks.config import GuardResult, Outcome, Verdict
from tasks.records import Taken
from tasks.runs import OUTCOME, TAKEN, Run, last_concluded, regression, run_id, unfinished, unjudged_guards
from tasks.storage import Store, StoreError


def _outcome(run: str, verdict: Verdict, commit: int) -> Outcome:
    return Outcome(run_id=run, verdict=verdict, reasons=["because"], commit=commit)


def test_run_ids_sort_by_time_whatever_the_time_zone() -> None:
    """03:30 in Berlin is before 02:45 in UTC on the same day."""
    berlin = datetime(2026, 11, 23, 3, 30, tzinfo=timezone(timedelta(hours=1)))
    utc = datetime(2026, 11, 23, 2, 45, tzinfo=UTC)
    assert run_id(berlin, "0123abcd-ffff") == "20261123T023000Z-0123abcd"
    assert run_id(berlin, "ffffffff") < run_id(utc, "00000000")


def test_once_computes_once(store: Store) -> None:
    """The second attempt reads what the first one wrote, and does not compute."""
    calls: list[int] = []

    def compute() -> Taken:
        calls.append(1)
        return Taken(len(calls), 0, {})

    assert Run(store, "a").once(TAKEN, compute) == Taken(1, 0, {})
    assert Run(store, "a").once(TAKEN, compute) == Taken(1, 0, {})
    assert len(calls) == 1


def test_once_follows_the_first_of_two_attempts(store: Store) -> None:
    """An attempt that finds another's result when it comes to write takes that result."""

    def compute() -> Taken:
        store.put("runs/a/intake.json", b'{"commit":7,"new":0,"counts":{}}')
        return Taken(1, 0, {})

    assert Run(store, "a").once(TAKEN, compute) == Taken(7, 0, {})


def test_last_concluded_passes_over_failed_unfinished_and_later_runs(store: Store) -> None:
    """Of runs 1 (held), 2 (failed), 3 (no outcome) and 4 (the one that asks), run 1 concluded last, before 2 and 3."""
    ids = [f"2026112{day}T033000Z-0000000{day}" for day in range(5)]
    assert last_concluded(store) is None
    Run(store, ids[1]).put_outcome(_outcome(ids[1], "held", 7))
    Run(store, ids[2]).put_outcome(_outcome(ids[2], "failed", 8))
    store.put(f"runs/{ids[3]}/checks.json", b"{}")
    Run(store, ids[4]).put_outcome(_outcome(ids[4], "promoted", 9))
    found = last_concluded(store, before=ids[4])
    assert found is not None
    assert (found.run_id, found.commit) == (ids[1], 7)
    assert [run.run_id for run in unfinished(store)] == [ids[3], ids[2]]


@pytest.mark.parametrize("year", ["2028", "2026"], ids=["still in the future", "overtaken by now"])
def test_a_run_that_a_fast_clock_named_hides_no_night(store: Store, year: str) -> None:
    """It concluded on commit 5; nights after it on commits 6 and 7, under names that sort before it."""
    fast = f"{year}1231T000000Z-00000000"
    Run(store, fast).put_outcome(_outcome(fast, "held", 5))
    for day, commit in ((23, 6), (24, 7)):
        name = f"202611{day}T033000Z-00000000"
        Run(store, name).put_outcome(_outcome(name, "held", commit))
    for before in (None, "29990101T000000Z-00000000"):
        found = last_concluded(store, before=before)
        assert found is not None
        assert found.commit == 7


def test_an_outcome_of_a_newer_version_does_not_stop_the_nights(store: Store) -> None:
    """Fields that this version does not know are ignored, and so is a run whose verdict it does not know."""
    older, newer, newest = (f"2026112{day}T033000Z-00000000" for day in (3, 4, 5))
    Run(store, older).put_outcome(_outcome(older, "held", 7))
    record = {**_outcome(newer, "held", 8).model_dump(mode="json"), "moon": "full", "index": "stays"}
    record |= {"candidate": {"version": None, "scores": {}, "licence": "MIT"}}
    record |= {"deltas": {"mrr": {"value": 0.1, "low": 0.0, "high": 0.2, "confidence": 0.99, "method": "new"}}}
    store.put(f"runs/{newer}/outcome.json", json.dumps(record).encode())
    found = last_concluded(store)
    assert found is not None
    assert (found.run_id, found.commit) == (newer, 8)
    store.put(f"runs/{newest}/outcome.json", json.dumps({**record, "verdict": "postponed", "commit": 9}).encode())
    assert Run(store, newest).outcome is None
    assert last_concluded(store) == found


def test_a_corrupt_outcome_is_an_error_not_a_missing_one(store: Store) -> None:
    """Taking it for missing would train on the same rows as if they were new."""
    store.put("runs/20261123T033000Z-00000000/outcome.json", b'{"verdict": "promoted"}')
    with pytest.raises(StoreError, match="is not a valid Outcome"):
        Run(store, "20261123T033000Z-00000000").read(OUTCOME)


def test_a_record_of_a_newer_version_is_read_by_its_known_fields(store: Store) -> None:
    """What a later version adds is ignored: going back a version must not stop the nights."""
    store.put("runs/a/intake.json", b'{"commit": 7, "new": 1, "counts": {}, "weather": "fair"}')
    assert Run(store, "a").read(TAKEN) == Taken(7, 1, {})


def test_a_streak_of_regressions_begins_goes_on_and_ends_once(store: Store) -> None:
    """Nights on which nothing was judged are passed over; a night asked again says the same."""
    nights: tuple[tuple[Verdict, str | None], ...] = (
        ("skipped", None),
        ("regressed", "began"),
        ("failed", None),
        ("regressed", "goes on"),
        ("blocked", None),
        ("held", "ended"),
        ("promoted", None),
        ("regressed", "began"),
        ("promoted", "ended"),
    )
    outcomes = [_outcome(f"202611{day:02d}T033000Z-00000000", verdict, 1) for day, (verdict, _) in enumerate(nights, 1)]
    said = []
    for outcome in outcomes:
        said.append(regression(store, outcome))
        Run(store, outcome.run_id).put_outcome(outcome)
    assert said == [where for _, where in nights]
    assert [regression(store, outcome) for outcome in outcomes] == said


def test_a_guard_set_that_cannot_be_judged_is_counted_from_the_first_night_of_the_streak(store: Store) -> None:
    """Nights on which nothing was judged are passed over; each set has its own streak."""
    nights: list[tuple[Verdict, str]] = [("held", "ab"), ("held", "a"), ("skipped", ""), ("regressed", "ab")]
    ids = [f"2026112{day}T033000Z-00000000" for day in range(len(nights) + 1)]
    said = []
    for run, (verdict, broken) in zip(ids, nights, strict=False):
        guards = [GuardResult(name=name, verdict="not judged") for name in broken]
        outcome = _outcome(run, verdict, 1).model_copy(
            update={"guards": [*guards, GuardResult(name="c", verdict="stands")]}
        )
        Run(store, run).put_outcome(outcome)
        said.append(unjudged_guards(store, outcome))
    assert said == [{"a": ids[0], "b": ids[0]}, {"a": ids[0]}, {}, {"a": ids[0], "b": ids[3]}]
