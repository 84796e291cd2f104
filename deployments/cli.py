"""The command line. Exit status: 0 when a run ended in a verdict, 2 for bad usage, 1 for a failure.

Nothing heavy is imported before a command needs it, and Prefect only after the process is pointed at a server.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments import local
from tasks.config import BUNDLED_MODEL

if TYPE_CHECKING:
    from tasks.storage import Store

NIGHTLY: Final = "retrain/nightly"
DEMO: Final = "demo"
"""Name of the demonstration's own store on the local stack, apart from the one that scheduled runs work on."""

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

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
        "--state", help="Folder of the local stack. Default: RATCHET_STATE, else .ratchet.", show_default=False
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="s3://bucket/prefix. Default: RATCHET_STORE, else the main store of the local stack.",
        show_default=False,
    ),
]


class CliError(Exception):
    """Something that the person at the keyboard can mend; the message says how."""


class UsageError(CliError):
    """The command was used wrongly."""


def main() -> None:
    """Run the command line; errors that people can mend are one message, not a traceback."""
    for number in _ENDING:
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
    """Leave once, in order; further signals would only cut the tidying up short."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
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
    try:
        with local.running(_state(state), on_step=_say) as stack:
            _describe(stack)
            console.print("Ctrl-C stops everything.")
            while all(stack.running().values()):
                time.sleep(1)
            ended = ", ".join(name for name, alive in stack.running().items() if not alive)
            raise local.StackError(f"{ended} ended by itself; see {stack.logs()}")
    except KeyboardInterrupt:
        console.print("stopped")


@app.command()
def status(state: StateOption = None, store: StoreOption = None) -> None:
    """Say what runs, where, what is in production, and how the last run ended."""
    from tasks.storage import Store

    stack = local.find(_state(state))
    if stack is None:
        console.print(f"No local stack runs on {_state(state)}; `ratchet up` starts one.")
    else:
        _describe(stack)
    if stack is not None or store or os.environ.get("RATCHET_STORE"):
        main = _connect(state, store)
        _describe_store(main)
        if stack is not None and main.url == stack.store():
            _describe_store(Store.open(stack.store(DEMO)))


@app.command()
def demo(state: StateOption = None) -> None:
    """Run one real night on documentation that comes with the installation, start to verdict."""
    from deployments import demo as data
    from deployments import follow, show
    from tasks.registry import read_production
    from tasks.runs import read_outcome
    from tasks.storage import Store
    from tasks.versions import pull as pull_version

    began = time.monotonic()
    with _stack(_state(state)) as stack:
        stack.adopt()
        store = Store.open(stack.store(DEMO))
        texts = data.build()
        _say(f"uploading {texts.n_pairs:,} labelled pairs and {texts.n_corpus:,} further documents to {store.url}")
        texts.upload(store)
        parameters = {"store": store.url, "reason": "demonstration"}
        outcome = follow.night(console, store, NIGHTLY, parameters)
        show.to(console, show.outcome(outcome))
        if outcome.verdict == "failed":
            raise CliError(f"the night failed; its log is in the UI, and in {stack.logs()}")
        production = read_production(store)
        if production is not None:
            promoted = read_outcome(store, production.run_id)
            if promoted is not None and promoted.run_id != outcome.run_id:
                console.print(f"What serves was promoted by run {promoted.run_id}, with these scores:")
                show.to(console, show.scores(promoted))
            folder = pull_version(store, production.version, stack.state / "demo-model")
            console.print(
                f"Model      version {production.version} in {escape(store.uri(f'models/{production.version}/'))}"
            )
            console.print(f"           also, verified, in {escape(str(folder))}: SentenceTransformer({str(folder)!r})")
        console.print(f"Report     {escape(outcome.report or 'none')}")
        console.print(
            f"UI         `make up`, then {stack.ui_url} (password: the line in {escape(str(stack.password_file))})"
        )
        console.print(f"Took       {time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def _stack(state: Path) -> Iterator[local.Stack]:
    """The stack that runs already, or one for the length of the command."""
    found = local.find(state)
    if found is not None:
        _say(f"using the stack that runs already: {found.ui_url}")
        yield found
    else:
        with local.running(state, on_step=_say) as stack:
            yield stack


# --- nights ----------------------------------------------------------------------------------------------


@app.command()
def deploy(
    state: StateOption = None,
    pool_type: Annotated[str, typer.Option(help="Type of a work pool that is still missing.")] = "process",
) -> None:
    """Register the work pools and deployments with the Prefect server of PREFECT_API_URL, or the local stack."""
    from deployments import deploy as registration

    if not os.environ.get("PREFECT_API_URL"):
        stack = local.find(_state(state))
        if stack is None:
            raise UsageError("no Prefect server: set PREFECT_API_URL, or start the local stack with `ratchet up`")
        stack.adopt()
    registration.ensure_pools(pool_type)
    registration.register()
    console.print(f"registered every deployment of {escape(str(local.DEPLOYMENTS))}")


@app.command()
def run(
    store: StoreOption = None,
    state: StateOption = None,
    deployment: Annotated[
        str | None, typer.Option(help="Run it by this deployment, such as retrain/nightly, not in this process.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fine-tune even though nothing is new.")] = False,
    reason: Annotated[str, typer.Option(help="Why; it goes into the outcome and the ledger.")] = "manual",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter, such as training.epochs=2; may be repeated."),
    ] = None,
) -> None:
    """Run a night: take in what is new, check, fine-tune, compare, promote what is surely better."""
    from deployments import follow, show

    parameters = _parameters(settings or [])
    opened = _connect(state, store)
    if deployment is not None:
        dumped = {name: model.model_dump(mode="json") for name, model in parameters.items()}
        outcome = follow.night(
            console, opened, deployment, {**dumped, "store": opened.url, "force": force, "reason": reason}
        )
    else:
        from flows.retrain import retrain

        outcome = retrain(store=opened.url, force=force, reason=reason, **parameters)
    show.to(console, show.outcome(outcome))
    if outcome.verdict == "failed":
        raise typer.Exit(1)


def _parameters(settings: list[str]) -> dict[str, Any]:
    """Parameter models from `training.epochs=2` and the like; raises UsageError in pydantic's words."""
    from pydantic import ValidationError

    from tasks.config import Checks, Gate, Parameters, Training

    models: dict[str, type[Parameters]] = {"training": Training, "gate": Gate, "checks": Checks}
    values: dict[str, dict[str, Any]] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        group, dot, field = name.partition(".")
        if not equals or not dot or group not in models:
            raise UsageError(f"--set takes training.NAME=VALUE, gate.NAME=VALUE or checks.NAME=VALUE, got {setting!r}")
        values.setdefault(group, {})[field] = _value(value)
    try:
        return {group: models[group].model_validate(fields) for group, fields in values.items()}
    except ValidationError as error:
        raise UsageError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error


def _value(text: str) -> Any:
    """JSON where it is JSON (numbers, lists, null), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- versions --------------------------------------------------------------------------------------------


@app.command()
def history(
    store: StoreOption = None,
    state: StateOption = None,
    runs: Annotated[int, typer.Option(min=0, help="How many of the latest runs to list.")] = 10,
) -> None:
    """List every change of production, and how the latest runs ended."""
    from deployments import show
    from tasks import registry
    from tasks.runs import read_outcome

    opened = _connect(state, store)
    changes = registry.history(opened)
    show.to(console, show.ledger(changes) if changes else "Production has never changed: the base model serves.")
    latest = sorted(opened.folders("runs/"), reverse=True)[:runs]
    outcomes = [found for found in (read_outcome(opened, run) for run in latest) if found is not None]
    if outcomes:
        show.to(console, show.runs(outcomes))


@app.command()
def pull(
    folder: Annotated[Path, typer.Argument(help="Where to; replaced as a whole when it holds another version.")],
    version: Annotated[str | None, typer.Option(help="Version to fetch. Default: what is in production.")] = None,
    store: StoreOption = None,
    state: StateOption = None,
) -> None:
    """Fetch the verified files of a model: a folder that SentenceTransformer loads."""
    from tasks import registry, versions

    opened = _connect(state, store)
    if version is None:
        registry.pull_production(opened, folder)
    else:
        versions.pull(opened, version, folder)
    console.print(f"every file verified: SentenceTransformer({str(folder)!r})")


@app.command()
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

    opened = _connect(state, store)
    change = registry.rollback(
        opened, to, run_id=run_id(datetime.now(UTC), uuid4().hex), who=getpass.getuser(), reason=reason
    )
    console.print(f"version {change.version} serves again, in place of {change.previous}")


# --- looking ---------------------------------------------------------------------------------------------


@app.command()
def quarantine(store: StoreOption = None, state: StateOption = None) -> None:
    """List the rows that were rejected: reasons with counts, and an example of each."""
    from deployments import show
    from tasks.intake import quarantined

    show.to(console, show.rejected(quarantined(_connect(state, store))))


@app.command()
def doctor(
    store: StoreOption = None,
    state: StateOption = None,
    base_model: Annotated[str, typer.Option(help="Base model to look for.")] = BUNDLED_MODEL,
) -> None:
    """Look at everything that a night needs, and say in words what to mend."""
    from deployments import doctor as examination

    stack = local.find(_state(state))
    named = _store_url(stack, store)
    sound = True
    for finding in examination.examine(named, base_model):
        mark = "[green]ok[/]  " if finding.sound else "[bold red]MEND[/]"
        console.print(f"{mark}  {finding.name:<26} {escape(finding.text)}")
        sound = sound and finding.sound
    if not sound:
        raise typer.Exit(1)


# --- where things are ------------------------------------------------------------------------------------


def _state(state: Path | None) -> Path:
    return state or local.default_state()


def _store_url(stack: local.Stack | None, store: str | None) -> str | None:
    """Which store is meant; points this process at the local stack unless RATCHET_STORE says where to work."""
    named = os.environ.get("RATCHET_STORE")
    if stack is not None and not named:
        stack.adopt()
        return store or stack.store()
    return store or named or None


def _connect(state: Path | None, store: str | None) -> Store:
    """Open the store that is meant. Raises UsageError when none is."""
    from tasks.storage import Store

    url = _store_url(local.find(_state(state)), store)
    if url is None:
        raise UsageError("no store: set RATCHET_STORE=s3://bucket/prefix, or start the local stack with `ratchet up`")
    return Store.open(url)


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
        f"  production  version {production.version} since {production.at:%Y-%m-%d %H:%M} UTC"
        if production
        else "  production  nothing yet: the base model serves"
    )
    text = f"{last.verdict}: {escape('; '.join(last.reasons))} (run {last.run_id})" if last else "none yet"
    console.print(f"  last run    {text}")


def _say(text: str) -> None:
    console.print(f"[dim]{escape(text)} ...[/]")


if __name__ == "__main__":
    main()
