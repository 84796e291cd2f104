"""A store whose nights were run by an older version goes on: its labels, its model, its ledger, its history."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.retrain import retrain
from flows.rollback import rollback
from flows.watch_production import watch_production
from tasks import intake, registry, runs
from tasks.config import Checks, Gate, Training, Watch
from tasks.storage import Store
from tests.fixtures import OLD_STORE, fill_from

pytestmark = pytest.mark.stack

VERSION = "7c0e39691b7a3088"
"""What serves in it, and was promoted by its first night."""

NEW_PAIRS = 60
TRAINING = Training(
    base_model="base",
    start_from="production",
    epochs=2,
    batch_size=32,
    learning_rate=1e-3,
    max_length=32,
    matryoshka_dims=(16,),
    precision="fp32",
)
"""From what serves: so what the older version wrote of its own training is read."""


@pytest.fixture
def old_store(night_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store as the older version left it; the base model has the relative path that it had then."""
    fill_from(OLD_STORE, night_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_WORK", str(tmp_path / "work"))
    return night_store


def test_a_night_goes_on_where_the_older_version_stopped(old_store: Store) -> None:
    """It takes only what is new, compares with what serves, and the records of the older nights can be read."""
    rows = [{"query": f"find quick dog {i}", "document": f"the fox jumps {i} over {i % 7}"} for i in range(NEW_PAIRS)]
    old_store.put("pairs/dt=2026-11-02/b.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    outcome = retrain(
        store=old_store.url,
        reason="the next night",
        training=TRAINING,
        gate=Gate(min_test_queries=20, max_serving_slowdown=100.0),
        checks=Checks(max_leaked_share=1.0),
    )

    assert outcome.verdict in {"held", "regressed", "promoted"}, outcome.reasons
    assert outcome.commit == 2
    assert outcome.counts["new"] == NEW_PAIRS
    assert outcome.counts["accepted"] == 330 + NEW_PAIRS
    assert outcome.production_before == VERSION
    assert outcome.production is not None
    assert outcome.production.version == VERSION
    earlier = [runs.Run(old_store, run).outcome for run in sorted(old_store.folders("runs/"))[:2]]
    assert [found.verdict for found in earlier if found] == ["promoted", "skipped"]
    assert registry.history(old_store)[0].version == VERSION
    assert [row.reason for row in intake.quarantined(old_store)]


def test_what_the_older_version_promoted_can_be_watched_pulled_and_is_kept(old_store: Store, tmp_path: Path) -> None:
    """The watch knows what the model was trained on; nothing new has come since."""
    seen = watch_production(store=old_store.url, watch=Watch(min_queries=10))
    assert seen["version"] == VERSION
    assert "At most 0 queries" in seen["says"]
    registry.pull_production(old_store, tmp_path / "model")
    with pytest.raises(registry.RegistryError):
        rollback(store=old_store.url, to_version="0123456789abcdef")
    assert registry.history(old_store)[-1].version == VERSION
