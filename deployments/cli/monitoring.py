"""`ratchet metrics`: the state of a store in numbers, once or at an address."""

from __future__ import annotations

import os
from typing import Annotated, Final

import typer

from deployments.cli.common import CliError, StateOption, StoreOption, UsageError, connect, console
from deployments.terminal.text import escape

_TOKEN: Final = "RATCHET_METRICS_TOKEN"  # noqa: S105 - the variable's name
_LEAST: Final = 16


def metrics(
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Serve them at this address under /metrics, for Prometheus. Host: 127.0.0.1 unless named.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Print the state of the store as OpenMetrics text, or serve it for Prometheus."""
    from tasks.telemetry import Metrics

    address = None if listen is None else _address(listen)
    source = Metrics(connect(state, store))
    if address is None:
        typer.echo(source.text(), nl=False)
        return
    from deployments.exporter import PATH, Exporter

    try:
        exporter = Exporter(address, source.text, os.environ.get(_TOKEN))
    except OSError as error:
        raise CliError(f"cannot listen on {listen}: {error.strerror or error}") from error
    with exporter:
        host, port = str(exporter.server_address[0]), exporter.server_address[1]
        console.print(escape(f"serving http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"))
        exporter.serve_forever()


def _address(listen: str) -> tuple[str, int]:
    """Host and port. Raises UsageError for what is neither, and beyond this machine unless a token protects it."""
    from deployments.exporter import is_loopback

    named, _, port = listen.rpartition(":")
    host = named.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--listen takes [HOST:]PORT, such as 9464 or 127.0.0.1:9464, got {listen!r}")
    token = os.environ.get(_TOKEN)
    if token is not None and (len(token) < _LEAST or not token.isascii() or not token.isprintable() or " " in token):
        raise UsageError(f"{_TOKEN} must have at least {_LEAST} printable ASCII characters, and no space")
    if token is None and not is_loopback(host):
        raise UsageError(f"{host} is reached from other machines: set {_TOKEN}, which Prometheus must send then")
    return host, int(port)
