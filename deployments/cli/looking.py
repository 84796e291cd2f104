"""Commands that look and change nothing: rejected rows, and whether all that a night needs is there."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.cli.common import StateOption, StoreOption, connect, console, state_folder, store_url
from deployments.stack import local
from deployments.terminal.text import escape
from tasks.config import BUNDLED_MODEL


def quarantine(store: StoreOption = None, state: StateOption = None) -> None:
    """List the rows that were rejected: reasons with counts, and an example of each."""
    from deployments.terminal import show
    from tasks.intake import quarantined

    show.to(console, show.rejected(quarantined(connect(state, store))))


def doctor(
    store: StoreOption = None,
    state: StateOption = None,
    base_model: Annotated[str, typer.Option(help="Base model to look for.")] = BUNDLED_MODEL,
) -> None:
    """Look at everything that a night needs, and say what to fix."""
    from deployments import doctor as examination

    stack = local.find(state_folder(state))
    named = store_url(stack, store)
    sound = True
    for finding in examination.examine(named, base_model):
        mark = "[bold red]FIX[/] " if not finding.sound else "[yellow]note[/]" if finding.advice else "[green]ok[/]  "
        console.print(f"{mark}  {finding.name:<26} {escape(finding.text)}")
        sound = sound and finding.sound
    if not sound:
        raise typer.Exit(1)
