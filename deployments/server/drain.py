"""Emptying a work pool before its worker is stopped, and opening it again.

Prefect's process worker ends its runs within seconds when it is stopped, and they count as running ever after. So
a worker is stopped in this order: pause the pool, wait until no run of it is under way, then stop. Runs that fall
due meanwhile wait in the pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_POLL_SECONDS: Final = 5.0
_SETTLE_SECONDS: Final = 15.0
"""A run that a worker had already been given shows within this time: it looks ahead by ten seconds."""


class DrainError(Exception):
    """The pool could not be paused or opened; the message says why."""


def drain(
    pool: str,
    *,
    patience: float,
    mark: Path | None = None,
    settle: float = _SETTLE_SECONDS,
    on_wait: Callable[[list[str]], None] = lambda _: None,
) -> list[str]:
    """Pause a work pool and wait until none of its runs is under way.

    Args:
        pool: Name of the work pool; every worker of it stops taking runs.
        patience: For how many seconds to wait. The API may be away meanwhile.
        mark: File that is made when this call pauses the pool, and only then: for `resume`.
        settle: For how many seconds there must be no run.
        on_wait: Told the names of the runs under way whenever they change.

    Returns:
        Names of the runs that were still under way when patience ended; none when the pool is empty. It stays paused.

    Raises:
        DrainError: There is no such pool.
    """
    import httpx
    from prefect.client.orchestration import get_client

    deadline = time.monotonic() + patience
    paused, under_way, seen, quiet_since = False, ["(the Prefect API has not answered yet)"], [""], 0.0
    with get_client(sync_client=True) as client:
        while True:
            try:
                if not paused:
                    _pause(client, pool, mark)
                    paused = True
                under_way = _under_way(client, pool)
            except httpx.HTTPError:
                quiet_since = 0.0  # nothing is known while the API is away
            else:
                if under_way != seen:
                    on_wait(under_way)
                    seen = under_way
                quiet_since = 0.0 if under_way else quiet_since or time.monotonic()
                if quiet_since and time.monotonic() - quiet_since >= settle:
                    return []
            if time.monotonic() >= deadline:
                return under_way or ["(a run may still be starting)"]
            time.sleep(min(_POLL_SECONDS, max(settle / 3, 0.1)))


def resume(pool: str, *, mark: Path | None = None) -> bool:
    """Let the workers of a pool take runs again; whether that was done.

    With `mark`, only where the file says that `drain` paused it: a pool that a person had paused stays so.

    Raises:
        DrainError: There is no such pool, or the API is away.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    if mark is not None and not mark.exists():
        return False
    try:
        with get_client(sync_client=True) as client:
            client.update_work_pool(pool, WorkPoolUpdate(is_paused=False))
    except ObjectNotFound as error:
        raise DrainError(f"there is no work pool {pool!r}") from error
    except httpx.HTTPError as error:
        raise DrainError(f"the Prefect API does not answer: {error}") from error
    if mark is not None:
        mark.unlink(missing_ok=True)
    return True


def _pause(client: SyncPrefectClient, pool: str, mark: Path | None) -> None:
    from prefect.client.schemas.actions import WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    try:
        if client.read_work_pool(pool).is_paused:
            return
        if mark is not None:
            mark.touch()  # before the pause: a crash between the two must not leave the pool paused for ever
        client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))
    except ObjectNotFound as error:
        raise DrainError(f"there is no work pool {pool!r}") from error


def _under_way(client: SyncPrefectClient, pool: str) -> list[str]:
    """Names of the pool's runs that have a process, will have one at once, or are being cancelled."""
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter

    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(
            {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
        ),
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
        limit=200,
    )
    return sorted(run.name for run in runs)
