"""Commands on alerts: what is set up, and whether it arrives."""

from __future__ import annotations

from typing import Final

import typer

from deployments.cli.common import CliError, StateOption, console, reach_prefect
from deployments.terminal.text import escape

app: Final = typer.Typer(help="List the alerts that are set up, or send one of each as a test.")


@app.callback(invoke_without_command=True)
def listed(context: typer.Context, state: StateOption = None) -> None:
    """List the alerts that are set up, or send one of each as a test."""
    if context.invoked_subcommand is not None:
        return
    reach_prefect(state)
    from deployments.server import automations

    told = False
    for automation in automations.find():
        targets = automations.channels_of(automation)
        told = told or bool(targets)
        off = "" if automation.enabled else ", switched off"
        name = automation.name.removeprefix(automations.PREFIX)
        console.print(
            f"{escape(name):<28} {escape(automation.description)} [dim]({', '.join(targets) or 'no message'}{off})[/]"
        )
    if not told:
        console.print("No alerts are sent: add a channel to ratchet.toml, then run `ratchet deploy`.")


@app.command("test")
def send_tests(state: StateOption = None) -> None:
    """Send each alert as a test, by the way of a real one: event, automation, channel."""
    reach_prefect(state)
    from deployments.server import alert_test

    failed = sent = 0
    for tested in alert_test.send():
        sent += 1
        failed += tested.error is not None
        mark = "[bold red]failed[/]" if tested.error else "[green]sent[/]  "
        how = ", directly: it waits for something not to happen" if tested.directly and not tested.error else ""
        error = f": {escape(tested.error)}" if tested.error else ""
        console.print(f"{mark}  {escape(tested.alert):<12} to {escape(tested.channel)}{error}{how}")
    if not sent:
        raise CliError("no alert has a channel: add one to ratchet.toml, then run `ratchet deploy`")
    if failed:
        raise CliError(f"{failed} of {sent} test alerts were not accepted")
