"""One process of a training run: `python -m tasks.training.worker FOLDER PLACE`, started by `launch.py`."""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore

from tasks.training.fine_tune import run
from tasks.training.job import Job
from tasks.training.launch import LINES, Place
from tasks.training.processes import Group
from tasks.training.rendezvous import connect
from tasks.training.result import TrainingError


def work(folder: Path, place: Place) -> None:
    """Join the other processes, train, leave the result in the folder."""
    torch.set_num_threads(max(1, torch.get_num_threads() // place.locals))
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=_store(folder, place), rank=place.rank, world_size=place.size)

    def report(*values: object) -> None:
        if place.rank == 0:
            with (folder / LINES).open("a") as file:
                file.write(json.dumps(values) + "\n")

    try:
        result: dict[str, Any] = {"trained": asdict(run(Group(place.rank, place.size), report, Job.read(folder)))}
    except TrainingError as error:  # all processes share it: starting them again would not help
        result = {"error": str(error)}
    place.result(folder).write_text(json.dumps(result), encoding="utf-8")
    dist.destroy_process_group()  # not after another error: it would wait for the others, who wait for this process


def _store(folder: Path, place: Place) -> FileStore | PrefixStore:
    """Where the processes find each other: a file on one machine, the machines' rendezvous on several."""
    if not place.endpoint:
        return FileStore(str(place.meeting(folder)), place.size)
    host, _, port = place.endpoint.rpartition(":")
    return PrefixStore(f"{place.run_id}/attempt/{place.attempt}", connect(host.strip("[]"), int(port)))


def _end_with_the_launcher() -> None:
    """End this process when its standard input closes: its parent is gone."""

    def wait() -> None:
        os.read(0, 1)  # not by way of sys.stdin, whose lock would be held when this process ends
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(folder: Path, place: Place) -> None:
    """Work, and say in the folder why that failed, if it did."""
    _end_with_the_launcher()
    try:
        work(folder, place)
    except Exception as error:
        place.error(folder).write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), Place(**json.loads(sys.argv[2])))
