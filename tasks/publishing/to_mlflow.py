"""A version in an MLflow registry: its files and report as artefacts of a run, and an alias for what serves.

No flavour of MLflow is used: those save a model anew, with pickles. The files are uploaded as they are, and the version
of the registered model points to them. Whatever is there already is kept, so that a second try makes no second version.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tasks.publishing.job import MODEL, REPORT, Job

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_ALIAS: Final = "production"
_VERSION: Final = "ratchet.version"


class _AddressError(Exception):
    """There is no server to publish to."""


def publish(job: Job, folder: Path) -> str:
    """Register the version and let the alias point to it; returns its address, such as `models:/search/3`.

    Where the base model serves the alias is taken away: it is not a version of the registry.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address.startswith(("http://", "https://")):
        raise _AddressError("MLFLOW_TRACKING_URI must be the address of an MLflow server, http(s)://...")
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise _AddressError("mlflow-skinny is not installed: pip install 'ratchet[mlflow]'") from error

    client = MlflowClient(tracking_uri=address, registry_uri=address)
    _ensure_model(client, job.name)
    if job.version is None:
        client.delete_registered_model_alias(job.name, _ALIAS)
        return f"models:/{job.name}, without the alias {_ALIAS}: the base model serves"
    number = _registered(client, job) or _register(client, job, folder)
    client.set_registered_model_alias(job.name, _ALIAS, number)
    return f"models:/{job.name}/{number}"


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import RestException

    try:
        client.create_registered_model(name, description="Promoted by Ratchet; the alias production is what serves.")
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _registered(client: MlflowClient, job: Job) -> str | None:
    """The number of the version in the registry; of two that were made at once the first counts."""
    tagged = client.search_model_versions(f"tag.`{_VERSION}` = '{job.version}'")
    found: list[ModelVersion] = [one for one in tagged if one.name == job.name]
    if not found:
        return None
    first, *more = sorted(found, key=lambda one: int(one.version))
    for one in more:
        client.delete_model_version(job.name, one.version)
    return str(first.version)


def _register(client: MlflowClient, job: Job, folder: Path) -> str:
    """Upload files and report to a run, and make a version of it."""
    run_id = _run(client, job)
    client.log_artifacts(run_id, str(folder / MODEL), MODEL)
    if (folder / REPORT).is_file():
        client.log_artifact(run_id, str(folder / REPORT))
    client.set_terminated(run_id)
    source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL}"
    client.create_model_version(job.name, source, run_id, tags=job.tags, description=f"{job.title}. {job.reason}")
    return str(_registered(client, job))


def _run(client: MlflowClient, job: Job) -> str:
    """The run that carries parameters, metrics and files: that of an interrupted try, or a new one."""
    from mlflow.entities import Metric, Param

    experiment = client.get_experiment_by_name(job.name)
    identity = client.create_experiment(job.name) if experiment is None else experiment.experiment_id
    found = client.search_runs([identity], f"tags.`{_VERSION}` = '{job.version}'", max_results=1)
    run = found[0] if found else client.create_run(identity, tags=job.tags, run_name=job.tags.get("ratchet.run_id"))
    moment = run.info.start_time
    client.log_batch(
        run.info.run_id,
        [Metric(name, value, moment, 0) for name, value in job.metrics.items()],
        [Param(name, value) for name, value in job.parameters.items()],
    )
    return str(run.info.run_id)
