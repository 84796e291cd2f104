"""Watch what serves: is it still as good as when it was promoted, and does it still move?"""

from __future__ import annotations

from prefect import flow
from prefect.logging import get_run_logger

from flows.context import store_url, this_run, work_folder
from tasks import steps, telemetry
from tasks.config import Limits, Watch
from tasks.storage import Store

_WATCH, _LIMITS = Watch(), Limits()


@flow(name="watch-production", flow_run_name="watch-production")
def watch_production(watch: Watch = _WATCH, limits: Limits = _LIMITS, store: str | None = None) -> dict[str, object]:
    """Score the serving model on labels that have arrived since it was trained, and tell people if it has drifted.

    New objects are taken in first, exactly once like everywhere. Production is never changed.

    Args:
        watch: When production counts as drifted or stale.
        limits: What one uploaded object may be; give the same as to the nights.
        store: Where data and models are: s3://bucket/prefix. None: what the worker's RATCHET_STORE names.

    Returns:
        What serves, its latest windows of fresh labels, and since when it has drifted.
    """
    url, run = store_url(store), this_run()
    with telemetry.told(Store.open(url), "watch-production", run.run_id) as lineage:
        commit = steps.take_in_labels(url, run.run_id, limits)
        lineage.reads("pairs", str(commit))
        seen = steps.watch(url, run.run_id, commit, watch, str(work_folder()))
        lineage.reads_model(seen.version)
        get_run_logger().info("%s", seen.says)
        steps.tell(url, seen)
    return seen.model_dump(mode="json")
