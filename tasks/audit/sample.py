"""Which training pairs an audit looks at: a bounded, seeded sample, of the newest uploads first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.audit.blame import LEAST, MOST_PAIRS
from tasks.dataset import labelled_right

Ints = NDArray[np.int64]

PAIRS: Final = 2_000
"""Pairs that are looked at: their queries are what an audit has to encode, by each model."""

_OF_UPLOADS: Final = 1_200
"""Of these, pairs of the newest uploads."""

_UPLOADS: Final = 10


@dataclass(frozen=True)
class Upload:
    """One upload, or small ones of one folder, and which of the chosen pairs are its own."""

    name: str
    pairs: Ints


@dataclass(frozen=True)
class Sample:
    """Chosen rows of the train side, ascending, and the uploads that are judged."""

    rows: Ints
    uploads: Sequence[Upload]
    too_small: int
    """New uploads that are too small to be judged, also together with the others of their folder."""


def choose(train: pa.Table, since: int, seed: int, most: int = PAIRS) -> Sample:
    """Choose pairs of the train side that are labelled right (without a score, or with a high one).

    Args:
        train: `Dataset.train`.
        since: Commit after which an upload is new: that of the last night whose candidate was not worse.
        seed: Of the draws.
        most: Pairs in all.
    """
    rng = np.random.default_rng(seed)
    right = labelled_right(train["score"])
    commits = train["commit"].to_numpy()
    found, small = _uploads(train["object"].to_pylist(), commits, np.flatnonzero(right & (commits > since)))
    newest = found[:_UPLOADS]
    each = min(MOST_PAIRS, min(_OF_UPLOADS, most) // max(len(newest), 1))
    drawn = {name: np.sort(rng.permutation(rows)[:each]) for name, rows in newest}
    judged = np.concatenate([rows for _, rows in newest] or [np.empty(0, np.int64)])
    rest = rng.permutation(np.setdiff1d(np.flatnonzero(right), judged))
    rest = rest[: max(0, most - sum(map(len, drawn.values())))]
    rows = np.sort(np.concatenate([*drawn.values(), rest]).astype(np.int64))
    return Sample(rows, [Upload(name, np.searchsorted(rows, own)) for name, own in drawn.items()], small)


def _uploads(objects: Sequence[str], commits: Ints, rows: Ints) -> tuple[list[tuple[str, Ints]], int]:
    """New uploads with their rows, the newest first; those that are too small together by folder."""
    by_object: dict[str, list[int]] = {}
    for row in rows.tolist():
        by_object.setdefault(objects[row], []).append(row)
    large = {key: own for key, own in by_object.items() if len(own) >= LEAST}
    folders: dict[str, list[int]] = {}
    members: dict[str, int] = {}
    for key, own in by_object.items():
        if key not in large:
            folder = key.rpartition("/")[0] + "/"
            folders.setdefault(folder, []).extend(own)
            members[folder] = members.get(folder, 0) + 1
    large |= {folder: own for folder, own in folders.items() if len(own) >= LEAST}
    small = sum(members[folder] for folder, own in folders.items() if len(own) < LEAST)
    found = [(name, np.array(own, np.int64)) for name, own in large.items()]
    return sorted(found, key=lambda one: (-int(commits[one[1]].max()), one[0])), small
