"""The watch of production on a real store, with a tiny model: which labels are fresh, and what becomes of a window."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from tasks import intake, registry
from tasks.config import Delta, Outcome, Watch
from tasks.runs import Run
from tasks.scoring import serving
from tasks.storage import Store
from tasks.watch import fresh
from tasks.watch.messages import news
from tests import tiny_models

RULE = Watch(min_queries=10)
GOOD = {"recall_at_10": 0.0, "mrr": 0.0}
"""Scores at promotion that any model keeps up with."""

UNREACHABLE = {"recall_at_10": 1.0, "mrr": 1.0}
"""Scores at promotion that a random model among many documents does not reach."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    return tiny_models.save(tmp_path_factory.mktemp("tiny"))


def _pairs(first: int, count: int) -> bytes:
    rows = (
        {"query": f"where is part {i}", "document": f"{'abcdefghij'[i % 10] * 3} shelf {i}"}
        for i in range(first, first + count)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _promoted(store: Store, model: Path, scores: dict[str, float], served: Path | None = None) -> str:
    """A store after a night on 40 pairs, whose model serves; it is the base model unless `served` is another one."""
    store.put("pairs/a.jsonl", _pairs(0, 40))
    run = "20261101T033000Z-00000000"
    commit = intake.take_in(store, writer=run).commit
    settings = {"training": {"base_model": str(model)}}
    store.put(f"runs/{run}/parameters.json", json.dumps(settings).encode())
    store.put(f"runs/{run}/intake.json", json.dumps({"commit": commit}).encode())
    version = registry.publish(store, served or model, serving.describe(served or model, ()))
    registry.promote(store, version, None, run_id=run, who="test", reason="test", scores=scores)
    return version


def _look(store: Store, tmp_path: Path, rule: Watch = RULE) -> fresh.Seen:
    return fresh.look(store, "watch", fresh.take_in(store, "watch"), rule, tmp_path)


def test_nothing_in_production_is_said(store: Store, tmp_path: Path) -> None:
    """Also on a store without anything."""
    seen = _look(store, tmp_path)
    assert seen.version is None
    assert "Nothing is in production" in seen.says


def test_too_few_fresh_labels_count_neither_way(store: Store, tmp_path: Path, model: Path) -> None:
    """9 of 10: nothing is scored or stored, and they wait for the tenth."""
    version = _promoted(store, model, UNREACHABLE)
    store.put("pairs/b.jsonl", _pairs(100, 9))
    seen = _look(store, tmp_path)
    assert (seen.version, seen.windows) == (version, [])
    assert "At most 9 queries" in seen.says
    store.put("pairs/c.jsonl", _pairs(200, 1))
    assert [(one.first, one.last, one.queries) for one in _look(store, tmp_path).windows] == [(2, 3, 10)]


def test_queries_that_the_model_knew_are_not_fresh(store: Store, tmp_path: Path, model: Path) -> None:
    """The same queries in other spelling are known ones, even with another document."""
    _promoted(store, model, UNREACHABLE)
    rows = ({"query": f"WHERE is  part {i}?", "document": f"elsewhere {i}"} for i in range(30))
    store.put("pairs/b.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    seen = _look(store, tmp_path)
    assert seen.windows == []
    assert seen.says.startswith("0 queries with fresh labels")


def test_the_corpus_is_that_of_the_promotion_and_the_fresh_documents(
    store: Store, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what arrived in other windows: a corpus that grows makes every model look worse."""
    from tasks import scoring

    asked = []
    score = scoring.score_side

    def spy(test, documents, *arguments, **named):  # type: ignore[no-untyped-def]
        asked.append((len(test), len(documents)))
        return score(test, documents, *arguments, **named)

    monkeypatch.setattr(scoring, "score_side", spy)
    _promoted(store, model, GOOD)
    for place in (1, 2):
        store.put(f"pairs/{place}.jsonl", _pairs(100 * place, 12))
        _look(store, tmp_path)
    assert asked == 4 * [(12, 52)], "what serves, and the base model, in each of two windows"


def test_drift_needs_two_windows_and_a_window_is_scored_once(store: Store, tmp_path: Path, model: Path) -> None:
    """One window below is not drift, a second is; looking again adds nothing, and production is the same bytes."""
    version = _promoted(store, model, UNREACHABLE)
    before = store.get("production.json").body
    store.put("pairs/b.jsonl", _pairs(100, 40))
    first = _look(store, tmp_path)
    assert first.windows[0].below
    assert first.drifted_since is None
    store.put("pairs/c.jsonl", _pairs(200, 40))
    second = _look(store, tmp_path)
    assert (second.drifted_since, len(second.windows)) == (3, 2)
    again = _look(store, tmp_path)
    assert (again.windows, again.drifted_since) == (second.windows, 3)
    assert [entry.key for entry in store.entries("watch/")] == [f"watch/{version}/{n:012d}.json" for n in (2, 3)]
    assert store.get("production.json").body == before


def test_a_night_still_counts_labels_as_new_that_the_watch_took_in(store: Store, tmp_path: Path, model: Path) -> None:
    """Exactly once, by whoever comes first: what is new to a night is what came after the last night's commit."""
    from tasks import night

    _promoted(store, model, GOOD)
    store.put("pairs/b.jsonl", _pairs(100, 7))
    _look(store, tmp_path)
    taken = night.take_in(store, "20261102T033000Z-00000000", 1)
    assert (taken.new, taken.counts["accepted"]) == (7, 47)


def test_a_model_that_no_night_trained_is_not_scored(store: Store, tmp_path: Path, model: Path) -> None:
    """Promoted by hand: which labels it has seen is not known, and that is said."""
    version = registry.publish(store, model, serving.describe(model, ()))
    registry.promote(store, version, None, run_id="by hand", who="test", reason="test", scores=GOOD)
    assert "not known what version" in _look(store, tmp_path).says


def test_nights_without_a_promotion_are_counted(store: Store, tmp_path: Path) -> None:
    """Held, regressed, blocked and failed nights count; skipped ones had nothing to promote."""
    verdicts = ("held", "skipped", "regressed", "blocked", "skipped", "failed")
    for day, verdict in enumerate(verdicts, 1):
        run = Run(store, f"202611{day:02d}T033000Z-00000000")
        run.put_outcome(Outcome(run_id=run.run_id, verdict=verdict, reasons=[], commit=1))
    (still,) = _look(store, tmp_path, Watch(max_nights=4)).standstill
    assert (still.what, still.passed, still.times) == ("nights", 4, 1)
    assert _look(store, tmp_path, Watch(max_nights=5)).standstill == []


def test_labels_for_a_few_documents_wait(store: Store, tmp_path: Path, model: Path) -> None:
    """Twenty queries for four documents say little about the rest; with a fifth they make a window."""
    _promoted(store, model, GOOD)
    rows = ({"query": f"what about item {i}", "document": f"manual {i % 4}"} for i in range(20))
    store.put("pairs/b.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    seen = _look(store, tmp_path)
    assert seen.windows == []
    assert "all for 4 documents" in seen.says
    store.put("pairs/c.jsonl", b'{"query": "and the fifth one", "document": "another manual"}\n')
    assert [window.queries for window in _look(store, tmp_path).windows] == [21]


def test_a_window_shows_the_lift_over_the_base_model(store: Store, tmp_path: Path, model: Path) -> None:
    """The version is the base model here, so the lift is nothing; the first promotion is compared with base as well."""
    _promoted(store, model, GOOD)
    store.put("pairs/b.jsonl", _pairs(100, 12))
    seen = _look(store, tmp_path)
    (window,) = seen.windows
    assert window.base == {name: window.scores[name] for name in ("recall_at_10", "mrr")}
    assert window.before is not None
    assert (window.before.version, window.before.sums["mrr"]) == (None, 0.0)
    assert "+0.000 over the base model" in seen.says
    assert seen.confirmation is None, "not before 100 queries"


def test_a_promotion_that_was_wrong_is_told_once_with_the_command(store: Store, tmp_path: Path, model: Path) -> None:
    """A model whose vectors are all the same finds nothing: beside the base model that shows on 100 queries."""
    collapsed = tmp_path / "collapsed"
    broken = SentenceTransformer(str(model), device="cpu")
    with torch.no_grad():
        for weights in broken.parameters():
            weights.zero_()
        broken[0].auto_model.encoder.layer[-1].output.LayerNorm.bias.fill_(1.0)
    broken.save(str(collapsed), create_model_card=False)
    version = _promoted(store, model, GOOD, served=collapsed)
    outcome = Outcome(
        run_id="20261101T033000Z-00000000",
        verdict="promoted",
        reasons=[],
        commit=1,
        deltas={"mrr": Delta(value=0.022, low=0.01, high=0.03, confidence=0.99)},
    )
    Run(store, outcome.run_id).put_outcome(outcome)
    store.put("pairs/b.jsonl", _pairs(100, 110))
    seen = _look(store, tmp_path)
    assert seen.confirmation is not None
    assert seen.confirmation.wrong
    assert "(at promotion +2.2)" in seen.says
    (told,) = (one for one in news(seen) if one.event == "ratchet.production.wrong")
    assert "ratchet rollback --to base --reason" in told.message.text
    assert "its night told +2.2" in told.message.text
    assert told.identity == f"wrong-{version}-2"
    store.put("pairs/c.jsonl", _pairs(300, 100))
    assert [one.identity for one in news(_look(store, tmp_path)) if one.event == told.event] == [told.identity]
