"""Nights beside other tools: what Prometheus and OpenLineage get, and that neither can change a verdict.

Nothing is trained: the candidate is a version that was published before.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import flows.retrain
from flows.reindex import reindex
from flows.retrain import retrain
from flows.rollback import rollback
from flows.watch_production import watch_production
from tasks import registry
from tasks.config import Outcome
from tasks.encoding import ModelError
from tasks.storage import Store, StoreError
from tasks.telemetry import lineage
from tasks.telemetry.metrics import METRICS
from tests.lineage import receiving, unconfigured

pytestmark = pytest.mark.stack


def assert_promoted(store: Store, outcome: Outcome, version: str) -> None:
    """The verdict, the pointer and the ledger are those of a night that nothing disturbed."""
    assert outcome.verdict == "promoted", outcome.reasons
    stored = Outcome.model_validate_json(store.get(f"runs/{outcome.run_id}/outcome.json").body)
    assert (stored.verdict, stored.production_after) == ("promoted", version)
    (change,) = registry.history(store)
    assert (change.version, change.run_id, change.promotion) == (version, outcome.run_id, 1)
    assert store.get("production.json").body == store.get("promotions/000000000001.json").body


def test_a_night_leaves_metrics_and_lineage(better: str, night_store: Store, tmp_path: Path) -> None:
    """A promotion, then a night with nothing new: two runs, with a start and an end each."""
    with receiving(tmp_path) as receiver:
        outcome = retrain(store=night_store.url)
        assert_promoted(night_store, outcome, better)
        before = night_store.get("production.json").body
        assert retrain(store=night_store.url).verdict == "skipped"
    assert night_store.get("production.json").body == before
    assert receiver.states == ["START", "COMPLETE", "START", "COMPLETE"]
    first, second = ({event["run"]["runId"] for event in receiver.events[i : i + 2]} for i in (0, 2))
    assert len(first) == len(second) == 1
    assert first != second
    assert [one["name"] for one in receiver.events[1]["outputs"]] == [
        f"{night_store.prefix}models/{better}",
        f"{night_store.prefix}production.json",
    ]
    text = night_store.get(METRICS).body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    counted = {s.labels["verdict"]: s.value for s in samples if s.name == "ratchet_runs_total"}
    assert (counted["promoted"], counted["skipped"], counted["failed"]) == (1, 1, 0)
    assert [s.labels["version"] for s in samples if s.name == "ratchet_production_info"] == [better]


def test_every_other_flow_is_a_run_as_well(better: str, night_store: Store, tmp_path: Path) -> None:
    """Watch, reindex (bytes are no model: it fails, with the reason) and rollback; metrics follow a rollback."""
    retrain(store=night_store.url)
    with receiving(tmp_path) as receiver:
        watch_production(store=night_store.url)
        with pytest.raises(ModelError):
            reindex(store=night_store.url, target=f"lancedb:{tmp_path / 'index'}", workers=0)
        rollback(store=night_store.url, to_version=registry.BASE, reason="worse for us")
    told = [(event["job"]["name"], event["eventType"]) for event in receiver.events]
    assert told == [
        ("watch-production", "START"), ("watch-production", "COMPLETE"),
        ("reindex", "START"), ("reindex", "FAIL"),
        ("rollback", "START"), ("rollback", "COMPLETE"),
    ]  # fmt: skip
    assert f"{night_store.prefix}models/{better}" in [one["name"] for one in receiver.events[1]["inputs"]]
    assert "ModelError" in receiver.events[3]["run"]["facets"]["errorMessage"]["message"]
    assert [one["name"] for one in receiver.events[5]["outputs"]] == [f"{night_store.prefix}production.json"]
    assert b'ratchet_production_info{version="base",action="rollback"' in night_store.get(METRICS).body


def test_what_other_tools_do_wrong_changes_no_verdict(
    better: str, night_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics cannot be written, and nobody takes the lineage: promoted, and production as in any other night."""
    put = Store.put

    def refused(self: Store, key: str, body: bytes) -> str:
        if key == METRICS:
            raise StoreError("cannot write metrics.txt: AccessDenied")
        return put(self, key, body)

    monkeypatch.setattr(Store, "put", refused)
    monkeypatch.setattr(lineage, "_SECONDS", 0.1)
    with unconfigured(tmp_path) as patch:
        patch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
        outcome = retrain(store=night_store.url)
    assert_promoted(night_store, outcome, better)
    assert night_store.find(METRICS) is None


def test_a_night_that_breaks_off_is_told(
    better: str, night_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a failure with its reason; by somebody who stops it, as an abort."""

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the power went")

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with receiving(tmp_path) as receiver:
        monkeypatch.setattr(flows.retrain, "fine_tune", fails)
        with pytest.raises(RuntimeError):
            retrain(store=night_store.url)
        monkeypatch.setattr(flows.retrain, "fine_tune", stopped)
        with pytest.raises(KeyboardInterrupt):
            retrain(store=night_store.url, force=True)
    assert receiver.states == ["START", "FAIL", "START", "ABORT"]
    assert "the power went" in receiver.events[1]["run"]["facets"]["errorMessage"]["message"]
    assert registry.read_production(night_store) is None
    assert b'{verdict="failed"} 1' in night_store.get(METRICS).body
    del better
