"""The steps of a night as plain functions on a store: read, one call of the logic, write into the run's folder.

Whatever a step found is stored once and read by later steps and later attempts (`Run.once`), on whichever machine
they run; so a night that was interrupted anywhere continues where it stopped. Heavy libraries are imported in the step
that needs them: a night with nothing new loads none of them.
"""

from tasks.night.auditing import audit, audit_failed, canary, canary_failed
from tasks.night.checking import check, check_leaks
from tasks.night.concluding import conclude, write_report
from tasks.night.judging import Judged, hold, judge
from tasks.night.learning import join, train
from tasks.night.measuring import score
from tasks.night.opening import begin, take_in
from tasks.night.promoting import leaving, promote, stands
from tasks.night.upkeep import Retired, retire, tidy, versions_in_use

__all__ = [
    "Judged",
    "Retired",
    "audit",
    "audit_failed",
    "begin",
    "canary",
    "canary_failed",
    "check",
    "check_leaks",
    "conclude",
    "hold",
    "join",
    "judge",
    "leaving",
    "promote",
    "retire",
    "score",
    "stands",
    "take_in",
    "tidy",
    "train",
    "versions_in_use",
    "write_report",
]
