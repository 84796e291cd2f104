"""The metrics of a store at an address, for Prometheus: `ratchet metrics --listen`."""

from __future__ import annotations

import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from tasks.registry import RegistryError
from tasks.storage import StoreError
from tasks.telemetry import CONTENT_TYPE

PATH: Final = "/metrics"
_FRESH_SECONDS: Final = 10.0
"""A younger text is served again, so that frequent requests do not burden the store."""


class Exporter(ThreadingHTTPServer):
    """Serves a text at `/metrics`; with a token only to those who send it (`Authorization: Bearer <token>`).

    Args:
        address: Host and port; port 0: any that is free.
        text: Makes the text; called when somebody asks, one call at a time.
        token: None: every client that reaches the address may read.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], text: Callable[[], str], token: str | None = None) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self.token = token
        self._text, self._made, self._at = text, "", 0.0
        self._making = threading.Lock()

    def text(self) -> str:
        """The text, made anew unless it is fresh."""
        with self._making:
            if not self._made or time.monotonic() - self._at > _FRESH_SECONDS:
                self._made, self._at = self._text(), time.monotonic()
            return self._made


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Handler(BaseHTTPRequestHandler):
    server: Exporter
    server_version = "ratchet"
    sys_version = ""
    timeout = 10  # seconds that a connection may be silent

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path.partition("?")[0] != PATH:
            self._answer(HTTPStatus.NOT_FOUND, f"see {PATH}\n")
        elif not self._may_read():
            self._answer(HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer ...\n")
        else:
            try:
                text = self.server.text()
            except (StoreError, RegistryError) as error:
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n")
            else:
                self._answer(HTTPStatus.OK, text, CONTENT_TYPE)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _may_read(self) -> bool:
        if self.server.token is None:
            return True
        sent = self.headers.get("Authorization", "")
        return hmac.compare_digest(sent.encode(errors="replace"), f"Bearer {self.server.token}".encode())

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in http.server
        """Say nothing: Prometheus asks every few seconds."""
