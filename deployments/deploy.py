"""Registers work pools and deployments with a Prefect server; doing it again changes nothing that people changed.

Run as a program (`python -m deployments.deploy FILE`) it sets up a local stack between the start of its servers and
the start of its workers, with the settings of its environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from deployments.local import DEPLOYMENTS, POOLS, ROOT

_INTERRUPTED: Final = "the stack was stopped while this run was under way"
_MISSED: Final = "this run was due while the stack was not running"


class DeployError(Exception):
    """The Prefect server did not take the deployments; the message says what it or Prefect said."""


def ensure_pools(pool_type: str = "process") -> None:
    """Create the work pools `cpu` and `gpu` where they are missing; existing ones keep their type and settings."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.utilities.asyncutils import run_coro_as_sync
    from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

    template = run_coro_as_sync(get_default_base_job_template_for_infrastructure_type(pool_type))
    if template is None:
        raise DeployError(f"Prefect knows no work pool of type {pool_type!r}")
    with get_client(sync_client=True) as client:
        for name in POOLS:
            pool = WorkPoolCreate(name=name, type=pool_type, base_job_template=template)
            try:
                client.create_work_pool(pool)
            except ObjectAlreadyExists:
                continue


def register(file: Path = DEPLOYMENTS) -> None:
    """Register every deployment of a `prefect.yaml`.

    `RATCHET_CODE` names the folder with the packages as the workers see it, for workers in containers; it is this
    one when not set. Raises DeployError with Prefect's words when that fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--all"],
        cwd=ROOT,
        env={"RATCHET_CODE": str(ROOT), **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DeployError(f"prefect deploy failed:\n{(done.stdout + done.stderr)[-3000:]}")


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
    ensure_pools()
    register(file)


if __name__ == "__main__":
    set_up_local_stack(Path(sys.argv[1]))
