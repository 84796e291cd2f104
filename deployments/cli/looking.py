"""Commands on what the store keeps: rows, rejected rows, what to erase, and whether all that a night needs is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.common import (
    CliError,
    StateOption,
    StoreOption,
    UsageError,
    connect,
    console,
    errors,
    state_folder,
    store_url,
)
from deployments.cli.reading import as_json, as_line
from deployments.stack import local
from deployments.terminal.text import escape
from tasks.config import BUNDLED_MODEL

if TYPE_CHECKING:
    from tasks.erasure import Plan


def quarantine(store: StoreOption = None, state: StateOption = None) -> None:
    """List the rows that were rejected: reasons with counts, and an example of each."""
    from deployments.terminal import show
    from tasks.intake import quarantined

    table = show.rejected(quarantined(connect(state, store)))
    show.to(console, table if table.row_count else "no row was rejected")


def suspects(
    run: Annotated[str | None, typer.Argument(help="A run. Default: the latest whose labels were audited.")] = None,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Print suspicious labels as JSON lines; findings on new uploads go to stderr."""
    import orjson

    from tasks import runs

    opened = connect(state, store)
    chosen = (
        runs.Run(opened, run) if run else next((one for one in runs.backwards(opened) if one.find(runs.AUDITED)), None)
    )
    audited = chosen.find(runs.AUDITED) if chosen else None
    if chosen is None or audited is None:
        raise UsageError(f"run {run} has no audit of its labels" if run else "no night has audited its labels yet")
    errors.print(escape(f"{chosen.run_id}: {audited.failed or f'{audited.pairs:,} pairs looked at'}"))
    for one in audited.uploads:
        share = "not judged" if one.share is None else f"{one.share:.0%} of the labels look random"
        errors.print(escape(f"{one.name}: {share}{', too many for chance' if one.named else ''}. {one.why}"))
    blob = opened.find(chosen.key(runs.SUSPECTS))
    for line in blob.body.splitlines() if blob else ():
        typer.echo(as_line(orjson.loads(line)))


def rows(
    key: Annotated[str | None, typer.Option("--object", help="Only the rows of this object.")] = None,
    query: Annotated[
        str | None, typer.Option(help="Only the rows with this query, up to case and white space.")
    ] = None,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Print the rows that a night would work with, as JSON lines."""
    from tasks.intake import live_tables
    from tasks.splits import document_key

    wanted = None if query is None else document_key(query)
    found = False
    for table in live_tables(connect(state, store), key):
        for batch in table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                if wanted is None or document_key(row["query"] or "") == wanted:
                    typer.echo(as_json(row))
                    found = True
    if not found and key is None and query is None:
        errors.print("no rows yet: a night takes in what was uploaded; `ratchet read FILE` shows what it would take")


def forget(
    key: Annotated[str | None, typer.Option("--object", help="An object, with everything derived from it.")] = None,
    query: Annotated[str | None, typer.Option(help="A text that occurs as a query.")] = None,
    document: Annotated[str | None, typer.Option(help="A text that occurs as a document or as a negative.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what contains it, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before erasing.")] = False,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Erase a text, or an object, from everything that the store keeps. Needs the owner's rights (iam/eraser.json)."""
    from tasks import erasure

    opened = connect(state, store)
    try:
        wanted = erasure.select(opened, key=key, query=query, document=document)
    except erasure.NothingToForgetError as error:
        raise UsageError(str(error)) from error
    plan = erasure.find(opened, wanted)
    for line in _described(plan):
        console.print(escape(line))
    if dry_run or not plan:
        return
    if not yes and not typer.confirm("Erase all of it? This cannot be undone."):
        console.print("nothing was erased")
        raise typer.Exit(1)
    try:
        audit = erasure.carry_out(opened, wanted, plan)
    except erasure.StubbornError as error:
        raise CliError(str(error)) from error
    left = erasure.find(opened, wanted)
    if left:
        raise CliError("something written meanwhile contains it: run the command again when no night is running")
    console.print(escape(f"erased; {opened.uri(audit)} says what, without the text"))
    console.print(
        "Workers keep vectors under RATCHET_WORK/vectors: delete that folder on each. The next night trains again."
    )
    console.print("An index has it until `ratchet reindex --drop-previous` has run on its target.")


def _described(plan: Plan) -> list[str]:
    """What holds what is to be forgotten, a line each."""
    found = {
        "accepted rows, of all commits": plan.rows,
        "rejected rows": plan.rejected,
        "uploaded objects": len(plan.sources) + len(plan.stubborn),
        "entries of the log": len(plan.commits),
        "batches that nothing names": len(plan.orphans),
        "records of runs and of the watch": len(plan.records),
        "blocks of cached vectors, shards of indexes": len(plan.vectors),
        "old versions that the bucket keeps": len(plan.old),
    }
    lines = [f"{count:>8,}  {name}" for name, count in found.items() if count]
    lines += [f"          {key}" for key in plan.sources]
    lines += [f"          {key}: cannot be rewritten or read here" for key in plan.stubborn]
    if plan.versions:
        lines.append(f"Trained on it, and not changed: {', '.join(plan.versions)}")
    if plan.mentions:
        lines.append(f"{plan.mentions:,} longer texts contain it and stay; name one of them to erase it")
    return lines if plan else [*lines, "Nothing in the store holds it."]


def doctor(
    store: StoreOption = None,
    state: StateOption = None,
    base_model: Annotated[str, typer.Option(help="Base model to check.")] = BUNDLED_MODEL,
) -> None:
    """Check everything that a night needs, and say what to fix."""
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
