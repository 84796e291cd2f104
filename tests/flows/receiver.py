"""A webhook receiver on loopback, that keeps what it was sent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.http_servers import serving


@dataclass(frozen=True)
class Received:
    """One message."""

    subject: str
    body: str


@dataclass
class Receiver:
    """Where messages are sent to, and those that have come."""

    url: str
    messages: list[Received] = field(default_factory=list)

    def wait(self, wanted: Callable[[Received], bool], seconds: float = 60) -> Received:
        """The first message that is wanted; AssertionError with all that came where there is none in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for message in list(self.messages):
                if wanted(message):
                    return message
            time.sleep(0.1)
        raise AssertionError(f"not received within {seconds} s; what came: {self.messages}")

    def once(self, wanted: Callable[[Received], bool], seconds: float = 60) -> Received:
        """The one message that is wanted; another within a moment is an error."""
        message = self.wait(wanted, seconds)
        time.sleep(2)
        assert self.count(wanted) == 1, self.messages
        return message

    def count(self, wanted: Callable[[Received], bool]) -> int:
        """How many of the messages are wanted ones."""
        return sum(wanted(message) for message in self.messages)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver for the length of a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.messages.append(Received(sent["subject"], sent["body"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}/a-secret-path")
    with serving(server):
        yield receiver
