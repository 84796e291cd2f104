"""Sets up a local stack between the start of its servers and the start of its workers.

Run as a program (`python -m deployments.stack.set_up FILE`), with the stack's settings in its environment.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from deployments.server import automations, deploy
from deployments.server.settings import Settings

_INTERRUPTED: Final = "the stack was stopped while this run was under way"
_MISSED: Final = "this run was due while the stack was not running"


def settle() -> int:
    """Conclude the runs that a former stack left behind; returns how many. Only while no worker runs.

    Their processes are gone: a run that counts as running would never end, and would hold the only place of its
    deployment for ever. Runs that were due meanwhile are not caught up on, the next night takes in all that is new.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import State
    from prefect.states import Cancelled, Crashed

    in_progress = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}})
    overdue = FlowRunFilter.model_validate(
        {"state": {"type": {"any_": ["SCHEDULED"]}}, "next_scheduled_start_time": {"before_": datetime.now(UTC)}}
    )
    conclusions: list[tuple[FlowRunFilter, State[None]]] = [
        (in_progress, Crashed(message=_INTERRUPTED)),
        (overdue, Cancelled(message=_MISSED)),
    ]
    settled = 0
    with get_client(sync_client=True) as client:
        for chosen, state in conclusions:
            while runs := client.read_flow_runs(flow_run_filter=chosen, limit=200):
                for run in runs:
                    client.set_flow_run_state(run.id, state, force=True)
                settled += len(runs)
        for limit in client.read_global_concurrency_limits(limit=200, offset=0):
            if limit.active_slots:
                client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=0))
    return settled


def set_up_local_stack(file: Path) -> None:
    """What a stack needs between the start of its servers and the start of its workers."""
    from tasks.storage import Store

    Store.open(os.environ["RATCHET_STORE"]).create_bucket()
    settle()
    deploy.ensure_pools()
    deploy.register(deploy.read(file, Settings()), os.environ)
    automations.apply(Settings(), {})  # no channel, so no alerts; but a run whose process is gone must not stay


if __name__ == "__main__":
    set_up_local_stack(Path(sys.argv[1]))
