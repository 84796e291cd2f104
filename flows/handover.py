"""Handing a piece of work to another work pool, and waiting for it as long as it takes.

Prefect's `run_deployment` gives up on the child when the API is away for a minute, returns a run that is
not final when its own timeout passes, and does not fail the parent when the child fails. A night's GPU work
outlives all three, so the child is created without waiting and then watched from here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelling
from pydantic import JsonValue


class ChildFailedError(RuntimeError):
    """The child ended without doing its work; the message carries its state and the state's message."""


class _ChildCrashedError(ChildFailedError):
    """The child's infrastructure died under it (not its code): worth another attempt."""


def _child_crashed(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), _ChildCrashedError)


@task(
    name="fine-tune elsewhere",
    cache_policy=NO_CACHE,
    # a machine may die, and the one after it; what kills three in a row is not the machines. Each child continues from
    # the last one's checkpoint
    retries=2,
    # the place that the dead child held among the runs of its deployment is free by then
    retry_delay_seconds=10,
    retry_condition_fn=_child_crashed,
    # no timeout here: `_Patience` bounds the wait, and cancels the child when it ends
)
def fine_tune_elsewhere(deployment: str, parameters: dict[str, JsonValue]) -> None:
    """Run the fine-tuning on its own work pool; another attempt only when the child's machine or process died."""
    _hand_over(
        deployment,
        parameters,
        # one child per attempt of this task, also when the parent itself is run again
        idempotency_key=f"{flow_run.id}:{deployment}:{flow_run.run_count}:{task_run.run_count}",
        on_state=lambda name: get_run_logger().info("%s: %s", deployment, name),
    )


@dataclass(frozen=True)
class _Patience:
    """How long to wait, in seconds."""

    poll: float = 3.0
    api_away: float = 15 * 60.0
    """The API may be unreachable for this long at a stretch: a server restart or a database failover."""
    total: float = 24 * 3600.0
    """Queueing for the GPU included; then the child is cancelled."""


def _hand_over(
    deployment: str,
    parameters: dict[str, JsonValue],
    *,
    idempotency_key: str,
    patience: _Patience | None = None,
    on_state: Callable[[str], None] = lambda _: None,
) -> UUID:
    """Run a deployment and wait until it has completed; returns the id of its run.

    Args:
        deployment: `flow/deployment`.
        parameters: Small JSON: addresses and settings, never data.
        idempotency_key: The same key never starts a second child, also after a crash of the parent.
        patience: How long to wait for what.
        on_state: Called with the name of each new state of the child.

    Raises:
        _ChildCrashedError: The child's process or machine died.
        ChildFailedError: The child failed, was cancelled, or did not end in time.
    """
    patience = patience or _Patience()
    with get_client(sync_client=True) as client:
        child = _survive(
            lambda: run_deployment(
                name=deployment, parameters=parameters, timeout=0, idempotency_key=idempotency_key, as_subflow=True
            ),
            patience,
        )
        try:
            final = _wait(client, child.id, patience, on_state)
        except BaseException:
            # cancelled, timed out, or killed politely: a GPU must not keep working for a parent that is gone
            _cancel(client, child.id)
            raise
    state = final.state
    if state is not None and state.is_completed():
        return final.id
    detail = f"{deployment} ended {state.name if state else 'without a state'}: {state.message if state else ''}"
    raise (_ChildCrashedError if state is not None and state.is_crashed() else ChildFailedError)(detail)


def _cancel(client: SyncPrefectClient, run: UUID) -> None:
    """Ask the worker to stop a run; nothing happens when it has ended or the API is away."""
    with suppress(httpx.HTTPError, PrefectHTTPStatusError):
        client.set_flow_run_state(run, Cancelling(message="the run that waited for this one is gone"))


def _wait(client: SyncPrefectClient, run: UUID, patience: _Patience, on_state: Callable[[str], None]) -> FlowRun:
    deadline = time.monotonic() + patience.total
    seen = ""
    while time.monotonic() < deadline:
        current: FlowRun = _survive(lambda: client.read_flow_run(run), patience)
        name = current.state_name or ""
        if name != seen:
            on_state(name)
            seen = name
        if current.state is not None and current.state.is_final():
            return current
        if current.state_type == StateType.PAUSED:
            raise ChildFailedError(f"run {run} was paused by hand")
        time.sleep(patience.poll)
    raise ChildFailedError(f"run {run} did not end within {patience.total / 3600:.0f} hours")


def _survive(call: Callable[[], Any], patience: _Patience) -> Any:
    """Call the API, again and again while it is away, until patience ends."""
    deadline = time.monotonic() + patience.api_away
    while True:
        try:
            return call()
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            client_error = isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500
            if client_error or time.monotonic() > deadline:
                raise
            time.sleep(patience.poll)
