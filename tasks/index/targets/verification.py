"""What an index must show before it may serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tasks.index.targets.protocol import Contents, Index, Target, TargetError

MIN_RECALL: Final = 0.95
"""Least share of the exact nearest documents that the search structure must find."""

K: Final = 10


class VerificationError(TargetError):
    """An index does not hold what it should, or does not find it; it must not serve."""


@dataclass(frozen=True)
class Verified:
    """What was found: contents, recall at `K` of the structure against exact search, and over how many queries."""

    contents: Contents
    recall: float
    queries: int


def verify(
    target: Target, index: Index, expected: Contents, queries: np.ndarray, *, min_recall: float = MIN_RECALL
) -> Verified:
    """Check an index that was loaded and built: rows, checksum, and recall on query vectors (n_queries, dimension).

    Recall is the share, over all queries, of the K exact nearest documents that the structure finds; documents of equal
    score are as good as each other. Raises VerificationError. An index that holds what it should not is deleted, unless
    it serves: the next run loads it anew.
    """
    where = f"index {index.name} in {target.address}"
    found = target.contents(index.name)
    if found != expected:
        live = target.live()
        if live is None or live.index.name != index.name:
            target.drop(index.name)
        remedy = "it was not switched to; run `ratchet reindex`, which loads it anew"
        if found.count != expected.count:
            raise VerificationError(f"{where} holds {found.count} documents, not {expected.count}: {remedy}")
        raise VerificationError(f"{where} holds other documents or vectors than were loaded (checksum): {remedy}")
    if not len(queries):
        raise VerificationError(f"{where} cannot be tried: there is no query")
    recall = _recall(target, index.name, queries)
    if not recall >= min_recall:
        raise VerificationError(
            f"{where} finds {recall:.1%} of the {K} nearest documents, less than {min_recall:.1%}: it was not "
            "switched to; lower the bound, or look at docs/targets.md"
        )
    return Verified(found, recall, len(queries))


def _recall(target: Target, name: str, queries: np.ndarray) -> float:
    nearest = target.search(name, queries, K, exact=True)
    found = target.search(name, queries, K)
    wanted = reached = 0
    for exact, approximate in zip(nearest, found, strict=True):
        least = exact[-1].score - 1e-6 if exact else 0.0
        wanted += len(exact)
        reached += len({hit.id for hit in approximate if hit.score >= least})
    return reached / wanted if wanted else 0.0
