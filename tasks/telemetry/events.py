"""One event of OpenLineage: which run of which job it is, in which state, and what the run read and made.

https://openlineage.io/spec/2-0-2/OpenLineage.json
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from tasks.config import Outcome
from tasks.storage import Store

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent
    from openlineage.client.generated.base import DatasetFacet, RunFacet

State = Literal["START", "COMPLETE", "ABORT", "FAIL"]

_PRODUCER: Final = "urn:ratchet"
_MOST_CHARACTERS: Final = 2000
"""Of the message of a run that failed."""


@dataclass(frozen=True)
class _Dataset:
    """A data set by namespace and name, as OpenLineage has them; `changed`: in the place of an earlier version."""

    namespace: str
    name: str
    version: str
    rows: int | None = None
    changed: bool = False


@dataclass
class Lineage:
    """One run of a job, and what it has read and made by now."""

    store: Store
    job: str
    run_id: str
    tags: dict[str, str] = field(default_factory=dict)
    message: str = ""
    inputs: list[_Dataset] = field(default_factory=list)
    outputs: list[_Dataset] = field(default_factory=list)

    def reads(self, key: str, version: str, rows: int | None = None) -> None:
        """Note something under the store's prefix as an input."""
        self.inputs.append(_Dataset(*self._named(key), version, rows))

    def reads_model(self, version: str | None) -> None:
        """Note a version as an input; the base model is none of the store's."""
        if version is not None:
            self.reads(f"models/{version}", version)

    def makes(self, key: str, version: str, *, changed: bool = False) -> None:
        """Note something under the store's prefix as an output."""
        self.outputs.append(_Dataset(*self._named(key), version, changed=changed))

    def fills(self, target: str | None, index: str, rows: int) -> None:
        """Note an index of documents as an output, in PostgreSQL or in a folder of LanceDB."""
        if target is not None and target.startswith("postgres"):
            parts = urlsplit(target)
            # several hosts, as libpq takes them, have no port that urlsplit can read
            host = parts.netloc.rpartition("@")[2] or "localhost"
            where = f"postgres://{host}" if re.search(r":\d+$", host) else f"postgres://{host}:5432"
            self.outputs.append(_Dataset(where, f"{parts.path.lstrip('/')}.{index}", index, rows))
        else:
            self.outputs.append(
                _Dataset("file", f"{(target or 'index').removeprefix('lancedb:')}/{index}", index, rows)
            )

    def _named(self, key: str) -> tuple[str, str]:
        """Namespace and name of an object on S3: the bucket, and the key."""
        return f"s3://{self.store.bucket}", f"{self.store.prefix}{key}"


def of_outcome(store: Store, outcome: Outcome) -> Lineage:
    """A night: the pairs of its commit and the version it compared with; the candidate and, if promoted, production."""
    told = Lineage(store, "retrain", outcome.run_id, {"verdict": outcome.verdict})
    if outcome.verdict in {"failed", "blocked"}:
        told.message = " ".join(outcome.reasons)
    rows = outcome.counts.get("accepted")
    if outcome.commit and rows is not None:
        told.reads("pairs", str(outcome.commit), rows)
    told.reads_model(outcome.production.version if outcome.production else None)
    candidate = outcome.candidate.version if outcome.candidate else None
    if candidate is not None:
        told.makes(f"models/{candidate}", candidate)
        if outcome.verdict == "promoted":
            told.makes("production.json", candidate, changed=True)
    return told


def event(state: State, told: Lineage) -> RunEvent:
    """The event. A run has the same UUID in all of them, at every attempt."""
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import job_type_job

    job_type = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="RATCHET", jobType="JOB")
    run = str(uuid5(NAMESPACE_URL, f"{told.store.url}/runs/{told.run_id}"))
    return RunEvent(
        eventTime=datetime.now(UTC).isoformat(),
        producer=_PRODUCER,
        run=Run(run, facets=dict(_run_facets(told))),
        job=Job(os.environ.get("OPENLINEAGE_NAMESPACE", "ratchet"), told.job, facets={"jobType": job_type}),
        eventType=RunState[state],
        inputs=[_input(one) for one in told.inputs],
        outputs=[_output(one) for one in told.outputs],
    )


def _run_facets(told: Lineage) -> Iterator[tuple[str, RunFacet]]:
    from openlineage.client.facet_v2 import error_message_run, nominal_time_run, processing_engine_run, tags_run

    due = datetime.strptime(told.run_id[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    yield "nominalTime", nominal_time_run.NominalTimeRunFacet(due.isoformat())
    engine = processing_engine_run.ProcessingEngineRunFacet(
        version=importlib.metadata.version("ratchet"),
        name="ratchet",
        openlineageAdapterVersion=importlib.metadata.version("openlineage-python"),
    )
    yield "processing_engine", engine
    words = {"run_id": told.run_id} | told.tags
    tags = [tags_run.TagsRunFacetFields(key, value, "RATCHET") for key, value in words.items()]
    yield "tags", tags_run.TagsRunFacet(tags=tags)
    if told.message:
        message = told.message[:_MOST_CHARACTERS]
        yield "errorMessage", error_message_run.ErrorMessageRunFacet(message=message, programmingLanguage="PYTHON")


def _facets(one: _Dataset) -> Mapping[str, DatasetFacet]:
    from openlineage.client.facet_v2 import dataset_version_dataset, lifecycle_state_change_dataset

    found: dict[str, DatasetFacet] = {"version": dataset_version_dataset.DatasetVersionDatasetFacet(one.version)}
    if one.changed:
        change = lifecycle_state_change_dataset.LifecycleStateChange.OVERWRITE
        found["lifecycleStateChange"] = lifecycle_state_change_dataset.LifecycleStateChangeDatasetFacet(
            lifecycleStateChange=change
        )
    return found


def _input(one: _Dataset) -> InputDataset:
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import input_statistics_input_dataset

    rows = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(rowCount=one.rows)
    statistics = {} if one.rows is None else {"inputStatistics": rows}
    return InputDataset(one.namespace, one.name, facets=dict(_facets(one)), inputFacets=dict(statistics))


def _output(one: _Dataset) -> OutputDataset:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset

    rows = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=one.rows)
    statistics = {} if one.rows is None else {"outputStatistics": rows}
    return OutputDataset(one.namespace, one.name, facets=dict(_facets(one)), outputFacets=dict(statistics))
