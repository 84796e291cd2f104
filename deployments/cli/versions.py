"""Commands on what serves: its history, its files, and the way back."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from deployments.cli.common import StateOption, StoreOption, connect, console


def history(
    store: StoreOption = None,
    state: StateOption = None,
    runs: Annotated[int, typer.Option(min=0, help="How many of the latest runs to list.")] = 10,
) -> None:
    """List every change of production, and how the latest runs ended."""
    from deployments import show
    from tasks import registry
    from tasks.runs import read_outcome

    opened = connect(state, store)
    changes = registry.history(opened)
    show.to(console, show.ledger(changes) if changes else "Production has never changed: the base model serves.")
    latest = sorted(opened.folders("runs/"), reverse=True)[:runs]
    outcomes = [found for found in (read_outcome(opened, run) for run in latest) if found is not None]
    if outcomes:
        show.to(console, show.runs(outcomes))


def pull(
    folder: Annotated[Path, typer.Argument(help="Where to; replaced as a whole when it holds another version.")],
    version: Annotated[str | None, typer.Option(help="Version to fetch. Default: what is in production.")] = None,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Fetch the verified files of a model: a folder that SentenceTransformer loads."""
    from tasks import registry, versions

    opened = connect(state, store)
    if version is None:
        registry.pull_production(opened, folder)
    else:
        versions.pull(opened, version, folder)
    console.print(f"every file verified: SentenceTransformer({str(folder)!r})")


def rollback(
    reason: Annotated[str, typer.Option(help="Why; it goes into the ledger.")],
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Version to serve. Default: the one before.")
    ] = None,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Put an earlier version back into production. Needs the store only, not Prefect."""
    from datetime import UTC, datetime
    from uuid import uuid4

    from tasks import registry
    from tasks.runs import run_id

    opened = connect(state, store)
    change = registry.rollback(
        opened, to, run_id=run_id(datetime.now(UTC), uuid4().hex), who=getpass.getuser(), reason=reason
    )
    console.print(f"version {change.version} serves again, in place of {change.previous}")
