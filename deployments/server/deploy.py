"""Brings a Prefect server into line with the settings: work pools, deployments, notification blocks, automations.

Deploying again changes nothing. What people changed in the UI stays: a paused schedule, a disabled automation, the job
template of a pool.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import yaml

from deployments.places import DEPLOYMENTS, POOLS, ROOT
from deployments.server import automations, channels, differences, index_secret, pools
from deployments.server.settings import Settings


class DeployError(Exception):
    """The Prefect server did not take the deployments; the message says what it or Prefect said."""


def deploy(
    settings: Settings, *, kind: pools.Kind = "process", environment: Mapping[str, str], dry_run: bool = False
) -> list[str]:
    """Set up everything that the settings ask for; returns a line for each difference.

    Args:
        settings: What is wanted.
        kind: Type of a work pool that is still missing.
        environment: Where the secrets of channels and `RATCHET_CODE` are looked up, and where Prefect's own command
            looks for the server.
        dry_run: Say what differs, and change nothing.

    Raises:
        DeployError: A channel has no secret, or the server does not take something.
    """
    # the secrets first: without one nothing is changed at all
    blocks: dict[str, UUID | None] = {}
    lines: list[str] = []
    try:
        for name, channel in settings.channels.items():
            channels.ensure(name, channel, environment, dry_run=True)
        index_secret.ensure(settings.index, environment, dry_run=True)
        for name, channel in settings.channels.items():
            block = channels.ensure(name, channel, environment, dry_run=dry_run)
            blocks[name] = block.document
            lines += block.changes
        lines += index_secret.ensure(settings.index, environment, dry_run=dry_run)
    except (channels.ChannelError, index_secret.IndexSecretError) as error:
        raise DeployError(str(error)) from None
    wanted = read(DEPLOYMENTS, settings)
    lines += ensure_pools(kind, dry_run=dry_run)
    lines += compare(wanted, environment)
    if not dry_run:
        register(wanted, environment)
    return lines + automations.apply(settings, blocks, dry_run=dry_run)


def ensure_pools(kind: pools.Kind = "process", *, dry_run: bool = False) -> list[str]:
    """Create the work pools `cpu` and `gpu` where they are missing; existing ones keep their type and settings."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    lines = []
    with get_client(sync_client=True) as client:
        for name in POOLS:
            try:
                client.read_work_pool(name)
            except ObjectNotFound:
                lines.append(f"work pool {name}: new, {kind}")
                if dry_run:
                    continue
                pool = WorkPoolCreate(name=name, type=kind, base_job_template=pools.template(name, kind))
                try:
                    client.create_work_pool(pool)
                except ObjectAlreadyExists:  # somebody else deployed at the same moment
                    continue
    return lines


# --- deployments -----------------------------------------------------------------------------------------


def read(file: Path, settings: Settings) -> dict[str, Any]:
    """A `prefect.yaml` with the settings in it: schedules by their slug, the store, what the watch looks for."""
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    crons = {"nightly": settings.schedule.cron, "hourly": settings.schedule.watch_cron}
    watch = settings.watch.model_dump(mode="json", exclude_defaults=True)
    gate = settings.gate.model_dump(mode="json", exclude_defaults=True)
    for deployment in content["deployments"]:
        # the same list may be in several places of the file
        deployment["schedules"] = [
            {**schedule, "cron": crons[schedule["slug"]], "timezone": settings.schedule.timezone}
            for schedule in deployment.get("schedules", ())
        ]
        given = dict(deployment.get("parameters", {}))
        if settings.store.url and _flow(deployment) != "fine-tune":  # the night tells its fine-tuning
            given["store"] = settings.store.url
        if watch and _flow(deployment) == "watch-production":
            given["watch"] = watch
        if settings.index.target and _flow(deployment) == "reindex":
            given["target"] = settings.index.target
        if gate and _flow(deployment) == "retrain":
            given["gate"] = gate
        deployment["parameters"] = given
    return content


def compare(wanted: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """What differs between the deployments on the server and those of a `prefect.yaml`, as lines of text."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    lines = []
    with get_client(sync_client=True) as client:
        for deployment in wanted["deployments"]:
            name = f"{_flow(deployment)}/{deployment['name']}"
            try:
                found = client.read_deployment_by_name(name)
            except ObjectNotFound:
                lines.append(f"deployment {name}: new")
                continue
            lines += differences.changes(
                f"deployment {name}", _found(found), _expected(deployment, wanted["pull"], _code(environment))
            )
    return lines


def _found(deployment: Any) -> dict[str, Any]:
    """A deployment on the server, as far as its file says anything about it."""
    limit, options = deployment.global_concurrency_limit, deployment.concurrency_options
    return {
        "entrypoint": deployment.entrypoint,
        "description": deployment.description,
        "tags": sorted(deployment.tags),
        "parameters": deployment.parameters,
        "schedules": {
            one.slug: {"cron": getattr(one.schedule, "cron", None), "timezone": getattr(one.schedule, "timezone", None)}
            for one in deployment.schedules
        },
        "concurrency_limit": {
            "limit": limit.limit if limit else None,
            "collision_strategy": options.collision_strategy.value if options else None,
        },
        "work_pool": deployment.work_pool_name,
        "job_variables": deployment.job_variables,
        "pull": deployment.pull_steps,
    }


def _expected(deployment: Mapping[str, Any], pull: Any, code: str) -> dict[str, Any]:
    """A deployment as its file asks for it, in the same form as `_found`."""
    limit = deployment.get("concurrency_limit", {})
    return {
        "entrypoint": deployment["entrypoint"],
        "description": deployment.get("description"),
        "tags": sorted(deployment.get("tags", ())),
        "parameters": deployment.get("parameters", {}),
        "schedules": {
            one["slug"]: {"cron": one["cron"], "timezone": one["timezone"]} for one in deployment.get("schedules", ())
        },
        "concurrency_limit": {
            "limit": limit.get("limit"),
            "collision_strategy": limit.get("collision_strategy"),
        },
        "work_pool": deployment["work_pool"]["name"],
        "job_variables": deployment["work_pool"].get("job_variables", {}),
        "pull": [
            {step: {key: value.replace("{{ $RATCHET_CODE }}", code) for key, value in inputs.items()}}
            for one in pull
            for step, inputs in one.items()
        ],
    }


def _flow(deployment: Mapping[str, Any]) -> str:
    """The name of a deployment's flow: Prefect derives it from the function's in the same way."""
    return str(deployment["entrypoint"]).rpartition(".")[2].replace("_", "-")


def _code(environment: Mapping[str, str]) -> str:
    """The folder with the packages as the workers see it: this one, unless `RATCHET_CODE` says otherwise."""
    return environment.get("RATCHET_CODE") or str(ROOT)


def register(wanted: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Register every deployment of a `prefect.yaml`, given as `read` returns it.

    Prefect's own command does it, in a process of its own. Raises DeployError with Prefect's words when that fails.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder, "prefect.yaml")
        file.write_text(yaml.safe_dump(dict(wanted), sort_keys=False))
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--all"],
            cwd=ROOT,
            env={**os.environ, **environment, "RATCHET_CODE": _code(environment)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise DeployError(f"prefect deploy failed:\n{(done.stdout + done.stderr)[-3000:]}")
