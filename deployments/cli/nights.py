"""Commands that have nights run: register them with Prefect, or run one now."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer
from rich.markup import escape

from deployments.cli.common import (
    ConfigOption,
    StateOption,
    StoreOption,
    UsageError,
    connect,
    console,
    load_settings,
    reach_prefect,
)


def deploy(
    state: StateOption = None,
    config: ConfigOption = None,
    pool_type: Annotated[
        str, typer.Option(help="Type of a work pool that is still missing: process, docker or kubernetes.")
    ] = "process",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
) -> None:
    """Set up work pools, deployments, channels and alerts on the server of PREFECT_API_URL, or on the local stack."""
    from deployments import pools

    kinds: dict[str, pools.Kind] = {kind: kind for kind in pools.KINDS}
    if pool_type not in kinds:
        raise UsageError(f"--pool-type is one of {', '.join(pools.KINDS)}, got {pool_type!r}")
    settings = load_settings(config)
    reach_prefect(state)
    from deployments import deploy as setup

    changed = setup.deploy(settings, kind=kinds[pool_type], environment=os.environ, dry_run=dry_run)
    for line in changed:
        console.print(escape(line))
    if not changed:
        console.print("nothing differs from the settings")
    elif dry_run:
        console.print("nothing was changed: this was a dry run")


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
    opened = connect(state, store)
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
