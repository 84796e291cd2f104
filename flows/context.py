"""What a flow knows about itself and its surroundings; the one place where flows read the environment."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import uuid4

from prefect.runtime import flow_run

from tasks import steps
from tasks.publishing import Targets
from tasks.runs import run_id
from tasks.storage import normalise

_REMEDY: Final = "name a folder of your own in RATCHET_WORK"


class WorkFolderError(Exception):
    """The folder for models and vectors cannot be trusted; the message says why, and what to do."""


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
    """The address of the store that was asked for, else of the one that `RATCHET_STORE` names, normalised.

    Raises:
        ValueError: Neither is given.
        StoreError: It is not the address of a store.
    """
    url = store or os.environ.get("RATCHET_STORE")
    if not url:
        raise ValueError("no store: give the parameter `store` or set RATCHET_STORE to s3://bucket/prefix")
    return normalise(url)


def publish_what_serves(store: str) -> None:
    """Publish to the targets that this machine's environment names, if any; a failure never fails the run."""
    targets = Targets.of(os.environ)
    if any(targets.named()):
        with suppress(Exception):
            steps.publish(store, targets)


def work_folder() -> Path:
    """Where models and vectors are kept on this machine between runs; may be deleted at any time.

    `RATCHET_WORK`, else `ratchet` in the user's cache folder; readable by its owner only.

    Raises:
        WorkFolderError: Somebody else can write there: what they put there would be served as a vector or a model.
    """
    named = os.environ.get("RATCHET_WORK")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named).absolute() if named else cache / "ratchet"
    for made in [*reversed(folder.parents), folder]:  # `parents=True` would leave the others as open as the umask does
        if not made.is_dir():
            try:
                made.mkdir(exist_ok=True, mode=0o700)
            except FileExistsError as error:  # a file, or a link that leads nowhere
                raise WorkFolderError(f"{made} is not a directory: {_REMEDY}") from error
    _check_ours(folder, stat.S_IWGRP | stat.S_IWOTH)
    for inside in folder.iterdir():
        _check_ours(inside, stat.S_IWOTH)
    folder.chmod(0o700)
    return folder


def _check_ours(path: Path, writable: int) -> None:
    """Raise WorkFolderError for a symbolic link, another user's file, or a mode with one of the bits `writable`."""
    try:
        status = path.lstat()
    except FileNotFoundError:  # another run has just replaced it
        return
    if stat.S_ISLNK(status.st_mode):
        raise WorkFolderError(f"{path} is a symbolic link: {_REMEDY}")
    if status.st_uid != os.geteuid():
        raise WorkFolderError(f"{path} belongs to another user (uid {status.st_uid}): {_REMEDY}")
    if status.st_mode & writable:
        mode = stat.S_IMODE(status.st_mode)
        raise WorkFolderError(f"{path} can be written to by other users (mode {mode:04o}): {_REMEDY}, or delete it")
