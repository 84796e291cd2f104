"""Commands on the local stack: run it, ask after it, try a night on it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.table import Table

from deployments.cli.common import (
    CliError,
    StateOption,
    StoreOption,
    any_stack,
    connect,
    console,
    say,
    state_folder,
)
from deployments.stack import local
from deployments.terminal.text import escape

if TYPE_CHECKING:
    from tasks.storage import Store

DEMO: Final = "demo"
"""Name of the demonstration's own store on the local stack, apart from the one that scheduled runs work on."""

_QUESTION: Final = "keep a copy of my database in another region"


def up(state: StateOption = None) -> None:
    """Run the local stack (S3 server, Prefect server, two workers) until Ctrl-C."""
    try:
        with local.running(state_folder(state), on_step=say) as stack:
            _describe(stack)
            console.print("Ctrl-C stops everything.")
            while all(stack.running().values()):
                time.sleep(1)
            ended = ", ".join(name for name, alive in stack.running().items() if not alive)
            raise local.StackError(f"{ended} stopped unexpectedly; see {stack.logs()}")
    except KeyboardInterrupt:
        console.print("stopped")


def status(state: StateOption = None, store: StoreOption = None) -> None:
    """Show what runs and where, what is in production, and how the last run ended."""
    from tasks.storage import Store

    stack = local.find(state_folder(state))
    if stack is None:
        console.print(f"No local stack runs on {state_folder(state)}; `ratchet up` starts one.")
    else:
        _describe(stack)
    if stack is not None or store or os.environ.get("RATCHET_STORE"):
        main = connect(state, store)
        _describe_store(main)
        if stack is not None and main.url == stack.store():
            _describe_store(Store.open(stack.store(DEMO)))


def demo(state: StateOption = None) -> None:
    """Run one real night on bundled documentation, from start to verdict."""
    from deployments import demo as data
    from deployments.terminal import follow, show
    from tasks.registry import pull as pull_version
    from tasks.registry import read_production
    from tasks.runs import Run
    from tasks.storage import Store

    began = time.monotonic()
    with any_stack(state_folder(state)) as stack:
        stack.adopt()
        store = Store.open(stack.store(DEMO))
        texts = data.build()
        say(f"uploading {texts.n_pairs:,} labelled pairs and {texts.n_corpus:,} further documents to {store.url}")
        texts.upload(store)
        parameters = {"store": store.url, "reason": "demonstration"}
        outcome = follow.night(console, store, "retrain/nightly", parameters)
        show.to(console, show.outcome(outcome))
        if outcome.verdict == "failed":
            raise CliError(f"the night failed; its log is in the UI, and in {stack.logs()}")
        production = read_production(store)
        if production is not None and production.version is not None:
            promoted = Run(store, production.run_id).outcome
            if promoted is not None and promoted.run_id != outcome.run_id:
                console.print(f"What serves was promoted by run {promoted.run_id}, with these scores:")
                show.to(console, show.scores(promoted))
            folder = pull_version(store, production.version, stack.state / "demo-model")
            console.print(
                f"Model      version {production.version} in {escape(store.uri(f'models/{production.version}/'))}"
            )
            console.print(f"           also, verified, in {escape(str(folder))}: SentenceTransformer({str(folder)!r})")
            _build_index(store)
        console.print(f"Report     {escape(outcome.report or 'none')}")
        console.print(
            f"UI         `make up`, then {stack.ui_url} (password: the line in {escape(str(stack.password_file))})"
        )
        console.print(f"Took       {time.monotonic() - began:.0f} s")


def _build_index(store: Store) -> None:
    """Build the index of the demo, and say how to ask it; without one the demo is none the worse."""
    from deployments.demo import index
    from flows.context import work_folder
    from tasks.index import DocumentsError, ShardError, TargetError

    say("embedding the documents with what serves, for a search")
    try:
        count = index.build(store, work_folder())
    except (TargetError, DocumentsError, ShardError) as error:
        console.print(f"Search     no index was built: {escape(str(error))}")
        return
    program = "ratchet" if shutil.which("ratchet") else os.path.relpath(Path(sys.executable).with_name("ratchet"))
    console.print(f"Search     {escape(program)} search {shlex.quote(_QUESTION)}")
    console.print(f"           among {count:,} documents: what the model found before, and what it finds now")


def tour(state: StateOption = None) -> None:
    """Play a week of nights, some minutes: skipped, promoted, regressed (with its alert), held; and a rollback."""
    from deployments.demo import tour as week
    from tasks.storage import Store

    began = time.monotonic()
    with any_stack(state_folder(state)) as stack:
        stack.adopt()
        store = Store.open(stack.store(f"tour-{datetime.now(UTC):%Y%m%dT%H%M%S}"))
        try:
            week.play(console, stack, store)
        except week.TourError as error:
            raise CliError(f"the tour did not go as expected. {error}; logs are in {stack.logs()}") from error
        console.print(f"Took       {time.monotonic() - began:.0f} s; every night ended as expected")
        console.print("Again      `make up` shows all runs and artifacts, as long as .ratchet is kept")


def _describe(stack: local.Stack) -> None:
    table = Table.grid(padding=(0, 2))
    for name, alive in stack.running().items():
        table.add_row(name, f"process {stack.services[name]}" if alive else "[red]not running[/]")
    console.print(table)
    password = escape(str(stack.password_file))
    console.print(f"Prefect UI   {stack.ui_url}  (it asks for a password: the line in {password})")
    console.print(f"S3 server    {stack.s3_endpoint}  (store {stack.store()})")
    console.print(f"Logs         {escape(str(stack.logs()))}")
    console.print(
        f"In a shell   . {escape(shlex.quote(str(stack.environment_file)))}  (then `prefect` works on this stack)"
    )


def _describe_store(store: Store) -> None:
    from tasks.registry import read_production
    from tasks.runs import last_concluded

    production, last = read_production(store), last_concluded(store)
    console.print(f"\n[bold]{escape(store.url)}[/]")
    console.print(
        f"  production  {production.serves} since {production.at:%Y-%m-%d %H:%M} UTC; its index {production.index}"
        if production
        else "  production  nothing yet: the base model serves"
    )
    text = f"{last.verdict}: {escape('; '.join(last.reasons))} (run {last.run_id})" if last else "none yet"
    console.print(f"  last run    {text}")
