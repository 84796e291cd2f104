"""The command line. Exit status: 0 when a run ended in a verdict, 2 for bad usage, 1 for a failure.

Nothing heavy is imported before a command needs it, and Prefect only after the process is pointed at a server.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments import local

if TYPE_CHECKING:
    from tasks.config import Outcome

DEMO: Final = "demo"
"""Name of the demonstration's own store on the local stack, apart from the one that scheduled runs work on."""

app = typer.Typer(
    name="ratchet",
    help="Nightly embedding retraining that only moves forward.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console: Final = Console(highlight=False, soft_wrap=True)
errors: Final = Console(highlight=False, soft_wrap=True, stderr=True)

StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state", help="Folder of the local stack.  [default: RATCHET_STATE, else .ratchet]", show_default=False
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="s3://bucket/prefix.  [default: RATCHET_STORE, else the main store of the local stack]",
        show_default=False,
    ),
]


class CliError(Exception):
    """Something that the person at the keyboard can mend; the message says how."""


class UsageError(CliError):
    """The command was used wrongly."""


def main() -> None:
    """Run the command line; errors that people can mend are one message, not a traceback."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # so that `with` blocks are left, and what they started is stopped
    try:
        app()
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(130)
    except _expected() as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _expected() -> tuple[type[Exception], ...]:
    """The errors that are said in words; looked up late, as most commands need none of these modules."""
    from deployments.deploy import DeployError
    from deployments.follow import RunError
    from tasks.storage import StoreError
    from tasks.versions import RegistryError

    return (CliError, local.StackError, DeployError, RunError, StoreError, RegistryError)


# --- the local stack -------------------------------------------------------------------------------------


@app.command()
def up(state: StateOption = None) -> None:
    """Run the local stack (S3 server, Prefect server, two workers) until Ctrl-C."""
    with local.running(state or local.default_state(), on_step=_say) as stack:
        _describe(stack)
        console.print("Ctrl-C stops everything.")
        while all(stack.running().values()):
            time.sleep(1)
        ended = ", ".join(name for name, alive in stack.running().items() if not alive)
        raise local.StackError(f"{ended} ended by itself; see {stack.logs()}")


@app.command()
def status(state: StateOption = None, store: StoreOption = None) -> None:
    """Say what runs, where, what is in production, and how the last run ended."""
    stack = local.find(state or local.default_state())
    if stack is None:
        console.print(f"No local stack runs on {state or local.default_state()}; `ratchet up` starts one.")
    else:
        _describe(stack)
    named = store or os.environ.get("RATCHET_STORE")
    if stack is not None and named is None:
        stack.adopt()
        for url in (stack.store(), stack.store(DEMO)):
            _describe_store(url)
    elif named is not None:
        if stack is not None and not os.environ.get("RATCHET_STORE"):
            stack.adopt()
        _describe_store(named)


def _describe(stack: local.Stack) -> None:
    table = Table.grid(padding=(0, 2))
    for name, alive in stack.running().items():
        table.add_row(name, f"process {stack.services[name]}" if alive else "[red]not running[/]")
    console.print(table)
    console.print(
        f"Prefect UI   {stack.ui_url}  (it asks for a password: the line in {escape(str(stack.password_file))})"
    )
    console.print(f"S3 server    {stack.s3_endpoint}  (store {stack.store()})")
    console.print(f"Logs         {escape(str(stack.logs()))}")


def _describe_store(url: str) -> None:
    from tasks.registry import read_production
    from tasks.runs import last_concluded
    from tasks.storage import Store

    store = Store.open(url)
    production, last = read_production(store), last_concluded(store)
    console.print(f"\n[bold]{escape(store.url)}[/]")
    console.print(
        f"  production  version {production.version} since {production.at:%Y-%m-%d %H:%M} UTC"
        if production
        else "  production  nothing yet: the base model serves"
    )
    console.print(f"  last run    {_one_line(last)}" if last else "  last run    none yet")


def _one_line(outcome: Outcome) -> str:
    return f"{outcome.run_id}: {outcome.verdict}: {escape('; '.join(outcome.reasons))}"


def _say(text: str) -> None:
    console.print(f"[dim]{escape(text)} ...[/]")
