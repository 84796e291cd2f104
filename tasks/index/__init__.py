"""Documents to a search index with production's vectors: shards of vectors in the store, loaded into a target."""

from tasks.index.documents import DocumentsError
from tasks.index.filling import prefill
from tasks.index.on_ray import RayError
from tasks.index.renew import Renewed, Rule, follow
from tasks.index.retention import retire
from tasks.index.serving import Serving, find_serving
from tasks.index.shards import ShardError
from tasks.index.stages import Embedded, embed, load, switch
from tasks.index.targets import (
    MIN_RECALL,
    SECRET_BLOCK,
    Live,
    Target,
    TargetError,
    open_target,
    takes_password,
)

__all__ = [
    "MIN_RECALL",
    "SECRET_BLOCK",
    "DocumentsError",
    "Embedded",
    "Live",
    "RayError",
    "Renewed",
    "Rule",
    "Serving",
    "ShardError",
    "Target",
    "TargetError",
    "embed",
    "find_serving",
    "follow",
    "load",
    "open_target",
    "prefill",
    "retire",
    "switch",
    "takes_password",
]
