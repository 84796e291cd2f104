"""What serves, scored hourly on labels that it never saw: drift and standstill."""

from tasks.watch.drift import Standstill, Window, drift_began, measure, standstill
from tasks.watch.fresh import Seen

__all__ = ["Seen", "Standstill", "Window", "drift_began", "measure", "standstill"]
