"""Each run as OpenLineage events: START when it begins, COMPLETE, ABORT (blocked, cancelled) or FAIL when it ends.

They go to the transport that the standard configuration of openlineage-python names (`OPENLINEAGE_URL`,
`openlineage.yml`, ...); where none does, nothing is sent. A receiver that is slow or away costs a run some seconds and
nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tasks.config import Outcome
from tasks.storage import Store
from tasks.telemetry.events import Lineage, State, event, of_outcome

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient

_logger = logging.getLogger(__name__)

_SECONDS: Final = 10.0
"""So long a run waits for an event to be taken, and no longer."""


@contextmanager
def told(store: Store, job: str, run_id: str) -> Iterator[Lineage]:
    """Tell that a run of a job begins, and how it ends: with what it read and made, or the error that it raised."""
    lineage = Lineage(store, job, run_id)
    _send("START", lambda: lineage)
    try:
        yield lineage
    except Exception as error:
        lineage.message = f"{type(error).__name__}: {error}"
        _send("FAIL", lambda: lineage)
        raise
    except BaseException:  # cancelled, or told to stop
        _send("ABORT", lambda: lineage)
        raise
    _send("COMPLETE", lambda: lineage)


def started(store: Store, run_id: str) -> None:
    """Tell that a night has begun."""
    _send("START", lambda: Lineage(store, "retrain", run_id))


def ended(store: Store, outcome: Outcome) -> None:
    """Tell what a night came to: the rows that it worked with, and the versions that it made and compared."""
    states: dict[str, State] = {"failed": "FAIL", "blocked": "ABORT"}
    _send(states.get(outcome.verdict, "COMPLETE"), lambda: of_outcome(store, outcome))


def cancelled(store: Store, run_id: str) -> None:
    """Tell that a night was stopped from outside."""
    _send("ABORT", lambda: Lineage(store, "retrain", run_id))


def _send(state: State, make: Callable[[], Lineage]) -> None:
    """Hand an event to the configured transport, in a thread that is waited for only so long. Raises nothing."""
    if not _is_configured():
        return

    def send() -> None:
        try:
            client = _client()
            if client is not None:
                client.emit(event(state, make()))
                client.close(_SECONDS)
        except Exception:  # whatever a transport raises: a run does not depend on it
            _logger.warning("the lineage of this run was not sent", exc_info=True)

    sender = threading.Thread(target=send, name="lineage", daemon=True)
    sender.start()
    sender.join(_SECONDS)
    if sender.is_alive():
        _logger.warning("the lineage of this run was not taken within %.0f s, and is no longer waited for", _SECONDS)


def _is_configured() -> bool:
    """Whether openlineage-python would find a configuration; without one it would print events."""
    named = any(
        name in {"OPENLINEAGE_URL", "OPENLINEAGE_CONFIG"} or name.startswith("OPENLINEAGE__") for name in os.environ
    )
    return named or any((folder / "openlineage.yml").is_file() for folder in (Path.cwd(), Path.home() / ".openlineage"))


def _client() -> OpenLineageClient | None:
    try:
        from openlineage.client import OpenLineageClient
    except ImportError:
        _logger.warning("OpenLineage is configured, but openlineage-python is missing: pip install ratchet[lineage]")
        return None
    client = OpenLineageClient()
    by_default = client.transport.kind == "console" and not (client.config.transport or {}).get("type")
    return None if by_default else client
