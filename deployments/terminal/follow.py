"""Starting a deployment and following its run, and the runs it starts, in the terminal."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, get_args
from uuid import UUID

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from deployments.terminal.text import escape
from tasks.config import Outcome, Verdict
from tasks.runs import backwards
from tasks.storage import Store, StoreError, normalise

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, Log

_POLL_SECONDS: Final = 1.5
_AWAY_SECONDS: Final = 120.0


_PLUMBING: Final = re.compile(
    r"Running \d+ deployment pull|Executing deployment step|Deployment step '|All deployment steps|Beginning |"
    r"Finished in state |Encountered exception during execution|Engine execution exited|Worker '|Flow run '|"
    rf"(?:{'|'.join(get_args(Verdict))}): "
)
"""What Prefect itself says about every run, and the verdict, which is shown in full when the run has ended."""


class RunError(Exception):
    """The run could not be started, or ended without a verdict; the message says how."""


def night(console: Console, store: Store, deployment: str, parameters: dict[str, Any]) -> Outcome:
    """Run a night by deployment, show how it goes, and return its outcome.

    Raises RunError when the deployment is unknown or the API is away, and when the run ends without an outcome.
    """
    run = under_way(deployment, store)
    if run is None:
        run = start(deployment, parameters)
    else:
        console.print("a run of this deployment on this store is under way already: following that one")
    final = follow(console, run)
    outcome = find_outcome(store, run)
    if outcome is None:
        raise RunError(
            f"the run ended {final} without an outcome"
            + ("; another run of the deployment was under way" if final == "Cancelled" else "")
        )
    return outcome


def under_way(deployment: str, store: Store) -> UUID | None:
    """The run of a deployment that works on this store now, or None: as when a terminal was closed over it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            return None
        except httpx.HTTPError as error:
            raise RunError(f"the Prefect API does not answer: {error}; is PREFECT_API_URL right?") from error
        chosen = FlowRunFilter.model_validate(
            {
                "deployment_id": {"any_": [found.id]},
                "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}},
                "expected_start_time": {"before_": datetime.now(UTC)},
            }
        )
        for run in client.read_flow_runs(flow_run_filter=chosen):
            if _address(run.parameters.get("store")) == store.url:
                return run.id
    return None


def _address(store: object) -> str | None:
    """The store that a run was started with, as stores spell it; None where it named none."""
    with suppress(StoreError):
        return normalise(store) if isinstance(store, str) else None
    return None


def start(deployment: str, parameters: dict[str, Any]) -> UUID:
    """Create a run of a deployment and return its id at once. Raises RunError."""
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    try:
        run: FlowRun = run_deployment(deployment, parameters=parameters, timeout=0, as_subflow=False)  # type: ignore[assignment] # its sync face is untyped
    except ObjectNotFound as error:
        raise RunError(f"there is no deployment {deployment!r}: register it with `ratchet deploy`") from error
    except (PrefectHTTPStatusError, httpx.TransportError) as error:
        raise RunError(f"the Prefect API did not accept the run: {error}") from error
    return run.id


def follow(console: Console, run: UUID) -> str:
    """Print what a run and the runs it starts log, show a bar for their long steps, and return the final state.

    The API may be away for two minutes at a stretch. Raises RunError after that.
    """
    from prefect.client.orchestration import get_client

    lines = _Lines()
    with get_client(sync_client=True) as client, _bars(console) as bars:
        reached = time.monotonic()
        while True:
            try:
                state = client.read_flow_run(run).state
                runs = [run, *_children(client, run)]
                for line in lines.new(client, runs):
                    if not _PLUMBING.match(line.message):
                        text = line.message.partition("\nTraceback (most recent call last)")[0]  # it is in the UI
                        console.print(f"[dim]{line.timestamp.astimezone():%H:%M:%S}[/dim] {escape(text, lines=True)}")
                bars.update(client, runs)
                reached = time.monotonic()
            except httpx.HTTPError as error:
                if time.monotonic() - reached > _AWAY_SECONDS:
                    raise RunError(f"the Prefect API no longer answers: {error}") from error
                state = None
            if state is not None and state.is_final():
                return state.name or state.type.value
            time.sleep(_POLL_SECONDS)


def address(ui_url: str, run: UUID) -> str:
    """The page of a run in the Prefect UI."""
    return f"{ui_url}/runs/flow-run/{run}"


def find_outcome(store: Store, run: UUID) -> Outcome | None:
    """The outcome that a flow run wrote, or None; a run's folder ends in the first digits of the flow run's id."""
    folders = (folder for folder in backwards(store) if folder.run_id.endswith(f"-{run.hex[:8]}"))
    folder = next(folders, None)
    return folder.outcome if folder else None


class _Lines:
    """The log of some runs, each line handed out once."""

    def __init__(self) -> None:
        self._seen: set[UUID] = set()
        self._since = datetime(2000, 1, 1, tzinfo=UTC)

    def new(self, client: SyncPrefectClient, runs: list[UUID]) -> Iterator[Log]:
        """Lines that were not handed out before, by time; also those that arrive up to half a minute late."""
        from prefect.client.schemas.filters import LogFilter

        chosen = LogFilter.model_validate(
            {"flow_run_id": {"any_": runs}, "level": {"ge_": logging.INFO}, "timestamp": {"after_": self._since}}
        )
        offset = 0
        while page := client.read_logs(chosen, limit=200, offset=offset):
            for line in page:
                if line.id not in self._seen:
                    self._seen.add(line.id)
                    yield line
            self._since = max(self._since, page[-1].timestamp - timedelta(seconds=30))
            offset += len(page)


class _Bars:
    """One bar for each long step: the progress artifacts of the runs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[UUID, TaskID] = {}

    def update(self, client: SyncPrefectClient, runs: list[UUID]) -> None:
        """Show how far each long step is; one that is done disappears."""
        from prefect.client.schemas.filters import ArtifactFilter

        chosen = ArtifactFilter.model_validate({"flow_run_id": {"any_": runs}, "type": {"any_": ["progress"]}})
        for artifact in client.read_artifacts(artifact_filter=chosen):
            percent = artifact.data if isinstance(artifact.data, float | int) else 0.0
            if artifact.id not in self._tasks:
                self._tasks[artifact.id] = self._progress.add_task("", total=100.0)
            self._progress.update(
                self._tasks[artifact.id],
                completed=percent,
                description=artifact.description or artifact.key or "",
                visible=percent < 100.0,
            )


@contextmanager
def _bars(console: Console) -> Iterator[_Bars]:
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bars(progress)


def _children(client: SyncPrefectClient, run: UUID) -> list[UUID]:
    from prefect.client.schemas.filters import FlowRunFilter

    chosen = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run]}})
    return [child.id for child in client.read_flow_runs(flow_run_filter=chosen)]
