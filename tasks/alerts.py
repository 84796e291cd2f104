"""Outcomes and changes of production as Prefect events; automations turn events into messages.

The id of every event is derived from what it tells, so a step that is retried, or a run that is repeated,
tells the same event again instead of a second one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect.events import emit_event

from tasks.config import Outcome


def announce_outcome(store_url: str, outcome: Outcome) -> None:
    """Emit `ratchet.night.<verdict>` with the scores, the differences and where the report lies."""
    payload = outcome.model_dump(
        mode="json",
        include={
            "run_id",
            "verdict",
            "reasons",
            "commit",
            "counts",
            "candidate",
            "production",
            "deltas",
            "production_before",
            "production_after",
            "guidance",
            "report",
            "reason",
        },
    )
    _emit(f"ratchet.night.{outcome.verdict}", store_url, outcome.run_id, payload)


def announce_production(store_url: str, pointer: Mapping[str, Any]) -> None:
    """Emit `ratchet.production.changed` with the new pointer: version, fingerprint, previous, who and why."""
    _emit("ratchet.production.changed", store_url, str(pointer["promotion"]), dict(pointer))


def announce_drift(store_url: str, watch_id: str, payload: Mapping[str, Any]) -> None:
    """Emit `ratchet.production.drifted`: the serving model finds less on fresh labels than when it was promoted."""
    _emit("ratchet.production.drifted", store_url, watch_id, dict(payload))


def _emit(name: str, store_url: str, identity: str, payload: dict[str, Any]) -> None:
    emit_event(
        event=name,
        resource={"prefect.resource.id": f"ratchet.store.{store_url}", "prefect.resource.name": store_url},
        payload=payload,
        id=uuid5(NAMESPACE_URL, f"{store_url}#{name}#{identity}"),
    )
