"""Start the processes of a training run, follow them, and start them all again when one dies.

Each process is `python -m tasks.training.worker`, given a folder with the job (`job.py`) and its place among the
others. It answers with JSON. When one dies all are started again, and they continue from the last checkpoint. Several
machines do the same side by side, and tell each other at a rendezvous; restarts work across them too. Tested with two
launchers on one machine, not on two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tasks.training.rendezvous import Meeting, Nodes, Rendezvous, interface

_RESTARTS: Final = 3
"""How often all processes are started again after one has died."""

_POLL: Final = 0.2
"""Seconds between looks at the processes and at their progress."""

_GRACE: Final = 5.0
"""Seconds that a process has to end before it is killed."""

LINES: Final = "lines"
"""File in the job's folder to which the leader appends what it reports, one JSON array a line."""


class ProcessesFailedError(Exception):
    """The training processes died more often than they are started again."""


@dataclass(frozen=True)
class Place:
    """A training process's place among those of its run.

    Attributes:
        rank: among all processes.
        size: how many processes there are.
        local: among those of this machine.
        locals: how many this machine has.
        attempt: how often they were started before.
        endpoint: host:port where the machines meet; empty on a single machine, whose processes meet in a file.
        run_id: the run's name at that endpoint.
    """

    rank: int
    size: int
    local: int
    locals: int
    attempt: int
    endpoint: str
    run_id: str

    def result(self, folder: Path) -> Path:
        """The file in which this process leaves its result."""
        return folder / f"result-{self.attempt}-{self.local}.json"

    def error(self, folder: Path) -> Path:
        """The file in which this process says why it failed."""
        return folder / f"error-{self.attempt}-{self.local}.txt"

    def meeting(self, folder: Path) -> Path:
        """The file in which the processes of a single machine meet."""
        return folder / f"meeting-{self.attempt}"


def launch(
    folder: Path, processes: int, *, on_line: Callable[..., None], rendezvous: Rendezvous | None = None
) -> dict[str, Any]:
    """Run the job in `folder` in that many processes of this machine; returns the first one's result as JSON.

    What the leader reports calls `on_line(*values)` on its machine. With a rendezvous every machine calls this, and
    all their processes are one group, of which the leader may be on another machine.

    Raises:
        ProcessesFailedError: they died more often than they are started again.
        RendezvousError: the machines did not meet, or lost each other.
    """
    meeting = Meeting() if rendezvous is None else Nodes(rendezvous)
    environment = _environment(meeting)
    try:
        with _followed(folder / LINES, on_line):
            for attempt in range(_RESTARTS + 1):
                places = _places(meeting, processes, attempt, rendezvous)
                if _run(folder, places, meeting, environment):
                    return dict(json.loads(places[0].result(folder).read_bytes()))
    except BaseException:
        meeting.leave()
        raise
    raise ProcessesFailedError(_reason(folder, processes))


def _places(meeting: Meeting, processes: int, attempt: int, rendezvous: Rendezvous | None) -> list[Place]:
    first, size = meeting.node * processes, meeting.nodes * processes
    endpoint, run_id = ("", "") if rendezvous is None else (rendezvous.endpoint, rendezvous.run_id)
    return [Place(first + local, size, local, processes, attempt, endpoint, run_id) for local in range(processes)]


def _environment(meeting: Meeting) -> dict[str, str]:
    """This process's environment; what the processes exchange stays on the interface where the machines meet."""
    root = str(Path(__file__).resolve().parents[2])
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, sys.path)])
    name = interface(meeting.interface_of)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if meeting.nodes == 1 or variable not in environment:
            environment[variable] = name
    return environment


def _run(folder: Path, places: list[Place], meeting: Meeting, environment: dict[str, str]) -> bool:
    """One attempt: whether all processes, of all machines, ended well."""
    attempt = places[0].attempt
    running: list[subprocess.Popen[bytes]] = []
    try:
        for place in places:
            command = [sys.executable, "-m", "tasks.training.worker", str(folder), json.dumps(asdict(place))]
            # the pipe closes when this process ends, however it ends, and the other one ends with it
            running.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE))
        while any(process.poll() is None for process in running):
            if any(process.poll() for process in running):
                break
            if meeting.failed(attempt):
                return False
            time.sleep(_POLL)
        if any(process.poll() for process in running):
            meeting.report_failure(attempt)
            return False
        return meeting.finish(attempt)
    finally:
        _end(running)


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    """End what still runs, and wait for it."""
    for process in running:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _GRACE
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _reason(folder: Path, processes: int) -> str:
    """Why the last attempt failed, as the first of its processes to say so put it."""
    said = sorted(folder.glob(f"error-{_RESTARTS}-*.txt"), key=lambda path: path.stat().st_mtime_ns)
    why = said[0].read_text(encoding="utf-8") if said else "killed, or ended without a word"
    return f"the {processes} processes failed {_RESTARTS + 1} times: {why}"


@contextmanager
def _followed(lines: Path, on_line: Callable[..., None]) -> Iterator[None]:
    """Call `on_line` with each line that appears in a file, until the block ends and all are read."""
    done = threading.Event()

    def follow() -> None:
        lines.touch()
        with lines.open() as file:
            rest = ""
            while True:
                last = done.wait(_POLL)
                *whole, rest = (rest + file.read()).split("\n")
                for line in whole:
                    on_line(*json.loads(line))
                if last:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
