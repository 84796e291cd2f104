"""Every gate before the training: bad or too little data stops the night, and production is the same bytes after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows.retrain import retrain
from flows.rollback import rollback
from tasks import intake, night, registry
from tasks.config import Checks, Outcome
from tasks.storage import Store, StoreError
from tests.models import published
from tests.rows import BROKEN_CELLS

pytestmark = pytest.mark.stack

_CHECK_LEAKS = night.check_leaks

ONE_PER_CHECK = list({check: (what, check, rows) for what, check, rows in BROKEN_CELLS}.values())


@pytest.fixture
def serving(night_store: Store, tmp_path: Path) -> Store:
    """A store in which a version serves."""
    version = published(night_store, tmp_path / "model", b"weights")
    registry.promote(night_store, version, None, run_id="earlier", who="test", reason="test", scores={"mrr": 0.5})
    return night_store


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A night that comes as far as training has gone through a gate that should have held it."""

    def trained(*_: Any, **__: Any) -> None:
        pytest.fail("the night went on to train")

    monkeypatch.setattr(night, "train", trained)
    monkeypatch.setattr(night, "check_leaks", trained)


def _pairs(count: int) -> bytes:
    rows = ({"query": f"how is part {i} made", "document": f"part {i} is cast from iron"} for i in range(count))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _unchanged(store: Store, before: bytes, outcome: Outcome) -> None:
    """Production is byte-identical, and the outcome in the store says what was returned."""
    assert store.get("production.json").body == before
    assert outcome.production_before == outcome.production_after == json.loads(before)["version"]
    stored = Outcome.model_validate_json(store.get(f"runs/{outcome.run_id}/outcome.json").body)
    assert stored == outcome


@pytest.mark.parametrize(("what", "check", "rows"), ONE_PER_CHECK, ids=[check for _, check, _ in ONE_PER_CHECK])
def test_one_broken_cell_blocks_the_night(
    serving: Store, monkeypatch: pytest.MonkeyPatch, what: str, check: str, rows: pa.Table
) -> None:
    """A row that parsing let through, and should not have, stops the night at the checks."""
    before = serving.get("production.json").body
    serving.put("pairs/a.jsonl", _pairs(120))
    monkeypatch.setattr(intake, "read_rows", lambda _store, _commit, **_: rows)
    outcome = retrain(store=serving.url)
    assert outcome.verdict == "blocked", what
    findings = json.loads(serving.get(f"runs/{outcome.run_id}/checks.json").body)["result"]["findings"]
    assert check in {found["name"] for found in findings if not found["success"] and found["severity"] == "critical"}
    _unchanged(serving, before, outcome)


def test_a_test_side_that_repeats_the_train_side_blocks_the_night(
    serving: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries that differ in a number alone are on both sides: what they measure is memory, and nothing is trained."""
    monkeypatch.setattr(night, "check_leaks", _CHECK_LEAKS)
    before = serving.get("production.json").body
    query = "how do I reset the password of my account when I have forgotten it, says customer {}"
    rows = ({"query": query.format(i), "document": f"part {i} is cast from iron"} for i in range(150))
    serving.put("pairs/a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    outcome = retrain(store=serving.url)
    assert outcome.verdict == "blocked", outcome.reasons
    assert "train" in outcome.reasons[0]
    _unchanged(serving, before, outcome)


def test_too_many_rejected_rows_block_the_night(serving: Store) -> None:
    """150 sound rows beside 100 empty ones: a share of 0.4, over the limit of 0.2."""
    before = serving.get("production.json").body
    serving.put("pairs/a.jsonl", _pairs(150) + b'{"query": "", "document": "x"}\n' * 100)
    outcome = retrain(store=serving.url)
    assert outcome.verdict == "blocked"
    assert (outcome.counts["accepted"], outcome.counts["rejected"]) == (150, 100)
    _unchanged(serving, before, outcome)


def test_contradictory_labels_block_the_night(serving: Store) -> None:
    """Of 140 rows 40 call one text right and wrong for the same query."""
    before = serving.get("production.json").body
    wrong = (
        {"query": f"how is part {i} made", "document": f"part {i} is forged", "negative": f"part {i} is cast from iron"}
        for i in range(20)
    )
    serving.put("pairs/a.jsonl", _pairs(120) + b"".join(json.dumps(row).encode() + b"\n" for row in wrong))
    outcome = retrain(store=serving.url)
    assert outcome.verdict == "blocked"
    findings = json.loads(serving.get(f"runs/{outcome.run_id}/checks.json").body)["result"]["findings"]
    failed = [found["name"] for found in findings if not found["success"] and found["severity"] == "critical"]
    assert failed == ["few_contradictions"]
    _unchanged(serving, before, outcome)


def test_too_few_pairs_skip_the_night_with_guidance(serving: Store) -> None:
    """99 pairs are one too few: skipped, and the guidance says what to do; an empty text is named in quarantine."""
    before = serving.get("production.json").body
    serving.put("pairs/a.jsonl", _pairs(99) + b'{"query": "what now", "document": "  "}\n')
    outcome = retrain(store=serving.url)
    assert outcome.verdict == "skipped"
    assert "off the shelf" in outcome.guidance
    assert outcome.counts["rejected"] == 1
    _unchanged(serving, before, outcome)
    (rejected,) = intake.quarantined(serving)
    assert (rejected.object, rejected.line) == ("pairs/a.jsonl", 100)
    assert "document" in rejected.reason


def test_nothing_new_skips_the_night_unless_forced(serving: Store) -> None:
    """The second night has nothing new; forced, it checks the data again."""
    before = serving.get("production.json").body
    serving.put("pairs/a.jsonl", _pairs(50))
    first = retrain(store=serving.url)
    second = retrain(store=serving.url)
    assert second.verdict == "skipped"
    assert first.run_id in second.reasons[0]
    assert "checks" not in second.seconds
    forced = retrain(store=serving.url, force=True)
    assert "checks" in forced.seconds
    _unchanged(serving, before, second)


def test_an_empty_test_side_blocks_the_night(serving: Store) -> None:
    """120 documents for one and the same query: whichever side it is on, another side is empty."""
    before = serving.get("production.json").body
    rows = ({"query": "what are parts made of", "document": f"part {i} is cast from iron"} for i in range(120))
    serving.put("pairs/a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    outcome = retrain(store=serving.url)
    assert outcome.verdict == "blocked"
    assert "The split leaves nothing for" in outcome.reasons[0]
    _unchanged(serving, before, outcome)


def test_a_threshold_is_a_parameter(serving: Store) -> None:
    """With min_pairs at 200, 150 pairs are too few."""
    serving.put("pairs/a.jsonl", _pairs(150))
    outcome = retrain(store=serving.url, checks=Checks(min_pairs=200, warn_pairs=1000))
    assert outcome.verdict == "skipped"


def test_a_corrupt_pointer_fails_the_run_and_is_left_alone(night_store: Store) -> None:
    """Something that is no pointer is in the pointer's place: the run fails, and says so in its outcome."""
    night_store.put("production.json", b'{"version": "\xff')
    night_store.put("pairs/a.jsonl", _pairs(150))
    with pytest.raises(registry.RegistryError, match="not valid"):
        retrain(store=night_store.url)
    assert night_store.get("production.json").body == b'{"version": "\xff'
    (run,) = night_store.folders("runs/")
    outcome = Outcome.model_validate_json(night_store.get(f"runs/{run}/outcome.json").body)
    assert outcome.verdict == "failed"


def test_a_night_that_failed_is_taken_up_by_the_next(serving: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were taken in by a run that then broke off are still new to the next one."""
    serving.put("pairs/a.jsonl", _pairs(50))
    with monkeypatch.context() as patch:
        patch.setattr(night, "check", lambda *_: (_ for _ in ()).throw(RuntimeError("the power went")))
        with pytest.raises(RuntimeError, match="the power went"):
            retrain(store=serving.url)
    outcome = retrain(store=serving.url)
    assert outcome.counts["new"] == 50
    assert "checks" in outcome.seconds


def test_rollback_puts_the_previous_version_back(serving: Store, tmp_path: Path) -> None:
    """Two versions served; the flow puts the first back, with the reason in the ledger."""
    first = registry.read_production(serving)
    assert first is not None
    second = published(serving, tmp_path / "other", b"other")
    registry.promote(serving, second, first.etag, run_id="later", who="test", reason="test", scores={})
    pointer = rollback(store=serving.url, reason="the second one is slow")
    assert (pointer["version"], pointer["previous"], pointer["promotion"]) == (first.version, second, 3)
    assert registry.history(serving)[-1].reason == "the second one is slow"


def test_no_store_is_a_clear_error(on_stack: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the parameter nor RATCHET_STORE: the message says what to set."""
    monkeypatch.delenv("RATCHET_STORE")
    with pytest.raises(ValueError, match="RATCHET_STORE"):
        retrain()
    with pytest.raises(StoreError, match="s3://bucket/prefix"):
        retrain(store="https://example.com")
