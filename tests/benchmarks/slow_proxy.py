"""A TCP proxy that adds a fixed delay to every answer: a server some way off, on one machine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Pass bytes on, each `delay` seconds after they came; many can be on their way at once."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            if delay:
                loop.call_later(delay, writer.write, data)
            else:
                writer.write(data)
                await writer.drain()
    loop.call_later(delay, writer.close)


async def _serve(host: str, port: int, delay: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port)
        await asyncio.gather(_copy(reader, back, 0.0), _copy(there, writer, delay))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


@contextlib.contextmanager
def delayed(port: int, milliseconds: float) -> Iterator[int]:
    """A loopback port whose answers come from `port`, so much later. In a process of its own: no lock is shared."""
    command = [sys.executable, "-m", "tests.benchmarks.slow_proxy", str(port), str(milliseconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("milliseconds", type=float)
    chosen = parser.parse_args()
    asyncio.run(_serve("127.0.0.1", chosen.port, chosen.milliseconds / 1000))
