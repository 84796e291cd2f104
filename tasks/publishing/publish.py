"""Publish what serves: gather what is known of it, and let a process of its own send it.

The process has a time limit and holds nothing that a night needs, so a registry that is away, hangs or answers nonsense
costs some minutes and a warning. What was published is noted in the folder of the run that changed production; what is
not noted is tried again by the next run, and every step of it may be done twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from pydantic_core import to_json

from tasks import registry, runs
from tasks.config import Outcome
from tasks.publishing.job import FILES, MODEL, REPORT, Job, Target, Targets
from tasks.records import Published, Settings
from tasks.registry import Change, Production
from tasks.runs import Run
from tasks.storage import MissingKeyError, Store

SECRETS: Final[Mapping[Target, str]] = {"mlflow": "MLFLOW_TRACKING_TOKEN", "huggingface": "HF_TOKEN"}
"""The environment variable that holds the token of each target."""

_SECONDS: Final = 900.0
_ROUNDS: Final = 3
_LONGEST: Final = 500
_SECRET: Final = re.compile(r"TOKEN|PASSWORD|SECRET|API_KEY|AUTH_STRING")
_USERINFO: Final = re.compile(r"(?<=://)[^/\s]*@")

_REMEDIES: Final = {
    r"\b401\b|\b403\b|UNAUTHENTICATED|PERMISSION_DENIED": "{token} must be valid, and allowed to write to {name}",
    r"\b409\b|\b412\b|\b429\b|\b5\d\d\b|done within": "the next run tries again",
    r"\b404\b|\b30[1278]\b|Connect|Max retries|KeyError|JSONDecodeError": "is {address} right, and its server up?",
    r"'active' state": "restore the experiment {name} in MLflow",
}
"""What to do about an error, by what its message holds; the first counts."""

_ADDRESSES: Final[Mapping[Target, str]] = {"mlflow": "MLFLOW_TRACKING_URI", "huggingface": "HF_ENDPOINT"}


@dataclass(frozen=True)
class Result:
    """What came of one target: `where` the version is found, or the `error`; `before`: nothing had to be sent."""

    target: Target
    name: str
    version: str | None
    promotion: int
    where: str = ""
    error: str = ""
    before: bool = False


def publish(
    store: Store,
    targets: Targets,
    *,
    environment: Mapping[str, str],
    again: bool = False,
    seconds: float = _SECONDS,
) -> Iterator[Result]:
    """Publish what serves now to each target that has not got it yet; one result each, never an exception of a target.

    `environment` is that of the process that sends, with its addresses and tokens. `again` also tries what is noted as
    done, as when the registry was lost. `seconds` bounds each try. Raises StoreError and RegistryError.
    """
    for target, name in targets.named():
        production = registry.read_production(store)
        if production is not None:
            yield _bring_up(_Sender(store, target, name, environment, seconds), production, again=again)


@dataclass(frozen=True)
class _Sender:
    """One target, and how to reach it."""

    store: Store
    target: Target
    name: str
    environment: Mapping[str, str]
    seconds: float


def _bring_up(sender: _Sender, production: Production, *, again: bool) -> Result:
    """Publish until what was published is what serves: a slow try may overwrite that of a later change."""
    for _ in range(_ROUNDS):
        result = _once(sender, production, again=again)
        latest = registry.read_production(sender.store)
        if result.error or latest is None or latest.promotion == production.promotion:
            break
        production, again = latest, True
    return result


def _once(sender: _Sender, production: Production, *, again: bool) -> Result:
    target, name = sender.target, sender.name
    result = Result(target, name, production.version, production.promotion)
    run = Run(sender.store, production.run_id)
    found = run.find(FILES[target])
    if found is not None and not again and (found.name, found.promotion) == (name, production.promotion):
        return replace(result, where=found.where, before=True)
    where, error = _send(sender, production)
    if error:
        return replace(result, error=error)
    at = registry.store_time(sender.store)
    run.put(FILES[target].name, to_json(Published(name, production.version, production.promotion, where, at)))
    return replace(result, where=where)


def _send(sender: _Sender, production: Production) -> tuple[str, str]:
    """Where the version is now, and why it is not there."""
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if production.version is not None:
                registry.pull(sender.store, production.version, folder / MODEL)
            (folder / "job.json").write_bytes(to_json(_job(sender, production, folder)))
            error = _run(folder, sender.environment, sender.seconds)
            if error:
                return "", _said(error, sender)
            return str(json.loads((folder / "reply.json").read_text())["where"]), ""
    except (OSError, registry.VersionError) as error:  # the disk is full, or the version damaged
        return "", _said(f"{type(error).__name__}: {error}", sender)


def _said(error: str, sender: _Sender) -> str:
    """An error without secrets, and what to do about it, as far as its message tells."""
    said = _without_secrets(error, sender.environment)[:_LONGEST]
    remedies = (remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, error))
    names = {"token": SECRETS[sender.target], "name": sender.name, "address": _ADDRESSES[sender.target]}
    return "; ".join([said, *(remedy.format(**names) for remedy in islice(remedies, 1))])


def _job(sender: _Sender, production: Production, folder: Path) -> Job:
    """What is known of the version that serves, from the night that promoted it; its report goes into the folder."""
    origin = _origin(sender.store, production)
    run = Run(sender.store, origin.run_id)
    with contextlib.suppress(MissingKeyError):
        (folder / REPORT).write_bytes(sender.store.get(run.key(runs.REPORT)).body)
    outcome, settings = run.outcome, run.find(runs.SETTINGS)
    return Job(
        target=sender.target,
        name=sender.name,
        version=production.version,
        promotion=production.promotion,
        title=f"{production.serves[0].upper()}{production.serves[1:]}: {production.action} {production.promotion}",
        reason=production.reason,
        metrics={**origin.scores, **(_compared(outcome) if outcome is not None else {})},
        parameters={**(_counts(outcome) if outcome else {}), **(_settings(settings) if settings else {})},
        tags=_tags(sender.store, origin),
    )


def _compared(outcome: Outcome) -> dict[str, float]:
    """The scores of what served before, and the differences with their bounds."""
    before = outcome.production.scores if outcome.production else {}
    found = {f"before.{metric}": value for metric, value in before.items()}
    for metric, delta in outcome.deltas.items():
        found |= {f"gain.{metric}": delta.value, f"gain.{metric}.low": delta.low, f"gain.{metric}.high": delta.high}
    return found


def _counts(outcome: Outcome) -> dict[str, str]:
    return {"commit": str(outcome.commit), **{f"counts.{what}": str(count) for what, count in outcome.counts.items()}}


def _settings(settings: Settings) -> dict[str, str]:
    groups = {"training": settings.training, "gate": settings.gate, "checks": settings.checks}
    return {
        f"{group}.{name}": json.dumps(value)
        for group, model in groups.items()
        for name, value in model.model_dump(mode="json").items()
    }


def _tags(store: Store, origin: Change) -> dict[str, str]:
    tags = {
        "ratchet.version": origin.version or "",
        "ratchet.promotion": str(origin.promotion),
        "ratchet.run_id": origin.run_id,
        "ratchet.store": store.url,
        "ratchet.who": origin.who,
    }
    if origin.fingerprint is not None:
        tags["ratchet.weights"] = origin.fingerprint.weights
    if origin.approval is not None:
        tags["ratchet.approved_by"] = origin.approval.by
    return tags


def _origin(store: Store, production: Production) -> Change:
    """The promotion that let the version serve first: after a rollback its scores and report are those that count."""
    if production.action == "promotion":
        return production
    made = [one for one in registry.history(store) if (one.version, one.action) == (production.version, "promotion")]
    return made[-1] if made else production


def _run(folder: Path, environment: Mapping[str, str], seconds: float) -> str:
    """Publish what lies in the folder, in a process of its own; returns why that failed, or nothing."""
    root = str(Path(__file__).resolve().parents[2])
    passed = {name: value for name, value in environment.items() if not name.startswith("PREFECT_")}
    passed["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-m", "tasks.publishing.send", str(folder)],
        env={**_QUIET, **passed},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it may have started ends with it
    ) as process:
        try:
            _, said = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            _, said = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                return f"it was not done within {seconds:g} s; last: {_last_line(said)}"
            raise
    if process.returncode == 0:
        return ""
    failure = folder / "error.txt"
    if failure.is_file():
        return failure.read_text()
    return f"exit status {process.returncode}: {_last_line(said)}"


def _last_line(said: str) -> str:
    return said.strip().rpartition("\n")[2] or "no message"


_QUIET: Final = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # an hour, if the server wishes
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",  # to wherever the server wishes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",  # the protocol that the tests know; the hub takes both
}
"""Settings of the clients where the environment says nothing else."""


def _without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """A client's message in one line, without any secret of the environment or user and password of an address."""
    text = _USERINFO.sub("", " ".join(text.split()))
    for name, value in environment.items():
        if _SECRET.search(name) and len(value) > 3:
            text = text.replace(value, "***")
    return text
