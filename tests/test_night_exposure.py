"""A night's steps on a real store with a tiny model: what training saw of the test queries reaches the verdict."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import BufferReader

from tasks import night, registry, runs
from tasks.config import Checks, Gate, Training
from tasks.runs import Run
from tasks.splits import SPLIT_KEY
from tasks.storage import Store
from tests import docs, tiny_models

SPLIT = b'{"rule": 1, "salt": "queries of every kind on both sides", "dev": 0.05, "test": 0.3}'
FIRST, SECOND = "20261101T033000Z-00000000", "20261102T033000Z-00000000"


def _pairs(first: int, count: int) -> bytes:
    """Every document answers three queries, of which two nearly repeat each other, on any side of the split."""
    rng = random.Random(first)
    names = ("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(count))
    rows = (
        {"query": query, "document": f"shelf {first + i} holds {name}"}
        for i, name in enumerate(names)
        for query in (f"where is {name}", f"{name} spare bolts to order", f"{name} spare bolt to order")
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _night(store: Store, run_id: str, base: Path, work: Path) -> night.Judged:
    training = Training(base_model=str(base), max_length=16, matryoshka_dims=(), learning_rate=1e-2)
    begun = night.begin(store, run_id)
    commit = night.take_in(store, run_id, begun.last_commit).commit
    checks = Checks(max_leaked_share=1)
    night.check(store, run_id, commit, 0, str(base), checks)
    night.check_leaks(store, run_id, commit, checks)
    candidate = night.train(store, run_id, commit, training, work, production=begun.version)
    night.score(store, run_id, commit, candidate.version, begun.version, training, Gate(), work)
    return night.judge(store, run_id, Gate(), checks)


def _columns(store: Store, run_id: str) -> dict[str, list[object]]:
    table = pq.read_table(BufferReader(store.get(Run(store, run_id).key(runs.PER_QUERY)).body))
    return dict(table.to_pydict())


def test_what_training_saw_reaches_the_verdict(store: Store, tmp_path: Path) -> None:
    """Documents that production alone was trained on are not new; near duplicates are marked; guard sets speak."""
    base = tiny_models.save(tmp_path)
    store.put(SPLIT_KEY, SPLIT)
    store.put("pairs/a.jsonl", _pairs(0, 40))
    _night(store, FIRST, base, tmp_path)
    first = _columns(store, FIRST)
    assert {"document", "similarity", "near_duplicate", "new_document"} <= first.keys()
    assert any(first["near_duplicate"]), "bolts in the train side, bolt in the test side"
    assert not all(first["near_duplicate"])

    version = Run(store, FIRST).read(runs.CANDIDATE).version
    registry.promote(store, version, None, run_id=FIRST, who="test", reason="test", scores={"mrr": 0.5})
    store.put("pairs/b.jsonl", _pairs(100, 12))
    store.put("guard/general/corpus.jsonl", b'{"_id": "1", "text": "a fox"}\n{"_id": "2", "text": "dogs"}\n')
    store.put("guard/general/queries.jsonl", b'{"_id": "1", "text": "fox"}\n')
    store.put("guard/general/qrels/test.tsv", b"1\t1\t1\n")
    store.put("guard/broken/corpus.jsonl", b"{")
    judged = _night(store, SECOND, base, tmp_path)
    broken, general = judged.guards
    assert (broken.verdict, general.queries, set(general.deltas)) == ("not judged", 1, {"recall_at_10", "mrr"})
    assert judged.verdict != "promoted"
    assert any("guard/broken/: there is no qrels/test.tsv" in reason for reason in judged.reasons)
    assert docs.undescribed(entry.key for entry in store.entries("")) == []
    scored = Run(store, SECOND).read(runs.SCORED)
    assert scored.by_similarity[-1].queries > 0
    decision = json.loads(store.get(Run(store, SECOND).key(runs.DECISION)).body)
    assert decision["near_duplicates"] == sum(map(bool, _columns(store, SECOND)["near_duplicate"]))
    assert any("says nothing about new documents" in reason for reason in judged.reasons)
    lines = [json.loads(line) for line in store.get(Run(store, SECOND).key(runs.TO_JUDGE)).body.splitlines()]
    assert lines
    assert all(line.keys() == {"query", "document", "relevant"} for line in lines)
