"""Faults injected between a store and its server: a process that dies at a write, a reply that is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, Literal

from tasks.storage import Store

_WRITES = frozenset(
    {
        "put_object",
        "delete_object",
        "create_multipart_upload",
        "upload_part",
        "complete_multipart_upload",
    }
)


class Crash(BaseException):
    """The process is gone: nothing may catch this but the test."""


def crash() -> None:
    """Die as an exception does: the stack unwinds, the test goes on."""
    raise Crash


def kill() -> None:
    """Die as `kill -9` does: nothing runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


class FaultyClient:
    """An S3 client that calls `fault` just before, or just after, its write number `at` (from 1); counts writes."""

    def __init__(self, client: Any, at: int, when: Literal["before", "after"], fault: Callable[[], None]) -> None:
        self._client = client
        self._at, self._when, self._fault = at, when, fault
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._client, name)
        return self._faulty(operation) if name in _WRITES else operation

    def _faulty(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            self.writes += 1
            hit = self.writes == self._at
            if hit and self._when == "before":
                self._fault()
            try:
                return operation(**arguments)
            finally:
                if hit and self._when == "after":  # whether it was carried out or refused
                    self._fault()

        return call


def faulty(
    store: Store, at: int, when: Literal["before", "after"] = "before", fault: Callable[[], None] = crash
) -> Store:
    """The same store, with one fault."""
    client: Any = FaultyClient(store._client, at, when, fault)
    return Store(store.url, client)


def writes(store: Store) -> int:
    """How many writes a store made by `faulty` has been asked for."""
    client: Any = store._client
    return int(client.writes)
