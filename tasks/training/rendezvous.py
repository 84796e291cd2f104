"""Where the machines of one training run meet, and how they learn that a process of another machine has died.

A single machine needs no meeting: its processes find each other through a file, and talk over the loopback interface
only. Several machines meet at an address (host and port) of one of them, which opens that port on exactly that
address. What is exchanged there are counters and short byte strings, never pickles; but there is no password either,
so the address must belong to a network on which every machine is trusted.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import psutil
from torch._C._distributed_c10d import TCPStore

LOOPBACK: Final = "127.0.0.1"

_MEET_SECONDS: Final = 600.0
"""How long a machine waits for the others."""

_LEAVE_SECONDS: Final = 30.0
"""How long the host keeps its port open for machines that have not yet seen that all are done."""

_POLL: Final = 0.2


class RendezvousError(Exception):
    """The machines of a run did not meet, or lost each other."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the nodes of one run meet.

    Attributes:
        nodes: how many there are; all must join before the first step.
        endpoint: host:port of one of them, the same on all; that host opens the port, on that address only.
        run_id: the run's name, the same on all.
    """

    nodes: int
    endpoint: str
    run_id: str

    @classmethod
    def from_environment(cls, nodes: int, run_id: str) -> Rendezvous | None:
        """The rendezvous at RATCHET_RENDEZVOUS (host:port); None for a single node, or where it is not set."""
        endpoint = os.environ.get("RATCHET_RENDEZVOUS", "")
        return cls(nodes, endpoint, run_id) if nodes > 1 and endpoint else None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. Raises RendezvousError where the endpoint does not name both."""
        host, _, port = self.endpoint.rpartition(":")
        if not host or not port.isdigit():
            raise RendezvousError(f"{self.endpoint!r} is not an address: use host:port")
        return host.strip("[]"), int(port)


class Meeting:
    """One machine's part in a run on a single machine; `Nodes` is that on several."""

    node = 0
    nodes = 1
    interface_of = LOOPBACK
    """The address whose interface carries what processes exchange."""

    def failed(self, attempt: int) -> bool:
        """Whether a process of another machine has died in this attempt. Raises RendezvousError."""
        del attempt
        return False

    def report_failure(self, attempt: int) -> None:
        """Tell the other machines that a process of this one has died in this attempt."""

    def finish(self, attempt: int) -> bool:
        """Wait until all machines have finished this attempt; False where one of them failed instead."""
        del attempt
        return True

    def leave(self) -> None:
        """Tell the other machines that this one has given up."""


class Nodes(Meeting):
    """One machine's part in a run on several machines."""

    def __init__(self, rendezvous: Rendezvous, *, seconds: float = _MEET_SECONDS) -> None:
        self.nodes = rendezvous.nodes
        self._where = rendezvous
        deadline = time.monotonic() + seconds
        self._store, hosts = _store(rendezvous, seconds)
        self.interface_of = _own_address(*rendezvous.address)
        self._hosts = hosts
        self.node = self._count("nodes") - 1
        if self.node >= self.nodes:
            raise RendezvousError(f"{self.nodes} machines have already met at {rendezvous.endpoint}: one is too many")
        while self._count("nodes", 0) < self.nodes:
            self._raise_if_left()
            if time.monotonic() > deadline:
                raise RendezvousError(f"{self._count('nodes', 0)} of {self.nodes} machines came within {seconds:g} s")
            time.sleep(_POLL)

    def failed(self, attempt: int) -> bool:
        """Whether a process of any machine has died in this attempt. Raises RendezvousError."""
        self._raise_if_left()
        return self._count(f"failed/{attempt}", 0) > 0

    def report_failure(self, attempt: int) -> None:
        """Tell the other machines that a process of this one has died in this attempt."""
        self._count(f"failed/{attempt}")

    def finish(self, attempt: int) -> bool:
        """Wait until all machines have finished this attempt; False where one of them failed instead."""
        self._count(f"finished/{attempt}")
        while self._count(f"finished/{attempt}", 0) < self.nodes:
            if self.failed(attempt):
                return False
            time.sleep(_POLL)
        seen = self._count("seen")
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self._hosts and seen < self.nodes and time.monotonic() < deadline:
            time.sleep(_POLL)
            seen = self._count("seen", 0)
        return True

    def leave(self) -> None:
        """Tell the other machines that this one has given up."""
        with suppress(RendezvousError):
            self._count("left")

    def _raise_if_left(self) -> None:
        if self._count("left", 0):
            raise RendezvousError("another machine of the run has given up; its own output says why")

    def _count(self, name: str, more: int = 1) -> int:
        """Add to a counter of the run; returns its new value."""
        try:
            return int(self._store.add(f"{self._where.run_id}/{name}", more))
        except RuntimeError as error:
            raise RendezvousError(f"lost the connection to {self._where.endpoint}") from error


def connect(host: str, port: int, seconds: float = _MEET_SECONDS) -> TCPStore:
    """Connect to the store that a machine of the run has opened. Raises RendezvousError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return TCPStore(host, port, None, False, timedelta(seconds=seconds), wait_for_workers=False)
        except (OSError, RuntimeError) as error:
            if time.monotonic() > deadline:
                raise RendezvousError(f"no machine of the run answers at {host}:{port}: {error}") from error
            time.sleep(_POLL)


def interface(address: str) -> str:
    """The name of the network interface that has this address. Raises RendezvousError."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name
    raise RendezvousError(f"no network interface of this machine has the address {address}")


def _store(rendezvous: Rendezvous, seconds: float) -> tuple[TCPStore, bool]:
    """The store of the run, and whether this machine opened it: the first one whose own address it is does."""
    host, port = rendezvous.address
    try:
        listening = _listen(host, port)
    except OSError:  # another machine's address, or a machine of the run on this computer was faster
        return connect(host, port, seconds), False
    # by default the store listens on every interface, whatever host it is given; the socket says where
    return TCPStore(host, port, None, True, timedelta(seconds=seconds), False, False, listening), True


def _listen(host: str, port: int) -> int:
    """The descriptor of a socket that listens on this one address. Raises OSError where it is not this machine's."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(128)
        return opened.detach()


def _own_address(host: str, port: int) -> str:
    """The address of this machine from which it reaches the host."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # a datagram socket sends nothing when it connects
        probe.connect(address)
        return str(probe.getsockname()[0])
