"""What a flow knows about itself and its surroundings; the one place where flows read the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from prefect.runtime import flow_run

from tasks.runs import run_id


@dataclass(frozen=True)
class ThisRun:
    """The id under which this run's folder, ledger entries and events go, and who started it."""

    run_id: str
    who: str


def this_run() -> ThisRun:
    """The running flow's identity: the same for every attempt of one flow run."""
    identity = flow_run.id or uuid4().hex
    scheduled = flow_run.scheduled_start_time or datetime.now(UTC)
    return ThisRun(run_id(scheduled, identity), flow_run.name or "unnamed run")


def store_url(store: str | None) -> str:
    """The store that was asked for, else the one that `RATCHET_STORE` names.

    Raises:
        ValueError: Neither is given.
    """
    url = store or os.environ.get("RATCHET_STORE")
    if not url:
        raise ValueError("no store: give the parameter `store` or set RATCHET_STORE to s3://bucket/prefix")
    return url


def work_folder() -> Path:
    """Where models and vectors are kept on this machine between runs; may be deleted at any time.

    `RATCHET_WORK`, else `ratchet` in the user's cache folder; readable by its owner only.
    """
    named = os.environ.get("RATCHET_WORK")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else cache / "ratchet"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
