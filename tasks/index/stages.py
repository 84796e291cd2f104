"""The stages of a reindex, each from what the one before it left in the store, on whichever machine it runs."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from tasks.config import Limits
from tasks.encoding import Progress
from tasks.index import renew, shards
from tasks.index.build import Build, build, read_build
from tasks.index.client import query_encoders
from tasks.index.documents import Documents, DocumentsError, Origin, gather
from tasks.index.renew import Renewed, Rule
from tasks.index.serving import Serving, still_serves, trial_queries
from tasks.index.shards import ShardError
from tasks.index.targets import Live, Target
from tasks.storage import MissingKeyError, Store

_STALE_SECONDS: Final = 86_400
"""Age at which documents on local disk belong to a run that was killed."""

_BEGINNING: Final = 80
_TRIED: Final = 100
"""Characters of a document, and documents, that stand for queries where there are none."""


class Embedded(BaseModel):
    """An index in the store, and what it took.

    Attributes:
        index: its name.
        origin: `documents` for `documents/`, `commit` for the distinct documents of pairs and `corpus/`.
        documents: how many there are.
        encoded: texts that were encoded for it by this run.
        shards: parts that it has; `made` of them by this run.
        repeated: rows that say what another one says.
        rejected: rows that are not documents.
        rejections: the first of them: object, line, reason.
        left_out: columns that are not taken as metadata: the first object that has some, and which.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: str
    origin: Origin
    documents: int
    encoded: int
    shards: int
    made: int
    repeated: int = 0
    rejected: int = 0
    rejections: tuple[str, ...] = ()
    left_out: str = ""

    def said(self) -> Iterator[str]:
        """The same for people."""
        whence = "documents/" if self.origin == "documents" else "pairs and corpus/, as documents/ is empty"
        yield (
            f"{self.documents:,} documents of {whence}: {self.encoded:,} texts encoded, {self.made:,} of "
            f"{self.shards:,} shards made"
        )
        if self.repeated and self.origin == "documents":
            yield f"{self.repeated:,} rows repeat another one"
        if self.rejected:
            some = "; ".join(self.rejections[:3])
            yield f"{self.rejected:,} rows are not documents and were left out, such as {some}"
        if self.left_out:
            yield f"not taken as metadata: {self.left_out}"


def embed(
    store: Store,
    serving: Serving,
    work: Path,
    limits: Limits | None = None,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> Embedded:
    """Gather the documents and store their vectors; see `gather` and `build` for what is raised."""
    folder = work / "reindex"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():  # by a run that was killed: documents must not stay on disk for ever
        if left.stat().st_mtime < time.time() - _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder) as own, gather(store, Path(own), limits) as documents:
        built = build(store, serving.model, documents, work, workers=workers, on_progress=on_progress)
        return _embedded(built.build.index.name, len(built.build.shards), built.encoded, built.made, documents)


def _embedded(name: str, parts: int, encoded: int, made: int, documents: Documents) -> Embedded:
    return Embedded(
        index=name,
        origin=documents.origin,
        documents=documents.count,
        encoded=encoded,
        shards=parts,
        made=made,
        repeated=documents.repeated,
        rejected=documents.rejected,
        left_out=next((f"{key}: {', '.join(names[:10])}" for key, names in documents.left_out.items()), ""),
        rejections=tuple(f"{one.object} line {one.line}: {one.reason}" for one in documents.rejections),
    )


def load(store: Store, target: Target, name: str, on_progress: Progress | None = None) -> int:
    """Load an index beside the one that serves; returns how many shards the target lacked.

    Raises DocumentsError where documents/ was emptied since: labelled documents are no index of a search that has more.
    """
    build, live = read_build(store, name), target.live()
    if build.origin == "commit" and live is not None and _of_documents(store, live):
        raise DocumentsError(
            f"documents/ is empty, and the index that serves in {target.address} was made of it: put the documents "
            "back; to index those of pairs and corpus/, name another target"
        )
    return renew.load(store, target, build, on_progress)


def _of_documents(store: Store, live: Live) -> bool:
    """Whether an index was made of documents/; False where its record is gone."""
    with suppress(MissingKeyError, ShardError):
        return read_build(store, live.index.name).origin == "documents"
    return False


def switch(store: Store, target: Target, name: str, serving: Serving, rule: Rule, work: Path) -> Renewed | None:
    """Try a loaded index with queries of the test side, and let it serve; None where production has changed meanwhile.

    Where nothing is labelled, it is tried with the beginnings of documents.
    """
    found = renew.green(store, target, read_build(store, name))
    queries = trial_queries(store) or _beginnings(store, found)
    encode = query_encoders(store, work, serving.model.base)(serving.model.version)
    vectors = encode(queries)
    return renew.switch(target, found, serving, vectors, rule=rule, still=lambda: still_serves(store, serving))


def _beginnings(store: Store, found: Build) -> list[str]:
    """First words of documents of an index."""
    rows = shards.read_shard(store, found.identity, found.shards[0].name, found.dimension)
    return [text[:_BEGINNING] for text in rows.texts[:_TRIED]]
