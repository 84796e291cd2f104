"""How much memory this process may still take."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Final

import psutil

_CGROUPS: Final = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Limit, use and details of a container's memory, in version 2 and version 1."""


def available() -> int:
    """Bytes that may be taken before the machine, or the limit of the container, ends the process."""
    free = int(psutil.virtual_memory().available)
    rooms = [_room(*map(Path, files)) for files in _CGROUPS]
    return min(free, _room_of_process(), *(room for room in rooms if room is not None))


def _room_of_process() -> int:
    """What the limit on the process's address space leaves (`ulimit -v`)."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    return sys.maxsize if most == resource.RLIM_INFINITY else max(0, most - int(psutil.Process().memory_info().vms))


def _room(limit: Path, use: Path, details: Path) -> int | None:
    """What a container's limit leaves; None where there is no limit. Cached files do not count: they give way."""
    try:
        most, used = limit.read_text().strip(), int(use.read_text())
        cached = dict(line.split() for line in details.read_text().splitlines()).get("inactive_file", "0")
    except (OSError, ValueError):
        return None
    return None if most == "max" else max(0, int(most) - used + int(cached))
