"""Draining a worker on the real stack: runs under way end in peace, what falls due meanwhile waits and is not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate

from deployments.server import drain, pools
from deployments.server.drain import DrainError
from deployments.stack import guard, local

pytestmark = pytest.mark.stack


@contextmanager
def _probe_in_a_pool_of_its_own() -> Iterator[tuple[SyncPrefectClient, str, Callable[[float], UUID]]]:
    """A pool that no other test uses, and a way to start runs in it that only wait for some seconds."""
    pool = f"drain-{uuid.uuid4().hex[:8]}"
    steps = [{"prefect.deployments.steps.set_working_directory": {"directory": str(local.ROOT)}}]
    with get_client(sync_client=True) as client:
        client.create_work_pool(
            WorkPoolCreate(name=pool, type="process", base_job_template=pools.template("cpu", "process"))
        )
        flow = client.create_flow_from_name("probe")
        deployment = client.create_deployment(
            flow, name=pool, entrypoint="tests.flows.probe.probe", work_pool_name=pool, pull_steps=steps
        )

        def start(seconds: float) -> UUID:
            return client.create_flow_run_from_deployment(deployment, parameters={"seconds": seconds}).id

        try:
            yield client, pool, start
        finally:
            client.delete_deployment(deployment)
            client.delete_work_pool(pool)


@contextmanager
def _worker(stack: local.Stack, pool: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker on a pool, ended with the block if it still runs then."""
    environment = {**os.environ, **stack.environment(), guard.MARK: stack.mark, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"],
        cwd=stack.state, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _until(what: str, found: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.2)


def _state(client: SyncPrefectClient, run: UUID) -> str | None:
    return client.read_flow_run(run).state_name


@pytest.mark.slow
def test_a_worker_is_drained_stopped_and_started_again(on_stack: local.Stack, tmp_path: Path) -> None:
    """The run under way completes though its worker is stopped right after; the one that fell due runs afterwards."""
    mark = tmp_path / "drained"
    with _probe_in_a_pool_of_its_own() as (client, pool, start):
        with _worker(on_stack, pool) as worker:
            first = start(6.0)
            _until("the first run", lambda: _state(client, first) == "Running")
            told: list[list[str]] = []
            assert drain.drain(pool, patience=0.0, settle=0.5, mark=mark) == [client.read_flow_run(first).name]
            second = start(0.0)
            assert drain.drain(pool, patience=120, settle=2.0, mark=mark, on_wait=told.append) == []
            assert _state(client, first) == "Completed"
            assert told[0] == [client.read_flow_run(first).name]
            assert told[-1] == []
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)
        assert client.read_work_pool(pool).is_paused
        assert _state(client, second) in {"Scheduled", "Late"}
        assert drain.resume(pool, mark=mark)
        assert not mark.exists()
        with _worker(on_stack, pool):
            _until("the second run", lambda: _state(client, second) == "Completed")


def test_a_pool_that_a_person_paused_stays_paused(on_stack: local.Stack, tmp_path: Path) -> None:
    """The start of a worker opens only what the stop of a worker has closed."""
    mark = tmp_path / "drained"
    with _probe_in_a_pool_of_its_own() as (client, pool, _):
        assert drain.drain(pool, patience=30, settle=0.2) == []  # by hand: without a mark
        assert drain.drain(pool, patience=30, settle=0.2, mark=mark) == []  # by the service
        assert not drain.resume(pool, mark=mark)
        assert client.read_work_pool(pool).is_paused
        assert drain.resume(pool)
        assert not client.read_work_pool(pool).is_paused


def test_a_pool_that_does_not_exist_is_named(on_stack: local.Stack) -> None:
    """Neither drained nor opened: a typing error in the service's name must be seen."""
    with pytest.raises(DrainError, match="no work pool 'gqu'"):
        drain.drain("gqu", patience=5)
    with pytest.raises(DrainError, match="no work pool 'gqu'"):
        drain.resume("gqu")


def test_drain_does_not_take_silence_for_emptiness(on_stack: local.Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the API is away nobody knows whether runs are under way: the drain goes on waiting, and says so."""
    import httpx

    away = threading.Event()
    asked = drain._under_way

    def unreachable(client: SyncPrefectClient, pool: str) -> list[str]:
        if away.is_set():
            raise httpx.ConnectError("away")
        return asked(client, pool)

    monkeypatch.setattr(drain, "_under_way", unreachable)
    with _probe_in_a_pool_of_its_own() as (_, pool, _start):
        away.set()
        assert drain.drain(pool, patience=2.0, settle=0.3) == ["(the Prefect API has not answered yet)"]
        away.clear()
        assert drain.drain(pool, patience=30, settle=0.3) == []
