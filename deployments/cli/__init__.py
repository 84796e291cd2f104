"""The command line. Exit status: 0 when a run ended in a verdict, 2 for bad usage, 1 for a failure.

Each room of commands is a module of plain functions, registered here. Nothing heavy is imported before a command needs
it, and Prefect only after the process is pointed at a server.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Final

import typer

from deployments.cli import (
    alerts,
    indexing,
    joining,
    looking,
    monitoring,
    nights,
    reading,
    searching,
    stack,
    trying,
    versions,
    workers,
)
from deployments.cli.common import CliError, UsageError, errors, hush
from deployments.stack import local
from deployments.terminal.text import escape, sanitise_logs

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

app = typer.Typer(
    name="ratchet",
    help="Retrain the embedding model behind a search every night, and promote it only if it is better.",
    epilog="Exit status: 0 for success (a night: any verdict but failed), 2 for bad usage, 1 for a failure. "
    "docs/troubleshooting.md says what to do about each message.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"{importlib.metadata.version('ratchet')}\n")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself."""


# in the order of the help page: one panel per room
_PANELS: Final[dict[str, dict[str, Callable[..., None]]]] = {
    "Try it on this machine": {
        "demo": stack.demo,
        "tour": stack.tour,
        "try": trying.try_pairs,
        "convert": trying.convert,
        "read": reading.read,
        "up": stack.up,
        "status": stack.status,
    },
    "Nights": {"init": trying.init, "deploy": nights.deploy, "run": nights.run, "approve": nights.approve},
    "What serves": {
        "history": versions.history,
        "pull": versions.pull,
        "reindex": indexing.reindex,
        "search": searching.search,
        "rollback": versions.rollback,
        "publish": versions.publish,
        "release": versions.release,
        "retire": versions.retire,
    },
    "Workers": {"join": joining.join, "drain": workers.drain, "resume": workers.resume},
    "Inspect": {
        "rows": looking.rows,
        "quarantine": looking.quarantine,
        "suspects": looking.suspects,
        "forget": looking.forget,
        "metrics": monitoring.metrics,
        "doctor": looking.doctor,
    },
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(alerts.app, name="alerts", rich_help_panel="Inspect")


def main() -> None:
    """Run the command line; errors that people can fix are one message, not a traceback."""
    for number in _ENDING:
        signal.signal(number, _interrupt)  # so that `with` blocks are left, and what they started is stopped
    hush()
    sanitise_logs()
    try:
        app()
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(130)
    except _expected() as error:
        errors.print(f"[bold red]error:[/] {escape(_words(error), lines=True)}")
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Leave once, in order; further signals would only cut the tidying up short."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _expected() -> tuple[type[Exception], ...]:
    """The errors that are shown as one message; looked up late, as most commands need none of these modules."""
    from httpx import HTTPError

    from deployments.server.deploy import DeployError
    from deployments.server.drain import DrainError
    from deployments.terminal.follow import RunError
    from flows.context import WorkFolderError
    from flows.reindex import ProductionMovedError
    from tasks.encoding import ModelError
    from tasks.index import DocumentsError, RayError, ShardError, TargetError
    from tasks.registry import RegistryError
    from tasks.storage import StoreError

    files = (PermissionError, NotADirectoryError)  # a path that was named, and is not the caller's to use
    return (
        CliError,
        local.StackError,
        DeployError,
        DrainError,
        RunError,
        StoreError,
        RegistryError,
        WorkFolderError,
        ModelError,
        DocumentsError,
        RayError,
        ShardError,
        TargetError,
        ProductionMovedError,
        HTTPError,
        *files,
    )


def _words(error: Exception) -> str:
    """What an error says; of one of HTTP, which only the Prefect server is spoken to by, what to do about it."""
    from httpx import HTTPError, HTTPStatusError

    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}: name another, or ask for the right to use it"
    if not isinstance(error, HTTPError):
        return str(error)
    if not isinstance(error, HTTPStatusError):
        url = os.environ.get("PREFECT_API_URL", "")
        return (
            f"the Prefect server does not answer at {url} ({error}): is PREFECT_API_URL its address, ending in /api, "
            "and does it run?"
        )
    status = error.response.status_code
    if status in {401, 403}:
        return "the Prefect server refuses the credentials: PREFECT_API_AUTH_STRING must be its user:password"
    return f"the Prefect server answers {status}: {error.response.text[:500]}"
