"""What a night says when objects are removed, refused or cannot be read: with too few pairs, so that none trains."""

from __future__ import annotations

import json

import pytest

from flows.retrain import retrain
from tasks import erasure
from tasks.config import Limits, Outcome
from tasks.storage import Store

pytestmark = pytest.mark.stack


def _fill(store: Store, *names: str) -> None:
    for name in names:
        rows = ({"query": f"{name} {i}?", "document": f"document {i} of {name}"} for i in range(5))
        store.put(f"pairs/{name}.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def _night(store: Store, limits: Limits | None = None) -> Outcome:
    outcome = retrain(store=store.url, limits=limits or Limits())
    assert Outcome.model_validate_json(store.get(f"runs/{outcome.run_id}/outcome.json").body) == outcome
    return outcome


def test_a_removal_is_a_change_and_many_at_once_wait_for_a_word(night_store: Store) -> None:
    """An object gone: the checks run again. Most of them gone: blocked, until it is confirmed."""
    _fill(night_store, *"abcd")
    assert "Enough pairs: 20" in _night(night_store).reasons[0]
    night_store.delete(["pairs/a.jsonl"])
    removed = _night(night_store)
    assert "No new pairs" not in " ".join(removed.reasons)
    assert (removed.counts["accepted"], removed.counts["removed"], removed.commit) == (15, 1, 2)

    night_store.delete(["pairs/b.jsonl", "pairs/c.jsonl"])
    blocked = _night(night_store)
    assert (blocked.verdict, blocked.commit) == ("blocked", 2)
    assert "2 of 3 known objects are gone" in blocked.reasons[0]
    confirmed = _night(night_store, Limits(max_removed_share=1.0))
    assert (confirmed.verdict, confirmed.counts["accepted"]) == ("skipped", 5)


def test_an_outcome_names_what_was_refused_and_what_could_not_be_read(night_store: Store) -> None:
    """With the nights in a row; what is removed is no longer named, and a night after an erasure ends in a verdict."""
    _fill(night_store, *"abcd")
    night_store.put("pairs/junk.csv", "a;b\n".encode("utf-16") + "x;y\n".encode("utf-16-le") * 499)
    secret = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}
    key = f"{night_store.prefix}pairs/locked.jsonl"
    night_store._client.put_object(Bucket=night_store.bucket, Key=key, Body=b"rows", **secret)
    night_store.put("pairs/_SUCCESS", b"")

    first = _night(night_store)
    assert [refused.key for refused in first.refused] == ["pairs/junk.csv"]
    assert [(unread.key, unread.nights) for unread in first.pending] == [("pairs/locked.jsonl", 1)]
    said = "\n".join(first.reasons)
    assert "Refused: pairs/junk.csv (about" in said
    assert "Could not be read for 1 night: pairs/locked.jsonl: cannot read" in said
    assert "Ignored as side files: pairs/_SUCCESS." in said

    night_store.delete(["pairs/junk.csv"])
    second = _night(night_store)
    assert second.refused == []
    assert "junk.csv" not in "\n".join(second.reasons)
    assert [(unread.nights, unread.since) for unread in second.pending] == [(2, first.run_id)]

    wanted = erasure.select(night_store, query="b 3?")
    with pytest.raises(erasure.StubbornError, match=r"pairs/locked\.jsonl"):  # it may hold the text as well
        erasure.carry_out(night_store, wanted, erasure.find(night_store, wanted))
    night_store.delete(["pairs/locked.jsonl"])
    erasure.carry_out(night_store, wanted, erasure.find(night_store, wanted))
    third = _night(night_store)
    assert (third.verdict, third.counts["accepted"], third.pending) == ("skipped", 19, [])
