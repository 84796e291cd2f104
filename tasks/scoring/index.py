"""What becomes of an index of documents when the candidate serves: whether it stays, and what a new one takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tasks.encoding import ModelError, NumericPath, document_identity, encode, pipeline
from tasks.records import Reindexing, Side
from tasks.storage import file_sha256

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_TIMED: Final = 64
"""Documents by which the rate is measured, evenly from the shortest to the longest."""


def reindexing(
    candidate: Path, serves: Path, model: SentenceTransformer, documents: Sequence[str], path: NumericPath
) -> Reindexing:
    """Whether the index stays, and what encoding every document again takes on this machine.

    Args:
        candidate: Its folder.
        serves: The folder of what serves, or of the base model.
        model: The candidate, loaded; one of both sides encodes documents no slower or faster than one of queries.
        documents: The whole corpus.
        path: How vectors are computed.
    """
    order = sorted(range(len(documents)), key=lambda place: (len(documents[place]), place))
    picked = np.linspace(0, len(order) - 1, min(_TIMED, len(order))).astype(int)
    texts = [documents[order[place]] for place in picked]
    encode(model, texts[-1:], "document", path=path)  # the first one warms up
    begun = time.perf_counter()
    encode(model, texts, "document", path=path)
    rate = len(texts) / max(time.perf_counter() - begun, 1e-9)
    stays = document_identity(candidate) == document_identity(serves)
    return Reindexing("stays" if stays else "moves", len(documents), rate)


def broken_promise(side: Side, found: Reindexing) -> list[str]:
    """Why a candidate of the query side alone must not serve: its documents are not what serves."""
    if side == "query" and found.index == "moves":
        return [
            "only the query side was trained, but documents are not encoded by the files that serve: train it again"
        ]
    return []


def differing_files(candidate: Path, serves: Path) -> list[str]:
    """Files of the modules that encode documents which are not the same bytes in both model folders."""
    try:
        one, other = _hashes(candidate), _hashes(serves)
    except ModelError:
        return []  # its identity is that of the whole folder: a claim holds for every file of it
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by module and file."""
    return {
        f"{place}_{part.name}/{path.relative_to(part.folder).as_posix()}": file_sha256(path)
        for place, part in enumerate(pipeline(folder, "document"))
        for path in part.files()
    }
