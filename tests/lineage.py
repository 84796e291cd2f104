"""An OpenLineage endpoint on loopback, for tests."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.http_servers import serving


@dataclass
class Receiver:
    """What came: events and paths. While `answers` is not set, every request waits."""

    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    answers: threading.Event = field(default_factory=threading.Event)

    @property
    def states(self) -> list[str]:
        """The kinds of the events."""
        return [event["eventType"] for event in self.events]


@contextmanager
def unconfigured(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """No configuration in the environment or in a file; the variables that the client adds itself are taken back."""
    environment = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        for name in environment:
            if name.startswith("OPENLINEAGE"):
                patch.delenv(name)
        patch.setenv("HOME", str(folder))
        patch.chdir(folder)
        yield patch
        for name in set(os.environ) - set(environment):
            if name.startswith("OPENLINEAGE"):
                patch.delenv(name)


@contextmanager
def receiving(folder: Path) -> Iterator[Receiver]:
    """A receiver that OPENLINEAGE_URL names."""
    here = Receiver()
    here.answers.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            here.answers.wait(30)
            here.paths.add(self.path)
            here.events.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.url = f"http://127.0.0.1:{server.server_port}"
    with unconfigured(folder) as patch, serving(server):
        patch.setenv("OPENLINEAGE_URL", here.url)
        try:
            yield here
        finally:
            here.answers.set()
