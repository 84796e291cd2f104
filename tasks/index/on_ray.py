"""Actors of Ray Data: on this machine, or on the cluster that `RAY_ADDRESS` names.

What crosses between processes are names, texts and counts. Vectors go through the store, and every worker verifies the
model that it loads. Ray itself serialises with pickle: whoever reaches a cluster's ports runs
code on it, so those belong to a trusted network. On one machine all of them are bound to loopback and ask for a token
that is made up for the run.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

from tasks.encoding import ModelError
from tasks.index.shards import ShardError
from tasks.registry import RegistryError
from tasks.storage import StoreError

OBJECT_STORE_BYTES: Final = 200 << 20
"""Shared memory of a local Ray: names and counts hardly use it, and texts spill to disk."""

_CORES: Final = 4
"""Cores for which an actor pays where there is no GPU: one process computes on all cores already."""

_MOST_BLOCKS: Final = 2_000
"""Blocks that the work is divided into; beyond that, one holds several pieces."""

_SECONDS: Final = 10
"""Within which a cluster has to answer."""

_SETTINGS: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # the one setting with which Ray binds to loopback, meant for workstations (Windows and macOS)
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""Read by Ray when it is imported."""


class RayError(Exception):
    """Ray could not be started or reached, or a worker failed; the message says what the worker said."""


class Done(NamedTuple):
    """A piece of work that is in the store: its name, texts that were encoded for it, seconds that it took."""

    name: str
    encoded: int
    seconds: float


class Worker(ABC):
    """One actor. What it is given and gives are names, texts and numbers."""

    @abstractmethod
    def do(self, row: dict[str, Any]) -> int:
        """Do one piece of work; returns how many texts were encoded."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Do it, and say in a text what went wrong: Ray would pickle an exception, and bury its message."""
        row = {name: values[0] for name, values in batch.items()}
        begun = time.monotonic()
        encoded, failed, transient = 0, "", False
        try:
            encoded = self.do(row)
        except (StoreError, RegistryError, ModelError, ShardError, OSError) as error:
            failed, transient = f"{type(error).__name__}: {error}", isinstance(error, StoreError)
        return {
            "name": [str(row["name"])],
            "encoded": [encoded],
            "seconds": [time.monotonic() - begun],
            "failed": [failed],
            "transient": [transient],
        }


def suggested(gpus: int, cores: int) -> int:
    """How many actors pay: one for each GPU, or one for every four cores where there is none; 0: none does."""
    return gpus or cores // _CORES


def run(
    worker: type[Worker], settings: dict[str, Any], rows: Sequence[dict[str, Any]], workers: int | None
) -> Iterator[Done]:
    """Have actors do pieces of work, and say of each when it is done; in any order.

    Args:
        worker: Class of the actors.
        settings: Arguments with which each is made.
        rows: Pieces of work, each with a `name`.
        workers: Actors; None: as many as pay (`suggested`).

    Raises RayError, and StoreError where a worker met one.
    """
    with _connected(workers) as ray:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        cores = int(ray.cluster_resources().get("CPU", 1))
        count = min(workers or max(1, suggested(gpus, cores)), len(rows))
        dataset = ray.data.from_items(list(rows), override_num_blocks=min(len(rows), _MOST_BLOCKS)).map_batches(
            worker,
            fn_constructor_kwargs=settings,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=0 if gpus else max(1, cores // count),
            num_gpus=min(1, gpus / count) if gpus else None,
        )
        try:
            for row in dataset.iter_rows():
                if row["failed"]:
                    kind = StoreError if row["transient"] else RayError
                    raise kind(f"a worker of Ray failed at {row['name']}: {row['failed']}")
                yield Done(str(row["name"]), int(row["encoded"]), float(row["seconds"]))
        except ray.exceptions.RayError as error:
            raise RayError(f"a worker of Ray failed: {_first(error)}") from error


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


@contextmanager
def _connected(workers: int | None) -> Iterator[Any]:
    """Ray, on the cluster of `RAY_ADDRESS` or on this machine alone; what was started here ends with the context."""
    check()
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.update(_SETTINGS)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray keeps the first one that a process had
    import ray
    import ray.data

    if address:
        ray.init(address=address, configure_logging=False, log_to_driver=False)
    else:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, workers or 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            configure_logging=False,
            log_to_driver=False,
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


def check() -> None:
    """Raise RayError where Ray is not installed, or the cluster of `RAY_ADDRESS` does not answer."""
    if find_spec("ray") is None:
        raise RayError("Ray is not installed: install the extra `index`, or set training.scoring_workers to 0")
    if address := os.environ.get("RAY_ADDRESS"):
        _reach(address)


def _reach(address: str) -> None:
    """Try the port of a cluster: Ray itself would try for minutes, and then end the process. Raises RayError."""
    host, colon, port = address.rpartition("//")[2].partition(":")
    if not colon or not port.isdecimal():  # `auto`, and whatever else Ray understands
        return
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except OSError as error:
        raise RayError(f"no cluster of Ray at RAY_ADDRESS={address}: {error}") from error
