"""Where an index is served from: one protocol, and what implements it."""

from tasks.index.targets.protocol import (
    Contents,
    Hit,
    Index,
    Live,
    Rows,
    SwitchedError,
    Target,
    TargetError,
    contents_of,
)

__all__ = ["Contents", "Hit", "Index", "Live", "Rows", "SwitchedError", "Target", "TargetError", "contents_of"]
