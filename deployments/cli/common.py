"""What every command shares: where it writes, which store and stack are meant, and errors that people can fix."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from deployments.stack import local
from deployments.terminal.text import SafeConsole, escape

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

    from deployments.server.settings import Settings
    from tasks.storage import Store

console: Final = SafeConsole(highlight=False, soft_wrap=True)
errors: Final = SafeConsole(highlight=False, soft_wrap=True, stderr=True)

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
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings. Default: ratchet.toml here, else the defaults.", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A parameter of training, gate, checks or limits, such as training.epochs=2; may be repeated.",
    ),
]


class CliError(Exception):
    """Something that the user can fix; the message says how."""


class UsageError(CliError):
    """The command was used wrongly."""


def say(text: str) -> None:
    """Tell what is being done, for steps that take a while."""
    console.print(f"[dim]{escape(text)} ...[/]")


def hush() -> None:
    """Keep libraries quiet: progress bars of models that are loaded, telemetry of a temporary Prefect server.

    Call it before they are imported.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")


def state_folder(state: Path | None) -> Path:
    """The folder of the local stack: the one named, or the usual one."""
    return state or local.default_state()


def store_url(stack: local.Stack | None, store: str | None) -> str | None:
    """Which store is meant; points this process at the local stack unless RATCHET_STORE says where to work."""
    named = os.environ.get("RATCHET_STORE")
    if stack is not None and not named:
        stack.adopt()
        return store or stack.store()
    return store or named or None


def connect(state: Path | None, store: str | None) -> Store:
    """Open the store that is meant. Raises UsageError when none is."""
    from tasks.storage import Store

    url = store_url(local.find(state_folder(state)), store)
    if url is None:
        raise UsageError("no store: set RATCHET_STORE=s3://bucket/prefix, or start the local stack with `ratchet up`")
    return Store.open(url)


def load_settings(config: Path | None) -> Settings:
    """The settings of a deployment. Raises UsageError with every mistake in the file."""
    from deployments.server.settings import SettingsError, load

    try:
        return load(config)
    except SettingsError as error:
        raise UsageError(str(error)) from error


def reach_prefect(state: Path | None) -> None:
    """Point this process at the server of PREFECT_API_URL, else at the local stack. Call it before Prefect is imported.

    Raises UsageError when there is neither.
    """
    if not os.environ.get("PREFECT_API_URL"):
        stack = local.find(state_folder(state))
        if stack is None:
            raise UsageError("no Prefect server: set PREFECT_API_URL, or start the local stack with `ratchet up`")
        stack.adopt()


@contextlib.contextmanager
def any_stack(state: Path) -> Iterator[local.Stack]:
    """The stack that runs already, or one for the length of the command."""
    found = local.find(state)
    if found is not None:
        say(f"using the stack that runs already: {found.ui_url}")
        yield found
    else:
        with local.running(state, on_step=say) as stack:
            yield stack


def parameters(settings: list[str]) -> dict[str, Any]:
    """Parameter models from `training.epochs=2` and the like; raises UsageError that names each mistake."""
    from pydantic import ValidationError

    from tasks.config import Checks, Gate, Limits, Parameters, Training

    models: dict[str, type[Parameters]] = {"training": Training, "gate": Gate, "checks": Checks, "limits": Limits}
    values: dict[str, dict[str, Any]] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        group, dot, field = name.partition(".")
        if not equals or not dot or group not in models:
            takes = ", ".join(f"{known}.NAME=VALUE" for known in models)
            raise UsageError(f"--set takes {takes}, got {setting!r}")
        values.setdefault(group, {})[field] = _value(value)
    found: dict[str, Any] = {}
    for group, fields in values.items():
        try:
            found[group] = models[group].model_validate(fields)
        except ValidationError as error:
            said = "; ".join(_in_words(group, models[group], problem) for problem in error.errors())
            raise UsageError(f"{said} (docs/parameters.md lists them all)") from error
    return found


def _in_words(group: str, model: type[BaseModel], problem: ErrorDetails) -> str:
    """One mistake of pydantic's list: which parameter, what is wrong with it, what was given."""
    name = ".".join((group, *map(str, problem["loc"])))
    if problem["type"] != "extra_forbidden":
        return f"{name}: {problem['msg'].removeprefix('Value error, ')}, got {problem['input']!r}"
    near = difflib.get_close_matches(str(problem["loc"][0]), model.model_fields, 1)
    return f"there is no parameter {name}" + (f": did you mean {group}.{near[0]}?" if near else "")


def _value(text: str) -> Any:
    """JSON where it is JSON (numbers, lists, null), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
