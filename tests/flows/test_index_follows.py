"""An index that follows what serves, on the real stack: by itself, by commands, after nights of either side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from typer.testing import CliRunner

from deployments.cli import app
from deployments.cli.common import console
from deployments.server import deploy
from deployments.server.settings import Settings
from deployments.stack import local
from flows.reindex import reindex
from flows.retrain import retrain
from flows.rollback import rollback
from tasks import alerts, index, runs
from tasks.index import filling
from tasks.registry import pull
from tasks.runs import Run
from tasks.splits import SPLIT_KEY
from tasks.storage import Store
from tests import tiny_models
from tests.flows.nights import wait_for
from tests.test_query_night import CHECKS, GATE, SPLIT, fill, settings
from tests.test_query_side import files_of as document_files

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_index_follows_a_change_of_production(on_stack: local.Stack, tmp_path: Path) -> None:
    """The event of any store of the server starts a run on that store; its documents are served when it has ended."""
    store = Store.open(on_stack.store("followed"))
    rows = ({"id": f"d{i}", "text": f"document {i}"} for i in range(20))
    store.put("documents/a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    target = f"lancedb:{tmp_path / 'index'}"
    with_index = Settings.model_validate({"index": {"target": target}})
    try:
        assert "automation 'ratchet: let the index follow': new" in deploy.deploy(
            with_index, environment=on_stack.environment()
        )
        assert deploy.deploy(with_index, environment=on_stack.environment(), dry_run=True) == []
        alerts.announce_production(store.url, {"promotion": 1})
        run = wait_for("the reindex", _ended)
        assert run.state_name == "Completed"
        assert run.parameters["store"] == store.url
        opened = index.open_target(target, store=store.url, work=tmp_path)
        live = opened.live()
        assert live is not None
        assert live.contents.count == 20
    finally:
        deploy.deploy(Settings(), environment=on_stack.environment())


def test_queries_alone_leave_documents_and_index_and_a_rollback_takes_both_back(
    on_stack: local.Stack, night_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nights, reindexes and rollbacks on a real Prefect server: the first night scores on Ray, the second one stays."""
    monkeypatch.setenv("RATCHET_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(filling, "_LEAST", 4)
    store, target = night_store, f"lancedb:{tmp_path / 'index'}"
    base = tiny_models.save(tmp_path / "base")
    store.put(SPLIT_KEY, SPLIT)
    fill(store, 0, 200)
    with_ray = settings(base, side="both", epochs=1, scoring_workers=1)
    first = retrain(store=store.url, training=with_ray, gate=GATE, checks=CHECKS)
    assert (first.verdict, first.index) == ("promoted", "moves"), first.reasons
    assert "texts were encoded on Ray in" in Run(store, first.run_id).read(runs.SCORED).on_ray
    built = reindex(store=store.url, target=target)
    assert (built.model, built.promotion, built.encoded) == (first.production_after, 1, 0)  # by the night
    before = _files(tmp_path / "index")

    fill(store, 200, 288)
    second = retrain(store=store.url, training=settings(base), gate=GATE, checks=CHECKS)
    assert (second.verdict, second.index) == ("promoted", "stays"), second.reasons
    pointer = json.loads(store.get("production.json").body)
    assert (pointer["index"], pointer["fingerprint"]["index"]) == ("stays", "stays")
    one, two = (pull(store, str(night.production_after), tmp_path / night.run_id) for night in (first, second))
    assert document_files(two) == document_files(one)
    assert _files(tmp_path / "index") == before
    opened = index.open_target(target, store=store.url, work=tmp_path)
    assert index.follow(opened, index.find_serving(store, tmp_path / "work")) is not None
    live = opened.live()
    assert live is not None
    assert (live.index.name, live.model, live.promotion) == (built.index, second.production_after, 2)
    assert {path: body for path, body in _files(tmp_path / "index").items() if path in before} == before

    _ratchet("rollback", "--reason", "a test", "--store", store.url)
    assert json.loads(store.get("production.json").body)["index"] == "stays"
    said = _ratchet("reindex", "--store", store.url, "--target", target)
    assert f"serves version {first.production_after}" in said
    grown = opened.live()
    assert grown is not None
    assert grown.contents.count > live.contents.count  # documents that came with the second night's pairs
    assert rollback(store=store.url, to_version="base", reason="a test")["index"] == "moves"
    moved = reindex(store=store.url, target=target, base_model=str(base))
    assert (moved.model, moved.followed) == ("base", None)
    rollback(store=store.url, to_version=str(first.production_after), reason="back once more")
    back = reindex(store=store.url, target=target)
    assert (back.followed, back.index, back.encoded, back.loaded) == (grown.index.name, grown.index.name, 0, 0)


def _files(folder: Path) -> dict[str, bytes]:
    """The tables of a LanceDB folder, without the record of what serves."""
    paths = (path for path in folder.rglob("*") if path.is_file() and ".lance" in str(path.relative_to(folder)))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _ratchet(*arguments: str) -> str:
    """What a command prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "_file", None)
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def _ended() -> Any:
    """The run of the deployment, once it has ended."""
    name = DeploymentFilterName(any_=["after-promotion"])
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(deployment_filter=DeploymentFilter(name=name))
    return next((run for run in runs if run.state is not None and run.state.is_final()), None)
