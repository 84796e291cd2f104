"""Commands on what serves: its history, its files, and the way back."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.common import CliError, StateOption, StoreOption, UsageError, connect, console
from deployments.terminal.text import escape

if TYPE_CHECKING:
    from tasks.publishing import Targets
    from tasks.storage import Store


def history(
    store: StoreOption = None,
    state: StateOption = None,
    runs: Annotated[int, typer.Option(min=0, help="How many of the latest runs to list.")] = 10,
    on: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="Only what served on this day (UTC), and why."),
    ] = None,
) -> None:
    """List every change of production, and how the latest runs ended; or what served on one day."""
    from deployments.terminal import show
    from tasks import approval, registry
    from tasks.runs import backwards

    opened = connect(state, store)
    changes = registry.history(opened)
    if on is not None:
        served = registry.served_on(changes, on.date())
        show.to(console, show.ledger(served) if served else f"On {on:%Y-%m-%d} the base model served.")
        return
    show.to(console, show.ledger(changes) if changes else "Production has never changed: the base model serves.")
    for one in registry.held(opened):
        console.print(f"Held: {escape(str(one))}.")
    for run_id, waits in approval.waiting(opened).items():
        moment = f"{waits.until:%Y-%m-%d %H:%M} UTC"
        console.print(f"Version {waits.candidate} waits for approval until {moment}: `ratchet approve {run_id}`.")
    latest = (run.outcome for run in islice(backwards(opened), runs))
    outcomes = [outcome for outcome in latest if outcome is not None]
    if outcomes:
        show.to(console, show.runs(outcomes))


def pull(
    folder: Annotated[Path, typer.Argument(help="Target folder; replaced as a whole when it holds another version.")],
    version: Annotated[str | None, typer.Option(help="Version to fetch. Default: what is in production.")] = None,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Fetch the verified files of a model: a folder that SentenceTransformer loads."""
    from tasks import registry
    from tasks.registry import versions

    opened = connect(state, store)
    if version is None:
        registry.pull_production(opened, folder)
    else:
        versions.pull(opened, version, folder)
    console.print(f"every file verified: SentenceTransformer({str(folder)!r})")
    pulled = versions.Manifest.model_validate_json((folder / versions.MANIFEST).read_bytes())
    if needs := [f"{name} {least} or later" for name, least in pulled.description.requires.items()]:
        console.print(f"needs {', '.join(needs)}")
    served = registry.read_production(opened)
    if served is not None and version in (None, served.version):
        console.print(f"an index of documents {served.index} with change {served.promotion}, which let it serve")
    if (documents := pulled.description.documents) is not None:
        console.print(f"documents {documents[:16]}: another version with the same has the same vectors")


def rollback(
    reason: Annotated[str, typer.Option(help="Reason, recorded in the ledger.")],
    to: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Version to serve; base: the base model. Default: what served before."),
    ] = None,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Put an earlier version back into production. Needs the store only, not Prefect, and sends no event."""
    from uuid import uuid4

    from tasks import registry
    from tasks.publishing import Targets
    from tasks.runs import run_id
    from tasks.storage import StoreError
    from tasks.telemetry import write_metrics

    opened = connect(state, store)
    change = registry.rollback(
        opened, to, run_id=run_id(datetime.now(UTC), uuid4().hex), who=getpass.getuser(), reason=reason
    )
    console.print(f"{change.serves} serves again, in place of {registry.name_of(change.previous)}")
    try:
        write_metrics(opened)
    except (StoreError, registry.RegistryError) as error:
        console.print(f"metrics.txt was not renewed: {escape(str(error))}")
    left = ", ".join(one.version for one in registry.held(opened) if one.rollback.promotion == change.promotion)
    if left:
        console.print(f"No night promotes {left} again until `ratchet release VERSION`.")
    console.print(
        "No event was sent: tell those who build the index"
        + (", which must be rebuilt." if change.rebuild_index else "; it need not be rebuilt.")
        + " The flow rollback/manual does the same and sends ratchet.production.changed."
    )
    targets = Targets.of(os.environ)
    if any(targets.named()) and not _publish(opened, targets):
        console.print("To try that again: `ratchet publish`.")


def publish(store: StoreOption = None, state: StateOption = None) -> None:
    """Publish production to MLflow (RATCHET_MLFLOW_MODEL) and Hugging Face (RATCHET_HF_REPO), even if it was before."""
    from tasks.publishing import Targets

    targets = Targets.of(os.environ)
    if not any(targets.named()):
        raise UsageError(
            "nowhere to publish: set RATCHET_MLFLOW_MODEL to a registered model, or RATCHET_HF_REPO to owner/name"
        )
    if not _publish(connect(state, store), targets):
        raise CliError("not everything was published; production is unchanged")


def _publish(store: Store, targets: Targets) -> bool:
    """Publish and say what came of it; whether all is published."""
    from tasks import registry
    from tasks.publishing import publish

    results = list(publish(store, targets, environment=os.environ, again=True))
    if not results:
        console.print("nothing is in production: there is nothing to publish")
    for result in results:
        said = f"not published: {result.error}" if result.error else f"is {result.where}"
        console.print(f"{result.target}: {registry.name_of(result.version)} {escape(said)}")
    return not any(result.error for result in results)


def release(
    version: Annotated[str, typer.Argument(help="Version that was rolled back, as `ratchet history` shows it.")],
    reason: Annotated[str, typer.Option(help="Why it may be promoted again.")],
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Allow nights to promote a version that was rolled back."""
    from tasks import registry

    for one in registry.release(connect(state, store), version, who=getpass.getuser(), reason=reason):
        by = f"change {one.rollback.promotion}, by {one.rollback.who}: {one.rollback.reason}"
        console.print(f"version {version} is no longer held (it was rolled back by {escape(by)})")


def retire(
    keep: Annotated[
        int | None, typer.Option(min=1, help="How many of the latest candidates to keep. Default: 10.")
    ] = None,
    ledger_entries: Annotated[
        int | None, typer.Option("--changes", min=1, help="Changes of production whose versions are kept. Default: 10.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted, and delete nothing.")] = False,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Delete versions, checkpoints and vectors of indexes that nothing needs; every night does so at its end."""
    from tasks import night

    gone = night.retire(connect(state, store), keep=keep, ledger_entries=ledger_entries, dry_run=dry_run)
    for version in gone.versions:
        console.print(f"version {version}")
    for run in gone.checkpoints:
        console.print(f"checkpoints of run {run}")
    for key in gone.vectors:
        console.print(f"vectors {key}")
    count = len(gone.versions) + len(gone.checkpoints) + len(gone.vectors)
    console.print(
        "nothing to delete"
        if not count
        else f"{count} would be deleted: this was a dry run"
        if dry_run
        else f"{count} deleted"
    )
