"""One local stack for every test in this folder that needs real servers and workers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

import flows.retrain
from deployments.server import deploy
from deployments.server.settings import Settings
from deployments.stack import local
from tasks import night
from tasks.config import Model
from tasks.storage import Store
from tests.flows.receiver import Receiver, receiving
from tests.models import published

SETTINGS = Settings.model_validate({"channels": {"hook": {"kind": "webhook", "secret_env": "HOOK"}}})
"""One channel for all alerts: where `hook` receives."""


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.Stack]:
    """A running stack with the real deployments; its folder has a space in its name, as people's folders do."""
    with local.running(tmp_path_factory.mktemp("a stack") / "state") as running:
        yield running


@contextmanager
def client_of(stack: local.Stack) -> Iterator[local.Stack]:
    """Make this process and its children clients of a stack: flows report to its server and use its store."""
    environment = stack.environment()
    settings = {
        PREFECT_API_URL: environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: environment["PREFECT_API_AUTH_STRING"],
    }
    with pytest.MonkeyPatch.context() as patch, temporary_settings(settings):
        for name, value in environment.items():
            patch.setenv(name, value)
        yield stack


@pytest.fixture(scope="module")
def on_stack(stack: local.Stack) -> Iterator[local.Stack]:
    """The stack, with this process as its client."""
    with client_of(stack):
        yield stack


@pytest.fixture(scope="module")
def client(on_stack: local.Stack) -> Iterator[SyncPrefectClient]:
    """The API of the stack's server."""
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def hook(on_stack: local.Stack) -> Iterator[Receiver]:
    """A receiver that every alert is deployed to; afterwards the stack is as it was."""
    with receiving() as receiver:
        deploy.deploy(SETTINGS, environment={**on_stack.environment(), "HOOK": receiver.url})
        yield receiver
        deploy.deploy(Settings(), environment=on_stack.environment())
        with get_client(sync_client=True) as client:
            client.delete_block_document(client.read_block_document_by_name("ratchet-hook", "custom-webhook").id)


@pytest.fixture
def night_store(on_stack: local.Stack) -> Store:
    """An empty store of its own on the stack."""
    return Store.open(on_stack.store(f"test-{uuid.uuid4().hex}"))


@pytest.fixture
def better(night_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store whose next night finds a better candidate, without training it; its version."""
    version = published(night_store, tmp_path / "candidate", b"candidate")
    rows = ({"query": f"how is part {i} made", "document": f"part {i} is cast from iron"} for i in range(150))
    night_store.put("pairs/a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    judged = night.Judged("promoted", ["better"], Model(version=version, scores={"mrr": 0.7}), Model())
    monkeypatch.setattr(flows.retrain, "fine_tune", lambda *_, **__: None)
    monkeypatch.setattr(night, "judge", lambda *_: judged)
    return version
