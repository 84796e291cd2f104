"""Events and the server that has to take them: what is marked as told was delivered, and the rest is told again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks import alerts, steps
from tasks.registry import Change, history, promote, settle
from tasks.registry.ledger import entry_key
from tasks.storage import Store
from tasks.watch import Seen, Standstill
from tests.models import published

SEEN = Seen(version=None, says="", standstill=[Standstill("nights", 14, 14)], change=3)
MARK = "watch/told/stale-3-nights-1.json"


class Server:
    """A Prefect server that takes events, fails, or refuses; it keeps what it took."""

    def __init__(self) -> None:
        self.status = 204
        self.events: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if server.status == 204:
                    server.events += json.loads(body)
                self.send_response(server.status)
                self.end_headers()

            def do_GET(self) -> None:
                self.send_response(404 if "csrf" in self.path else 200)
                self.end_headers()
                self.wfile.write(b'"3.8.8"')

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, this process as its client, and no patience."""
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setattr(alerts, "_deliver", lambda event, real=alerts._deliver: real(event, waits=()))
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{found.http.server_port}/api"}):
        yield found
    found.http.shutdown()
    found.http.server_close()
    thread.join()


def test_a_watch_alert_that_was_not_delivered_is_not_marked_as_told(store: Store, server: Server) -> None:
    """The server fails at first: the next look tells it, once."""
    server.status = 500
    with pytest.raises(alerts.DeliveryError, match=r"ratchet\.production\.stale"):
        steps.tell.fn(store.url, SEEN)
    assert store.find(MARK) is None
    server.status = 204
    steps.tell.fn(store.url, SEEN)
    steps.tell.fn(store.url, SEEN)
    assert [event["event"] for event in server.events] == ["ratchet.production.stale"]
    assert store.find(MARK) is not None


def test_a_server_that_cannot_be_reached_is_not_taken_for_delivery(store: Store, server: Server) -> None:
    """Nobody listens at its port."""
    server.http.server_close()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(alerts.DeliveryError):
        steps.tell.fn(store.url, SEEN)
    assert store.find(MARK) is None


def test_a_promotion_that_nobody_heard_of_is_announced_by_the_next_run(
    store: Store, server: Server, tmp_path: Any
) -> None:
    """The server was away when it happened: production has moved, and the event follows with the same id."""
    version = published(store, tmp_path, b"w")

    def announce(change: Change) -> None:
        alerts.announce_production(store.url, change.model_dump(mode="json"))

    server.status = 500
    with pytest.raises(alerts.DeliveryError):
        promote(store, version, None, run_id="r", who="w", reason="r", scores={}, announce=announce)
    assert history(store)[-1].version == version
    assert store.find(entry_key(1)) is None
    server.status = 204
    settle(store, announce)
    settle(store, announce)
    (event,) = server.events
    assert (event["event"], event["payload"]["version"]) == ("ratchet.production.changed", version)
