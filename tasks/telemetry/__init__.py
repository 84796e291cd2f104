"""What other tools are told of runs: metrics for Prometheus, lineage for OpenLineage. Nothing here decides anything."""

from tasks.telemetry.lineage import cancelled, ended, started, told
from tasks.telemetry.metrics import Metrics, write_metrics
from tasks.telemetry.openmetrics import CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Metrics", "cancelled", "ended", "started", "told", "write_metrics"]
