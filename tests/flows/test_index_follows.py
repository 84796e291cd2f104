"""A change of production starts a reindex of its store, on the real stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

from deployments.server import deploy
from deployments.server.settings import Settings
from deployments.stack import local
from tasks import alerts, index
from tasks.storage import Store
from tests.flows.nights import wait_for

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


def _ended() -> Any:
    """The run of the deployment, once it has ended."""
    name = DeploymentFilterName(any_=["after-promotion"])
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(deployment_filter=DeploymentFilter(name=name))
    return next((run for run in runs if run.state is not None and run.state.is_final()), None)
