"""Which processes belong to a stack, and how to end exactly those: also the guard that does so when its owner dies.

Every process of a stack carries a mark in its environment, and hands it on to whatever it starts. The mark tells
them apart for certain where a recorded process id does not: ids are reused, and a record may be lost.

Run as a program (`python guard.py MARK`), this file is the guard: it waits until its standard input closes, which
the operating system does for it whichever way the owner ends, and then ends every process that carries the mark.
It imports nothing of the project, so that it starts fast and keeps working while the project is being edited.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

import psutil

MARK: Final = "RATCHET_STACK"
"""Name of the environment variable that marks the processes of a stack."""

_GRACE_SECONDS: Final = 8.0


def marked(prefix: str) -> list[psutil.Process]:
    """Processes of this user whose mark starts with `prefix`, without the calling one."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK, "")
        except (psutil.Error, OSError):  # ended meanwhile, a zombie, or another user's
            continue
        if process.pid != os.getpid() and mark.startswith(prefix):
            found.append(process)
    return found


def end(prefix: str, *, grace: float = _GRACE_SECONDS) -> int:
    """End every process whose mark starts with `prefix`; returns how many there were.

    They are asked first (SIGTERM) and killed after `grace` seconds. The search is repeated until it finds
    nothing, because a process may start another while it is being ended.
    """
    count = 0
    while processes := marked(prefix):
        count += len(processes)
        _signal(processes, signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=grace)
        _signal(alive, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=grace)
        grace = 1.0  # whatever was started meanwhile has nothing to finish
    return count


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)  # psutil checks the start time: never a reused id
        except psutil.NoSuchProcess:
            continue


def main(mark: str) -> None:
    """Guard the processes with this mark until standard input closes, then end them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it must outlive its owner, and ends by itself
    sys.stdin.buffer.read()
    end(mark)


if __name__ == "__main__":
    main(sys.argv[1])
