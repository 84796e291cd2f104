"""A line to a server on loopback that can be cut: at once, or while an answer to a certain request is on its way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

_BLOCK: Final = 1 << 16


@dataclass
class Moment:
    """What to do at a certain request."""

    text: bytes
    then: Callable[[], None]
    came: threading.Event = field(default_factory=threading.Event)
    """Set when the request has come and `then` has been done."""


class Line:
    """A loopback port that leads to a server. While it is cut, connections break off and new ones are refused."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._moments: list[Moment] = []
        self._back = 0.0

    # --- for tests ---------------------------------------------------------------------------------------

    @property
    def is_cut(self) -> bool:
        """Whether nothing gets through at the moment."""
        return time.monotonic() < self._back

    def cut(self, seconds: float) -> None:
        """Break off every connection, and refuse new ones for this long."""
        self._back = time.monotonic() + seconds
        self._loop.call_soon_threadsafe(self._cut, seconds)

    def at(self, text: bytes, then: Callable[[], None]) -> Moment:
        """Do something, once, when the answer to the next request with `text` comes: that answer never arrives."""
        moment = Moment(text, then)
        self._moments.append(moment)
        return moment

    # --- in the thread of the line -----------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`."""
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def listen(self) -> None:
        """Accept connections, on the same port every time."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Break off everything."""
        self._hang_up()
        self._loop.call_soon(self._loop.stop)

    def _hang_up(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open:
            writer.transport.abort()

    def _cut(self, seconds: float) -> None:
        self._hang_up()
        self._loop.call_later(seconds, lambda: self._loop.create_task(self.listen()))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._open |= {writer, back}
        asked: list[Moment] = []

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, requests: bool) -> None:
            with suppress(ConnectionError):
                while data := await source.read(_BLOCK):
                    if requests:
                        asked.extend(moment for moment in self._moments if moment.text in data)
                    elif asked and asked[0] in self._moments:
                        self._moments.remove(asked[0])
                        asked[0].then()
                        asked[0].came.set()
                        break
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pass_on(reader, back, requests=True), pass_on(there, writer, requests=False))
        self._open -= {writer, back}


@contextmanager
def line(target: int) -> Iterator[Line]:
    """A line to a port for the length of a `with` block."""
    made = Line(target)
    thread = threading.Thread(target=made.run, name=f"line to {target}")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(made.listen(), made._loop).result(10)
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(made.stop(), made._loop)
        thread.join()
