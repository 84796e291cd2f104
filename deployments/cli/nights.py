"""Commands that have nights run: register them with Prefect, or run one now."""

from __future__ import annotations

import getpass
import os
from typing import Annotated

import typer

from deployments.cli.common import (
    CliError,
    ConfigOption,
    SetOption,
    StateOption,
    StoreOption,
    UsageError,
    connect,
    console,
    load_settings,
    parameters,
    reach_prefect,
)
from deployments.terminal.text import escape


def deploy(
    state: StateOption = None,
    config: ConfigOption = None,
    pool_type: Annotated[
        str, typer.Option(help="Type of a work pool that is still missing: process, docker or kubernetes.")
    ] = "process",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
) -> None:
    """Set up work pools, deployments, channels and alerts on the server of PREFECT_API_URL, or on the local stack."""
    from deployments.server import pools

    kinds: dict[str, pools.Kind] = {kind: kind for kind in pools.KINDS}
    if pool_type not in kinds:
        raise UsageError(f"--pool-type is one of {', '.join(pools.KINDS)}, got {pool_type!r}")
    settings = load_settings(config)
    reach_prefect(state)
    from deployments.server import deploy as setup

    changed = setup.deploy(settings, kind=kinds[pool_type], environment=os.environ, dry_run=dry_run)
    for line in changed:
        console.print(escape(line))
    if not changed:
        console.print("nothing differs from the settings")
    elif dry_run:
        console.print("nothing was changed: this was a dry run")


def approve(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The night that waits, as its alert names it.")],
    reject: Annotated[bool, typer.Option("--reject", help="Hold the candidate; production stays.")] = False,
    comment: Annotated[str, typer.Option(help="Why, for the ledger and the report.")] = "",
    by: Annotated[
        str | None, typer.Option(help="Your name, for the ledger; nobody checks it. Default: the user here.")
    ] = None,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Approve or reject a candidate that passed the gate and waits for a person. The first answer counts."""
    from tasks import approval

    opened = connect(state, store)
    try:
        given = approval.answer(
            opened, run_id, "rejected" if reject else "approved", by=by or getpass.getuser(), comment=comment
        )
    except approval.ApprovalError as error:
        raise CliError(str(error)) from None
    console.print(f"{escape(str(given))}. The night goes on within seconds; where its process has died, run it again.")


def run(
    store: StoreOption = None,
    state: StateOption = None,
    deployment: Annotated[
        str | None, typer.Option(help="Run it by this deployment, such as retrain/nightly, not in this process.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fine-tune even though nothing is new.")] = False,
    reason: Annotated[str, typer.Option(help="Reason, recorded in the outcome and the ledger.")] = "manual",
    settings: SetOption = None,
) -> None:
    """Run a night: take in new pairs, check, fine-tune, compare, promote what is significantly better."""
    from deployments.terminal import follow, show
    from tasks.registry import read_production

    given = parameters(settings or [])
    opened = connect(state, store)
    read_production(opened)  # a store that cannot be read is said now, not after a night's retries
    if deployment is not None:
        dumped = {name: model.model_dump(mode="json") for name, model in given.items()}
        outcome = follow.night(
            console, opened, deployment, {**dumped, "store": opened.url, "force": force, "reason": reason}
        )
    else:
        from deployments.server.temporary import private_server
        from flows.retrain import retrain

        with private_server():
            outcome = retrain(store=opened.url, force=force, reason=reason, **given)
    show.to(console, show.outcome(outcome))
    if outcome.verdict == "failed":
        raise typer.Exit(1)
