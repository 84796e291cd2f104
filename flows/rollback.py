"""Put an earlier version back into production."""

from __future__ import annotations

from prefect import flow
from prefect.logging import get_run_logger

from flows.context import publish_what_serves, store_url, this_run
from tasks import steps, telemetry
from tasks.config import Reason
from tasks.storage import Store


@flow(name="rollback", flow_run_name="rollback-{to_version}")
def rollback(reason: Reason = "manual", to_version: str | None = None, store: str | None = None) -> dict[str, object]:
    """Serve the previous or a named version again, by the same conditional write and ledger as a promotion.

    Args:
        reason: Why, in 1 to 500 characters, for the ledger.
        to_version: Version to serve again, as `ratchet history` shows it; base: the base model. None: the one before.
        store: Where the models are: s3://bucket/prefix. None: what the worker's RATCHET_STORE names.

    Returns:
        The new content of production.json.

    Raises:
        RegistryError: The version is unknown, does not verify, or serves already.
    """
    url, run = store_url(store), this_run()
    with telemetry.told(Store.open(url), "rollback", run.run_id) as lineage:
        pointer = steps.roll_back(url, to_version, run_id=run.run_id, who=run.who, reason=reason)
        version = pointer["version"]
        if isinstance(version, str):
            lineage.reads_model(version)
        lineage.makes("production.json", str(version or "base"), changed=True)
    steps.renew_metrics(url)
    get_run_logger().info(
        "%s serves again, in place of %s: %s",
        pointer["version"] or "the base model",
        pointer["previous"] or "the base model",
        pointer["reason"],
    )
    publish_what_serves(url)
    return pointer
