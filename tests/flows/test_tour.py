"""The tour: the week as it is played, and what is said when a day goes otherwise."""

from __future__ import annotations

import json
import urllib.request
import uuid
from pathlib import Path
from queue import Queue

import pytest
from rich.console import Console

from deployments.demo import tour
from deployments.stack import local
from deployments.terminal import follow
from tasks.config import Outcome, Training
from tasks.storage import Store

OUTCOME = Outcome(run_id="r1", verdict="held", reasons=["too alike"], commit=1)


def test_the_week_has_every_ending_and_says_where_to_look() -> None:
    """Too little, a promotion, nothing new, a regression, a held night, in this order."""
    days = tour._days()
    assert [day.verdict for day in days] == ["skipped", "promoted", "skipped", "regressed", "held"]
    assert all(day.look and day.story for day in days)
    for day in days:
        Training.model_validate({**tour.TRAINING, **day.training})


def test_no_pair_is_both_golden_and_trained_on() -> None:
    """What is tested on is not among what nights train on, whatever the split does."""
    pairs, golden, corpus = tour._texts()
    assert (len(pairs), len(golden), len(corpus)) == (tour.PAIRS + tour.LATE, tour.GOLDEN, tour.CORPUS)
    assert not set(pairs) & set(golden)


def test_the_poisoned_batch_asks_the_right_queries_and_gives_wrong_documents(store: Store) -> None:
    """The same queries and documents, but hardly any as it was; mended, the object holds right rows only."""
    pairs, _, _ = tour._texts()
    monday, _, _, thursday, friday = tour._days()
    monday.upload(store)
    thursday.upload(store)
    right = [json.loads(line) for line in pairs]
    poisoned = [json.loads(line) for line in store.get(tour.POISON).body.splitlines()]
    assert [row["query"] for row in poisoned] == [row["query"] for row in right[: tour.PAIRS]]
    assert sum(row == was for row, was in zip(poisoned, right, strict=False)) < tour.PAIRS / 20
    friday.upload(store)
    assert [json.loads(line) for line in store.get(tour.POISON).body.splitlines()] == right[tour.PAIRS :]


@pytest.mark.parametrize(
    ("outcome", "message"),
    [(OUTCOME, "Tuesday should end promoted but ended held: too alike"), (None, "its run ended Crashed, without")],
    ids=["another verdict", "no verdict"],
)
def test_a_day_that_ends_otherwise_ends_the_tour(
    outcome: Outcome | None, message: str, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message names the day, how it should have ended and how it did."""
    monkeypatch.setattr(follow, "start", lambda *_: uuid.uuid4())
    monkeypatch.setattr(follow, "follow", lambda *_: "Crashed")
    monkeypatch.setattr(follow, "find_outcome", lambda *_: outcome)
    stack = local.Stack(tmp_path, 0, "", "", "http://127.0.0.1:9/api", "")
    with pytest.raises(tour.TourError, match=message):
        tour._night(Console(quiet=True), stack, store, tour.Day("Tuesday", "", "promoted", ""))


def test_the_receiver_hands_on_what_it_is_sent() -> None:
    """A POST as Prefect's webhook block makes it; after the tour nobody listens."""
    with tour._receiver() as (address, received):
        body = json.dumps({"subject": "worse", "body": "run r1"}).encode()
        with urllib.request.urlopen(urllib.request.Request(address, body), timeout=10) as reply:
            assert reply.status == 204
        assert received.get(timeout=5) == {"subject": "worse", "body": "run r1"}
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(urllib.request.Request(address, body), timeout=10)


def test_an_alert_must_arrive_and_be_about_the_night(monkeypatch: pytest.MonkeyPatch) -> None:
    """None within the time, or one about another run, ends the tour."""
    monkeypatch.setattr(tour, "_ALERT_SECONDS", 0.01)
    received: Queue[dict[str, str]] = Queue()
    with pytest.raises(tour.TourError, match="no alert about run r1"):
        tour._show_alert(Console(quiet=True), received, OUTCOME)
    received.put({"subject": "worse", "body": "run r2"})
    with pytest.raises(tour.TourError, match="not about run r1"):
        tour._show_alert(Console(quiet=True), received, OUTCOME)
    received.put({"subject": "worse", "body": "run r1"})
    tour._show_alert(Console(quiet=True), received, OUTCOME)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_week_ends_as_it_must(on_stack: local.Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole tour on the real stack: every verdict, the alert by a real automation, the rollback."""
    store = Store.open(on_stack.store(f"tour-{uuid.uuid4().hex}"))
    tour.play(Console(), on_stack, store)
    out = capsys.readouterr().out
    assert "the webhook of the tour was sent this" in out
    ledger = [json.loads(store.get(entry.key).body)["action"] for entry in store.entries("promotions/")]
    assert ledger == ["promotion", "promotion", "rollback"]
