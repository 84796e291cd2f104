"""Commands for the machines that work: empty a pool before its worker stops, and open it again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployments.cli.common import CliError, StateOption, console, reach_prefect, say
from deployments.terminal.text import escape

_PoolArgument = Annotated[str, typer.Argument(help="Work pool: cpu or gpu.")]
_MarkOption = Annotated[
    Path | None,
    typer.Option(help="File that tells a pool paused by `drain` from one paused by a person.", show_default=False),
]


def drain(
    pool: _PoolArgument,
    minutes: Annotated[float, typer.Option(min=0, help="How long to wait for runs under way.")] = 480.0,
    mark: _MarkOption = None,
    state: StateOption = None,
) -> None:
    """Pause a work pool and wait until its runs have ended, so that its worker can be stopped."""
    reach_prefect(state)
    from deployments.server import drain as draining

    left = draining.drain(
        pool, patience=minutes * 60, mark=mark, on_wait=lambda runs: say(f"waiting for {', '.join(runs) or 'quiet'}")
    )
    if left:
        raise CliError(f"pool {pool} is paused, but after {minutes:g} minutes still under way: {', '.join(left)}")
    console.print(f"pool {escape(pool)} is paused and empty; `ratchet resume {escape(pool)}` opens it again")


def resume(pool: _PoolArgument, mark: _MarkOption = None, state: StateOption = None) -> None:
    """Let the workers of a pool take runs again."""
    reach_prefect(state)
    from deployments.server import drain as draining

    if draining.resume(pool, mark=mark):
        console.print(f"pool {escape(pool)} accepts runs again")
    else:
        console.print(f"pool {escape(pool)} is unchanged: it was not paused by `ratchet drain`")
