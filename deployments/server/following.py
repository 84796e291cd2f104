"""The automation that starts a reindex when production changes."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

_DEPLOYMENT: Final = "reindex/after-promotion"

NAME: Final = "let the index follow"


def automation(name: str, trigger: dict[str, Any]) -> Any:
    """Starts `reindex/after-promotion` on the store whose production has changed.

    On every change: of one that leaves the index as it is, the target's record of what serves has to name the new
    model. That takes a moment; nothing is encoded.
    """
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    store = {"__prefect_kind": "jinja", "template": "{{ event.resource['prefect.resource.name'] }}"}
    return AutomationCore(
        name=name,
        description="Lets the index of documents follow every change of production.",
        trigger=EventTrigger.model_validate(trigger),
        actions=[RunDeployment(source="selected", deployment_id=_deployment(), parameters={"store": store})],
    )


def _deployment() -> UUID:
    """The deployment's id; a dry run may come before it exists, and shows the difference all the same."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            return client.read_deployment_by_name(_DEPLOYMENT).id
        except ObjectNotFound:
            return UUID(int=0)
