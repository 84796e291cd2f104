"""Shards made by actors of Ray Data: on this machine, or on the cluster that `RAY_ADDRESS` names.

What crosses between processes are names of shards and counts. Documents and vectors go through the store, and every
worker verifies the model that it loads. Ray itself serialises with pickle: whoever reaches a cluster's ports runs
code on it, so those belong to a trusted network. On one machine all of them are bound to loopback and ask for a token
that is made up for the run.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from tasks.encoding import ModelError
from tasks.index import shards
from tasks.index.encoder import Model, ShardEncoder
from tasks.index.shards import ShardError
from tasks.registry import RegistryError
from tasks.storage import Store, StoreError

OBJECT_STORE_BYTES: Final = 200 << 20
"""Shared memory of a local Ray: names and counts hardly use it."""

_MOST_BLOCKS: Final = 2_000
"""Blocks that the work is divided into; beyond that, one holds several shards."""

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


class Work(NamedTuple):
    """A shard to make from its staged documents, and older ones that may hold some of its vectors."""

    name: str
    older: list[str]


class Made(NamedTuple):
    """A shard that is in the store, and how many texts were encoded for it."""

    name: str
    encoded: int


class _Worker:
    """One actor: its own connection to the store, its own copy of the model, both made with the first shard."""

    def __init__(self, store: str, model: dict[str, Any], work: str) -> None:
        self._store, self._model, self._work = store, model, work
        self._encoder: ShardEncoder | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Make a shard. What can go wrong is said in a text: Ray would pickle an exception, and bury its message."""
        name, older = str(batch["name"][0]), [str(one) for one in batch["older"][0] if one]
        row: dict[str, list[Any]] = {"name": [name], "encoded": [0], "failed": [""], "transient": [False]}
        try:
            row["encoded"] = [self._make(name, older)]
        except (StoreError, RegistryError, ModelError, ShardError, OSError) as error:
            row |= {"failed": [f"{type(error).__name__}: {error}"], "transient": [isinstance(error, StoreError)]}
        return row

    def _make(self, name: str, older: list[str]) -> int:
        if self._encoder is None:
            self._encoder = ShardEncoder(Store.open(self._store), Model(**self._model), Path(self._work))
        return self._encoder.make(shards.read_staged(self._encoder.store, name), older)


def make(store: Store, model: Model, work: Path, wanted: Sequence[Work], workers: int | None) -> Iterator[Made]:
    """Make shards, and say of each when it is done; in any order.

    Args:
        store: Where they go; workers connect to it by its address, with the AWS settings of their own machine.
        model: What encodes.
        work: Folder for models on each machine.
        wanted: Shards whose documents are staged.
        workers: Actors; None: one for each GPU, or one for every four cores where there is none.

    Raises RayError, and StoreError where a worker met one.
    """
    with _connected(workers) as ray:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        cores = int(ray.cluster_resources().get("CPU", 1))
        count = min(workers or gpus or max(1, cores // 4), len(wanted))
        rows = [{"name": one.name, "older": one.older or [""]} for one in wanted]
        dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map_batches(
            _Worker,
            fn_constructor_kwargs={"store": store.url, "model": asdict(model), "work": str(work)},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=0 if gpus else max(1, cores // count),
            num_gpus=min(1, gpus / count) if gpus else None,
        )
        try:
            for row in dataset.iter_rows():
                if row["failed"]:
                    kind = StoreError if row["transient"] else RayError
                    raise kind(f"a worker of Ray failed at shard {row['name']}: {row['failed']}")
                yield Made(str(row["name"]), int(row["encoded"]))
        except ray.exceptions.RayError as error:
            raise RayError(f"a worker of Ray failed: {_first(error)}") from error


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


@contextmanager
def _connected(workers: int | None) -> Iterator[Any]:
    """Ray, on the cluster of `RAY_ADDRESS` or on this machine alone; what was started here ends with the context."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.update(_SETTINGS)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    import ray.data

    if address:
        _reach(address)
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


def _reach(address: str) -> None:
    """Try the port of a cluster: Ray itself would try for minutes, and then end the process. Raises RayError."""
    host, colon, port = address.rpartition("//")[2].partition(":")
    if not colon or not port.isdecimal():  # `auto`, and whatever else Ray understands
        return
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except OSError as error:
        raise RayError(f"no cluster of Ray at RAY_ADDRESS={address}: {error}") from error
