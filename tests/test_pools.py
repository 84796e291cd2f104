"""Base job templates, rendered by Prefect's own workers: nothing is run, what would be run is read and validated."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from docker.models.containers import _create_container_args
from docker.types import ContainerConfig
from prefect.client.schemas.objects import Flow, FlowRun, WorkPool
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    temporary_settings,
)
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from deployments.server import pools
from deployments.server.pools import Kind

ROOT = Path(__file__).parent.parent
EVERY = [(pool, kind) for pool in pools.POOLS for kind in pools.KINDS]
CONFIGURATIONS: dict[Kind, type[BaseJobConfiguration]] = {
    "process": ProcessJobConfiguration,
    "docker": DockerWorkerJobConfiguration,
    "kubernetes": KubernetesWorkerJobConfiguration,
}
API = "https://prefect.example.org/api"
PASSWORD = "ratchet:of-the-worker"
KUBERNETES = ("1.29", "1.33", "1.37")


def _render(pool: str, kind: Kind, values: dict[str, Any] | None = None) -> Any:
    """What a worker would start for a run: its own configuration class fills in the template."""
    template = pools.template(pool, kind)
    run = FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="brave-otter")
    of = WorkPool(id=uuid.uuid4(), name=pool, type=kind, base_job_template=template)
    settings = {PREFECT_API_URL: API, PREFECT_API_AUTH_STRING: PASSWORD, PREFECT_HOME: Path("/home/worker")}
    with temporary_settings(settings):
        configuration = asyncio.run(
            CONFIGURATIONS[kind].from_template_and_values(template, values or {}, client=contextlib.nullcontext())
        )
        configuration.prepare_for_flow_run(run, flow=Flow(name="fine-tune"), work_pool=of, worker_name="worker-1")
    return configuration


def _job(pool: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The manifest of a Kubernetes job."""
    manifest: dict[str, Any] = _render(pool, "kubernetes", values).job_manifest
    return manifest


def _container(pool: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The body of the request that creates a Docker container, made by the worker and by docker-py."""

    class Engine:
        """As much of a client as the worker asks before it creates a container."""

        def version(self) -> dict[str, str]:
            return {"Version": "28.0.0"}

    configuration = _render(pool, "docker", values)
    settings = DockerWorker._build_container_settings(None, Engine(), configuration)
    given = _create_container_args({**settings, "version": "1.47"})
    return dict(ContainerConfig("1.47", **{name: value for name, value in given.items() if name != "name"}))


@pytest.mark.parametrize(("pool", "kind"), EVERY)
def test_stored_templates_are_what_the_installed_prefect_and_our_additions_give(pool: str, kind: Kind) -> None:
    """An upgrade of Prefect that changes a default is seen here; the module, run as a program, writes them anew."""
    assert pools.template(pool, kind) == pools.build(pool, kind)


@pytest.mark.parametrize(("pool", "kind"), [("tpu", "process"), ("gpu", "ecs"), ("../x", "docker")])
def test_an_unknown_pool_or_kind_is_refused_in_words(pool: str, kind: Any) -> None:
    """The message names what there is."""
    with pytest.raises(ValueError, match=r"pools: cpu, gpu; kinds: process, docker, kubernetes"):
        pools.template(pool, kind)


@pytest.mark.parametrize(("pool", "kind"), EVERY)
def test_every_run_beats_its_heart_and_needs_no_worker_to_listen(pool: str, kind: Kind) -> None:
    """Runs outlive a killed worker, a silent one is noticed, and a Prefect server that restarts costs no night."""
    configuration = _render(pool, kind)
    assert configuration.stream_output is False
    found = configuration.env
    if isinstance(found, list):
        found = {entry["name"]: entry["value"] for entry in found}
    assert found["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"
    assert found["PREFECT_LOGGING_EXTRA_LOGGERS"] == "tasks"
    assert found["PREFECT_CLIENT_MAX_RETRIES"] == "7"
    assert found["PREFECT_API_URL"] == API


CODE: dict[str, Any] = {
    "command": "sh -c id",
    "working_dir": "/theirs",
    "image": "theirs:1",
    "volumes": ["/:/host"],
    "privileged": True,
    "networks": ["host"],
    "network_mode": "host",
    "registry_credentials": {"username": "theirs"},
    "container_create_kwargs": {"privileged": True},
    "namespace": "theirs",
    "service_account_name": "theirs",
    "secret_name": "theirs",
    "cluster_config": {"config": {}, "context_name": "theirs"},
    "job_manifest": {},
    "args": ["theirs"],
}
"""Job variables with which a run or a deployment could run other code, or get at other things."""


@pytest.mark.parametrize(("pool", "kind"), EVERY)
def test_job_variables_choose_neither_code_nor_rights(pool: str, kind: Kind) -> None:
    """They change nothing of what a worker starts, and none of them is a variable that the server would take."""
    variables = pools.template(pool, kind)["variables"]
    assert variables["additionalProperties"] is False
    assert not {"env", *CODE} & set(variables["properties"])
    found, usual = (_render(pool, kind, values).model_dump(mode="json") for values in (CODE, {}))
    runs = re.compile("[0-9a-f]{8}-[0-9a-f-]{27}")  # each has ids of its own
    assert runs.sub("", str(found)) == runs.sub("", str(usual))
    assert "theirs" not in str(found)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
@pytest.mark.parametrize("pool", pools.POOLS)
def test_no_secret_of_the_worker_is_written_into_what_it_starts(pool: str, kind: Kind) -> None:
    """The worker's password for the API would be a plain value in `docker inspect` and in the job's manifest."""
    rendered = _job(pool) if kind == "kubernetes" else _container(pool)
    assert PASSWORD.split(":")[1] not in json.dumps(rendered)
    assert "/home/worker" not in json.dumps(rendered)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("pool", pools.POOLS)
def test_jobs_are_valid_kubernetes(pool: str, version: str) -> None:
    """Against the published schemas, unknown fields refused; but for two that Prefect itself insists to misplace."""
    manifest = _job(pool, {"store": "s3://bucket/prefix", "s3_endpoint": "https://s3.example.org", "cpu_limit": "8"})
    kubernetes_validate.validate(manifest, version)
    pod = manifest["spec"]["template"]["spec"]
    assert (pod.pop("completions"), pod.pop("parallelism")) == (1, 1)  # Kubernetes warns of them and goes on
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_of_a_job_would_be_noticed() -> None:
    """The validation above can fail."""
    manifest = _job("gpu")
    pod = manifest["spec"]["template"]["spec"]
    pod["terminationGraceSeconds"] = pod.pop("terminationGracePeriodSeconds")
    del pod["completions"], pod["parallelism"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES[-1], strict=True)


def test_a_gpu_job_asks_for_what_training_needs() -> None:
    """A GPU and a node that has one, shared memory, time for a checkpoint, an ordinary user, its secrets by name."""
    pod = _job("gpu")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == pools.IMAGE
    assert container["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": 1}
    assert container["resources"]["requests"] == {"cpu": "4", "memory": "16Gi"}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["terminationGracePeriodSeconds"] == 300
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pools.USER
    assert {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}} in pod["volumes"]
    assert {volume["name"] for volume in pod["volumes"] if "Memory" in str(volume)} == {"shared-memory"}
    assert {"name": "TMPDIR", "value": pools._HOME} in container["env"]
    assert {"name": "RATCHET_REQUIRE_GPU", "value": "1"} in container["env"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["envFrom"] == [{"secretRef": {"name": "ratchet"}}]
    # a value here would win over the Secret's
    assert "PREFECT_API_AUTH_STRING" not in {entry["name"] for entry in container["env"]}


def test_a_cpu_job_takes_no_gpu() -> None:
    """Nor a node that has one."""
    pod = _job("cpu")["spec"]["template"]["spec"]
    assert "gpu" not in json.dumps(pod)
    assert pod["nodeSelector"] == {}
    assert pod["tolerations"] == []


def test_variables_reach_the_job() -> None:
    """What a deployment or a run may set."""
    values = {
        "gpus": 4,
        "node_selector": {"zone": "a"},
        "shm_size": "8Gi",
        "store": "s3://bucket/prefix",
    }
    pod = _job("gpu", values)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert pod["nodeSelector"] == {"zone": "a"}
    assert pod["volumes"][0]["emptyDir"]["sizeLimit"] == "8Gi"
    assert container["envFrom"] == [{"secretRef": {"name": "ratchet"}}]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert env["RATCHET_STORE"] == "s3://bucket/prefix"
    assert "AWS_ENDPOINT_URL" not in env  # not set: the one of AWS


def test_a_gpu_container_asks_for_what_training_needs() -> None:
    """The same for Docker: device request, shared memory, an ordinary user, secrets as files of the host."""
    body = _container("gpu", {"store": "s3://bucket/prefix"})
    host = body["HostConfig"]
    assert host["DeviceRequests"] == [
        {"Driver": "nvidia", "Count": 1, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}
    ]
    assert host["ShmSize"] == 2 * 1024**3
    assert host["Memory"] == 16 * 1024**3
    assert host["Init"] is True
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Binds"] == ["ratchet-work:/var/lib/ratchet", "/etc/ratchet/run:/run/secrets/ratchet:ro"]
    assert host["AutoRemove"] is True
    # in memory, and small: what is large goes to the volume
    assert host["Tmpfs"] == {"/tmp": "rw,nosuid,nodev,size=64m"}  # noqa: S108
    assert f"TMPDIR={pools._HOME}" in body["Env"]
    assert "RATCHET_REQUIRE_GPU=1" in body["Env"]
    assert host.get("Privileged", False) is False
    assert body["User"] == f"{pools.USER}:{pools.USER}"
    assert body["Image"] == pools.IMAGE
    assert "RATCHET_STORE=s3://bucket/prefix" in body["Env"]


def test_a_cpu_container_takes_no_gpu() -> None:
    """No device is asked for."""
    assert "DeviceRequests" not in _container("cpu")["HostConfig"]


def test_the_mounted_profile_is_where_a_container_finds_the_password(tmp_path: Path) -> None:
    """Prefect reads it from the file that the Docker template names."""
    profiles = tmp_path / "profiles.toml"
    profiles.write_text(
        f'active = "run"\n[profiles.run]\nPREFECT_API_AUTH_STRING = "{PASSWORD}"\nPREFECT_API_URL = "{API}"\n'
    )
    code = "from prefect.settings import get_current_settings as s; print(s().api.auth_string.get_secret_value())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PREFECT_PROFILES_PATH": str(profiles), "PREFECT_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert found.stdout.strip() == PASSWORD
    assert "PREFECT_PROFILES_PATH=/run/secrets/ratchet/profiles.toml" in _container("gpu")["Env"]


def test_the_image_carries_the_version_of_the_project() -> None:
    """A new version is a new image."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert pools.IMAGE.endswith(f":{version}")
