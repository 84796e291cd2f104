"""Each run as OpenLineage events: START when it begins, COMPLETE, ABORT (blocked, cancelled) or FAIL when it ends.

They go to the transport that the standard configuration of openlineage-python names (`OPENLINEAGE_URL`,
`openlineage.yml`, ...); where none does, nothing is sent. A receiver that is slow or away costs a run some seconds and
nothing else. https://openlineage.io/spec/2-0-2/OpenLineage.json
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import NAMESPACE_URL, uuid5

from tasks.config import Outcome
from tasks.storage import Store

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent
    from openlineage.client.generated.base import RunFacet

_logger = logging.getLogger(__name__)

_SECONDS: Final = 10.0
"""So long a run waits for an event to be taken, and no longer."""

_PRODUCER: Final = "urn:ratchet"
_JOB: Final = "retrain"
_MOST_CHARACTERS: Final = 2000
"""Of the message of a run that failed."""


def started(store: Store, run_id: str) -> None:
    """Tell that a run has begun."""
    _send(lambda: _event("START", store, run_id))


def ended(store: Store, outcome: Outcome) -> None:
    """Tell what a run came to: the rows that it worked with, and the versions that it made and compared."""
    state = {"failed": "FAIL", "blocked": "ABORT"}.get(outcome.verdict, "COMPLETE")
    _send(lambda: _event(state, store, outcome.run_id, outcome))


def cancelled(store: Store, run_id: str) -> None:
    """Tell that a run was stopped from outside."""
    _send(lambda: _event("ABORT", store, run_id))


def _send(make: Callable[[], RunEvent]) -> None:
    """Hand an event to the configured transport, in a thread that is waited for only so long. Raises nothing."""
    if not _is_configured():
        return

    def send() -> None:
        try:
            client = _client()
            if client is not None:
                client.emit(make())
                client.close(_SECONDS)
        except Exception:  # whatever a transport raises: a run does not depend on it
            _logger.warning("the lineage of this run was not sent", exc_info=True)

    sender = threading.Thread(target=send, name="lineage", daemon=True)
    sender.start()
    sender.join(_SECONDS)
    if sender.is_alive():
        _logger.warning("the lineage of this run was not taken within %.0f s, and is no longer waited for", _SECONDS)


def _is_configured() -> bool:
    """Whether openlineage-python would find a configuration; without one it would print events."""
    named = any(
        name in {"OPENLINEAGE_URL", "OPENLINEAGE_CONFIG"} or name.startswith("OPENLINEAGE__") for name in os.environ
    )
    return named or any((folder / "openlineage.yml").is_file() for folder in (Path.cwd(), Path.home() / ".openlineage"))


def _client() -> OpenLineageClient | None:
    try:
        from openlineage.client import OpenLineageClient
    except ImportError:
        _logger.warning("OpenLineage is configured, but openlineage-python is missing: pip install ratchet[lineage]")
        return None
    client = OpenLineageClient()
    by_default = client.transport.kind == "console" and not (client.config.transport or {}).get("type")
    return None if by_default else client


def _event(state: str, store: Store, run_id: str, outcome: Outcome | None = None) -> RunEvent:
    """One event. Its run has the same UUID in all of them, at every attempt."""
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import job_type_job

    job_type = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="RATCHET", jobType="JOB")
    return RunEvent(
        eventTime=datetime.now(UTC).isoformat(),
        producer=_PRODUCER,
        run=Run(str(uuid5(NAMESPACE_URL, f"{store.url}/runs/{run_id}")), facets=dict(_run_facets(run_id, outcome))),
        job=Job(os.environ.get("OPENLINEAGE_NAMESPACE", "ratchet"), _JOB, facets={"jobType": job_type}),
        eventType=RunState[state],
        inputs=list(_inputs(store, outcome)) if outcome else [],
        outputs=list(_outputs(store, outcome)) if outcome else [],
    )


def _run_facets(run_id: str, outcome: Outcome | None) -> Iterator[tuple[str, RunFacet]]:
    from openlineage.client.facet_v2 import error_message_run, nominal_time_run, processing_engine_run, tags_run

    due = datetime.strptime(run_id[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    yield "nominalTime", nominal_time_run.NominalTimeRunFacet(due.isoformat())
    engine = processing_engine_run.ProcessingEngineRunFacet(
        version=importlib.metadata.version("ratchet"),
        name="ratchet",
        openlineageAdapterVersion=importlib.metadata.version("openlineage-python"),
    )
    yield "processing_engine", engine
    words = {"run_id": run_id} | ({"verdict": outcome.verdict} if outcome else {})
    tags = [tags_run.TagsRunFacetFields(key, value, "RATCHET") for key, value in words.items()]
    yield "tags", tags_run.TagsRunFacet(tags=tags)
    if outcome is not None and outcome.verdict in {"failed", "blocked"}:
        message = " ".join(outcome.reasons)[:_MOST_CHARACTERS]
        yield "errorMessage", error_message_run.ErrorMessageRunFacet(message=message, programmingLanguage="PYTHON")


def _inputs(store: Store, outcome: Outcome) -> Iterable[InputDataset]:
    """The pairs of the commit, and the version that the candidate was compared with."""
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset, input_statistics_input_dataset

    version = dataset_version_dataset.DatasetVersionDatasetFacet
    rows = outcome.counts.get("accepted")
    if outcome.commit and rows is not None:
        statistics = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(rowCount=rows)
        yield InputDataset(
            *_named(store, "pairs"),
            facets={"version": version(str(outcome.commit))},
            inputFacets={"inputStatistics": statistics},
        )
    if outcome.production and outcome.production.version:
        yield InputDataset(
            *_model(store, outcome.production.version), facets={"version": version(outcome.production.version)}
        )


def _outputs(store: Store, outcome: Outcome) -> Iterable[OutputDataset]:
    """The candidate, and, where it was promoted, production."""
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset, lifecycle_state_change_dataset

    version = dataset_version_dataset.DatasetVersionDatasetFacet
    if outcome.candidate is None or outcome.candidate.version is None:
        return
    name = outcome.candidate.version
    yield OutputDataset(*_model(store, name), facets={"version": version(name)})
    if outcome.verdict == "promoted":
        change = lifecycle_state_change_dataset.LifecycleStateChange.OVERWRITE
        changed = lifecycle_state_change_dataset.LifecycleStateChangeDatasetFacet(lifecycleStateChange=change)
        facets = {"version": version(name), "lifecycleStateChange": changed}
        yield OutputDataset(*_named(store, "production.json"), facets=facets)


def _model(store: Store, version: str) -> tuple[str, str]:
    return _named(store, f"models/{version}")


def _named(store: Store, key: str) -> tuple[str, str]:
    """Namespace and name of a dataset on S3, as OpenLineage has them: the bucket, and the key."""
    return f"s3://{store.bucket}", f"{store.prefix}{key}"
