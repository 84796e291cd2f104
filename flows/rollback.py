"""Put an earlier version back into production."""

from __future__ import annotations

from prefect import flow
from prefect.logging import get_run_logger

from flows.context import store_url, this_run
from tasks import steps
from tasks.config import Reason


@flow(name="rollback", flow_run_name="rollback-{to_version}")
def rollback(store: str | None = None, to_version: str | None = None, reason: Reason = "manual") -> dict[str, object]:
    """Serve the previous or a named version again, by the same conditional write and ledger as a promotion.

    Args:
        store: s3://bucket/prefix; RATCHET_STORE when left out.
        to_version: Version to serve; the one that served before the current one when left out.
        reason: Why, for the ledger and for whoever reads it later.

    Returns:
        The new content of production.json.

    Raises:
        RegistryError: The version is unknown, does not verify, or serves already.
    """
    run = this_run()
    pointer = steps.roll_back(store_url(store), to_version, run_id=run.run_id, who=run.who, reason=reason)
    get_run_logger().info(
        "%s serves again, in place of %s: %s", pointer["version"], pointer["previous"], pointer["reason"]
    )
    return pointer
