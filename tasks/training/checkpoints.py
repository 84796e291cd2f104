"""Checkpoints of a training run in the store, so that another worker can continue where one was killed.

A checkpoint is one object, so it is there wholly or not at all: a safetensors file whose metadata holds the rest as
JSON. Its name carries the step and its SHA-256, and one that does not hash to its name is passed over for the one
before it. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tasks.storage import Store, StoreError, file_sha256

_KEPT: Final = 2
"""Newest checkpoints kept while a run is under way."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to continue: tensors by name, and JSON."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        store: where they are kept.
        prefix: their folder, ending in "/": `runs/<run_id>/checkpoints/`.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self.prefix = prefix

    @property
    def url(self) -> str:
        """The store's address, by which another process opens it."""
        return self._store.url

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Store the state after `step` steps, and drop all but the newest two.

        Raises StoreError where that fails, also when the disk is full on which it is put together.
        """
        try:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint"
                save_file(dict(checkpoint.tensors), path, {"state": json.dumps(checkpoint.state)})
                self._store.upload_if_absent(f"{self.prefix}{step:012d}-{file_sha256(path)}.safetensors", path)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"cannot put a checkpoint together in {gettempdir()}: {error}") from error
        self._store.delete(self._keys()[:-_KEPT])

    def latest(self, identity: str) -> Checkpoint | None:
        """The newest sound checkpoint whose state has this `identity`; None where there is none."""
        for key in reversed(self._keys()):
            with TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint"
                self._store.download(key, path)
                if not key.endswith(f"-{file_sha256(path)}.safetensors"):
                    continue
                with safe_open(path, framework="pt") as file:
                    state = json.loads(file.metadata()["state"])
                    if state["identity"] == identity:
                        return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, state)  # noqa: SIM118
        return None

    def _keys(self) -> list[str]:
        """Keys from the oldest step to the newest."""
        return sorted(entry.key for entry in self._store.entries(self.prefix))
