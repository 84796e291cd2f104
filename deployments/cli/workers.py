"""Commands for the machines that work: empty a pool before its worker stops, and open it again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from deployments.cli.common import CliError, StateOption, UsageError, console, say, state_folder
from deployments.stack import local
from deployments.terminal.text import escape

PoolArgument = Annotated[str, typer.Argument(help="Work pool: cpu or gpu.")]
MarkOption = Annotated[
    Path | None,
    typer.Option(help="File that tells a pool paused by `drain` from one paused by a person.", show_default=False),
]


def drain(
    pool: PoolArgument,
    minutes: Annotated[float, typer.Option(min=0, help="How long to wait for runs under way.")] = 480.0,
    mark: MarkOption = None,
    state: StateOption = None,
) -> None:
    """Pause a work pool and wait until its runs have ended, so that its worker can be stopped."""
    _find_server(state)
    from deployments.server import drain as draining

    left = draining.drain(
        pool, patience=minutes * 60, mark=mark, on_wait=lambda runs: say(f"waiting for {', '.join(runs) or 'quiet'}")
    )
    if left:
        raise CliError(f"pool {pool} is paused, but after {minutes:g} minutes still under way: {', '.join(left)}")
    console.print(f"pool {escape(pool)} is paused and empty; `ratchet resume {escape(pool)}` opens it again")


def resume(pool: PoolArgument, mark: MarkOption = None, state: StateOption = None) -> None:
    """Let the workers of a pool take runs again."""
    _find_server(state)
    from deployments.server import drain as draining

    if draining.resume(pool, mark=mark):
        console.print(f"pool {escape(pool)} takes runs again")
    else:
        console.print(f"pool {escape(pool)} is left as it is: it was not paused by `ratchet drain`")


def _find_server(state: Path | None) -> None:
    """Point this process at the local stack unless PREFECT_API_URL says where the server is."""
    if os.environ.get("PREFECT_API_URL"):
        return
    stack = local.find(state_folder(state))
    if stack is None:
        raise UsageError("no Prefect server: set PREFECT_API_URL, or start the local stack with `ratchet up`")
    stack.adopt()
