"""What containers and Kubernetes jobs would run, run without them: the rendered command in the rendered environment.

There is no Docker engine and no cluster here. But a container's command and environment are all that a run is, besides
its files: started as a process they show that a run finds its API, its password and its code, and what an evicted
pod does.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
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
from prefect.exceptions import PrefectHTTPStatusError
from prefect_docker.worker import DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from deployments.server import pools
from deployments.server.pools import Kind
from deployments.stack import local

pytestmark = pytest.mark.stack

PROBE = "tests.flows.probe.probe"


@contextmanager
def _pool(client: SyncPrefectClient, pool: str, kind: Kind) -> Iterator[str]:
    """A work pool of its own name, with the stored template."""
    name = f"{pool}-{kind}-{uuid.uuid4().hex[:6]}"
    client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=pools.template(pool, kind)))
    try:
        yield name
    finally:
        client.delete_work_pool(name)


@pytest.mark.parametrize("kind", pools.KINDS)
@pytest.mark.parametrize("pool", pools.POOLS)
def test_the_server_takes_every_template(on_stack: local.Stack, pool: str, kind: Kind) -> None:
    """It validates templates when a pool is made, and keeps them as they are."""
    with get_client(sync_client=True) as client, _pool(client, pool, kind) as name:
        assert client.read_work_pool(name).base_job_template == pools.template(pool, kind)


@pytest.mark.parametrize("variables", [{"command": "sh -c id"}, {"env": {"PYTHONPATH": "/theirs"}}, {"image": "x"}])
def test_the_server_refuses_job_variables_that_run_code(on_stack: local.Stack, variables: dict[str, Any]) -> None:
    """Neither a run nor a new deployment may set them; what is executed is what the pool says."""
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name("retrain/nightly")
        path = f"/deployments/{nightly.id}/create_flow_run"
        with pytest.raises(PrefectHTTPStatusError, match="Additional properties are not allowed"):
            client._client.post(path, json={"job_variables": variables})
        with pytest.raises(PrefectHTTPStatusError, match="Additional properties are not allowed"):
            client.create_deployment(
                nightly.flow_id, name="theirs", entrypoint=PROBE, work_pool_name="cpu", job_variables=variables
            )


def test_prefects_own_command_takes_a_stored_template(on_stack: local.Stack) -> None:
    """`prefect work-pool create --base-job-template`, as the page says."""
    name = f"gpu-{uuid.uuid4().hex[:6]}"
    subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "work-pool", "create", name, "--type", "kubernetes",
         "--base-job-template", pools.path("gpu", "kubernetes")],
        env={**os.environ, **on_stack.environment()}, cwd=on_stack.state, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with get_client(sync_client=True) as client:
        assert client.read_work_pool(name).base_job_template == pools.template("gpu", "kubernetes")
        client.delete_work_pool(name)


@contextmanager
def _run(pool: str, kind: Kind, seconds: float) -> Iterator[tuple[SyncPrefectClient, str, UUID]]:
    """A run of the probe in a pool of this kind, which no worker polls."""
    steps = [{"prefect.deployments.steps.set_working_directory": {"directory": str(local.ROOT)}}]
    with get_client(sync_client=True) as client, _pool(client, pool, kind) as name:
        flow = client.create_flow_from_name("probe")
        deployment = client.create_deployment(
            flow, name=name, entrypoint=PROBE, work_pool_name=name, pull_steps=steps,
            job_variables={"store": "s3://ratchet/main"},
        )  # fmt: skip
        try:
            yield client, name, client.create_flow_run_from_deployment(deployment, parameters={"seconds": seconds}).id
        finally:
            client.delete_deployment(deployment)


def _rendered(kind: Kind, pool: str, run: UUID) -> Any:
    """What a worker of this kind would start for a run: it asks the server as a worker does."""
    configurations: dict[Kind, Any] = {
        "docker": DockerWorkerJobConfiguration,
        "kubernetes": KubernetesWorkerJobConfiguration,
    }

    async def render() -> Any:
        async with get_client() as client:
            return await configurations[kind].resolve_for_flow_run(
                await client.read_flow_run(run),
                client=client,
                work_pool=await client.read_work_pool(pool),
                worker_name="worker-1",
            )

    return asyncio.run(render())


def _start(command: str | list[str], environment: dict[str, str], home: Path) -> subprocess.Popen[bytes]:
    """The command as a process, with a folder in place of what is mounted and nothing else of this environment."""
    arguments = shlex.split(command) if isinstance(command, str) else command
    assert arguments[0] == "prefect"
    inside = {name: value.replace("/var/lib/ratchet", str(home)) for name, value in environment.items()}
    with (home / "log").open("ab") as log:
        return subprocess.Popen(
            [Path(sys.executable).with_name("prefect"), *arguments[1:]],
            env={"PATH": os.environ["PATH"], "HOME": str(home), "NO_PROXY": "127.0.0.1", "RATCHET_STACK": "", **inside},
            cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def _until(what: str, found: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline, f"waited in vain for {what}:\n{log.read_text(errors='replace')[-3000:]}"
        time.sleep(0.3)


@pytest.mark.slow
def test_a_containers_command_runs_with_the_password_from_the_mounted_profile(
    on_stack: local.Stack, tmp_path: Path
) -> None:
    """The password is in the mounted file and nowhere in what the Docker engine is told."""
    with _run("gpu", "docker", 0.0) as (client, pool, run):
        configuration = _rendered("docker", pool, run)
        password = on_stack.environment()["PREFECT_API_AUTH_STRING"]
        assert password not in str(configuration.model_dump())
        assert configuration.env["RATCHET_STORE"] == "s3://ratchet/main"
        (tmp_path / "profiles.toml").write_text(
            f'active = "run"\n[profiles.run]\nPREFECT_API_AUTH_STRING = "{password}"\n'
        )
        environment = {
            **configuration.env,
            "PREFECT_PROFILES_PATH": str(tmp_path / "profiles.toml"),
            # on a bridge network this is the host; here we are on the host
            "PREFECT_API_URL": configuration.env["PREFECT_API_URL"].replace("host.docker.internal", "127.0.0.1"),
        }
        process = _start(configuration.command, environment, tmp_path)
        assert process.wait(120) == 0, (tmp_path / "log").read_text(errors="replace")[-3000:]
        assert client.read_flow_run(run).state_name == "Completed"


@pytest.mark.slow
def test_an_evicted_pods_run_is_scheduled_anew_and_completes(on_stack: local.Stack, tmp_path: Path) -> None:
    """SIGTERM, as Kubernetes sends it to a pod that must go: the run waits for its next pod instead of hanging."""
    with _run("gpu", "kubernetes", 6.0) as (client, pool, run):

        def pod() -> subprocess.Popen[bytes]:
            manifest = _rendered("kubernetes", pool, run).job_manifest
            (container,) = manifest["spec"]["template"]["spec"]["containers"]
            environment = {entry["name"]: entry["value"] for entry in container["env"]}
            password = on_stack.environment()["PREFECT_API_AUTH_STRING"]
            assert password not in str(manifest)
            assert "PREFECT_API_AUTH_STRING" not in environment
            # what the Secret of `envFrom` adds
            return _start(container["args"], {**environment, "PREFECT_API_AUTH_STRING": password}, tmp_path)

        first = pod()
        _until("the run", lambda: client.read_flow_run(run).state_name == "Running", tmp_path / "log")
        first.send_signal(signal.SIGTERM)
        first.wait(60)
        assert client.read_flow_run(run).state_name == "AwaitingRetry"
        assert pod().wait(120) == 0, (tmp_path / "log").read_text(errors="replace")[-3000:]
        assert client.read_flow_run(run).state_name == "Completed"
