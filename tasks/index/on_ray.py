"""Shards made by actors of Ray Data: on this machine, or on the cluster that `RAY_ADDRESS` names.

What crosses between processes are names of shards and counts. Documents and vectors go through the store, and every
worker verifies the model that it loads. Ray itself serialises with pickle: whoever reaches a cluster's ports runs
code on it, so those belong to a trusted network. On one machine all of them are bound to loopback and ask for a token
that is made up for the run.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from tasks.index import shards
from tasks.index.encoder import Model, ShardEncoder
from tasks.storage import Store

OBJECT_STORE_BYTES: Final = 200 << 20
"""Shared memory of a local Ray: names and counts hardly use it."""

_MOST_BLOCKS: Final = 2_000
"""Blocks that the work is divided into; beyond that, one holds several shards."""

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
    """One actor: its own connection to the store, its own copy of the model."""

    def __init__(self, store: str, model: dict[str, Any], work: str) -> None:
        opened = Store.open(store)
        self._store = opened
        self._encoder = ShardEncoder(opened, Model(**model), Path(work))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        names = [str(name) for name in batch["name"]]
        made = [
            self._encoder.make(shards.read_staged(self._store, name), [str(one) for one in older if one])
            for name, older in zip(names, batch["older"], strict=True)
        ]
        return {"name": names, "encoded": made}


def make(store: Store, model: Model, work: Path, wanted: Sequence[Work], workers: int | None) -> Iterator[Made]:
    """Make shards, and say of each when it is done; in any order.

    Args:
        store: Where they go; workers connect to it by its address, with the AWS settings of their own machine.
        model: What encodes.
        work: Folder for models on each machine.
        wanted: Shards whose documents are staged.
        workers: Actors; None: one for each GPU, or one for every four cores where there is none.

    Raises RayError.
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
                yield Made(str(row["name"]), int(row["encoded"]))
        except ray.exceptions.RayError as error:
            raise RayError(f"a worker of Ray failed: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """The first thing that went wrong, without the stacks of the processes that it went through."""
    while isinstance(getattr(error, "cause", None), BaseException):
        error = error.cause  # type: ignore[attr-defined]
    return str(error).strip().partition("\n")[0][:500] or type(error).__name__


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
        try:
            ray.init(address=address, configure_logging=False, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RayError(f"no cluster of Ray at RAY_ADDRESS={address}: {_cause(error)}") from error
    else:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, workers or 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            configure_logging=False,
            log_to_driver=False,
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        yield ray
    finally:
        ray.shutdown()
