"""Where an index is served from: one protocol, and what implements it."""

from tasks.index.targets.opening import SECRET_BLOCK, check_address, open_target, takes_password
from tasks.index.targets.protocol import (
    Contents,
    GoneError,
    Hit,
    Index,
    Live,
    NoIndexError,
    Rows,
    SwitchedError,
    Target,
    TargetError,
    contents_of,
)
from tasks.index.targets.verification import MIN_RECALL, VerificationError, Verified, verify

__all__ = [
    "MIN_RECALL",
    "SECRET_BLOCK",
    "Contents",
    "GoneError",
    "Hit",
    "Index",
    "Live",
    "NoIndexError",
    "Rows",
    "SwitchedError",
    "Target",
    "TargetError",
    "VerificationError",
    "Verified",
    "check_address",
    "contents_of",
    "open_target",
    "takes_password",
    "verify",
]
