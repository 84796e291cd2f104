"""Guard sets: `guard/<name>/` of the store in BEIR layout, on which a candidate must not be worse than production.

They never train and never choose: no text of theirs is in the corpus of the test, in training, or among what leaks are
looked for in. Each night both models are scored on every set by the same exact ranking as on the test, each as it is
served. A set that cannot be read holds every candidate, and so does one that changed while a night ran: a fault in what
protects production must not open the gate.

A set is read once: what was understood of it is kept on this machine under the names and ETags of its files.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import runs
from tasks.config import DECISIVE, Gate, GuardResult, Limits
from tasks.dataset import EvaluationSet
from tasks.encoding import Encoder, ModelEncoder, Progress, VectorError
from tasks.gate import guard
from tasks.parsing import beir
from tasks.records import GuardScored, Scored
from tasks.runs import Run
from tasks.scoring.sides import CANDIDATE, PRODUCTION, SideScores, per_query_table, read_side, score_side
from tasks.splits import document_key, query_key
from tasks.storage import ChangedError, Entry, Store, UnreadableError, file_sha256

FOLDER: Final = "guard/"

_READER: Final = 1
"""Raised when the same files are understood differently."""

_OF_SYSTEMS: Final = (".", "__MACOSX")
"""How folders begin that programs leave behind: no set."""

_KEPT_SECONDS: Final = 30 * 86_400
"""A set that was not asked for so long is removed from this machine."""


class GuardError(Exception):
    """A guard set cannot be used; the message names its file, the line, and what is wrong."""


@dataclass(frozen=True)
class GuardSet:
    """Queries with what is relevant to them, and the documents to search; all texts are distinct."""

    name: str
    test: EvaluationSet
    documents: list[str]


@dataclass(frozen=True)
class Listed:
    """The files of a set as they are in the store."""

    name: str
    files: Mapping[str, Entry]
    """By their path in the set's folder."""

    @property
    def digest(self) -> str:
        """Of the files' names, ETags and sizes: the same for the same set."""
        files = sorted((path, entry.etag, entry.size) for path, entry in self.files.items())
        return hashlib.sha256(orjson.dumps([_READER, files])).hexdigest()


# --- reading -----------------------------------------------------------------------------------------------------


def find(store: Store) -> list[Listed]:
    """The sets of a store, by name. Files that lie directly under `guard/` are a set without a name."""
    found: dict[str, dict[str, Entry]] = {}
    for entry in store.entries(FOLDER):
        name, slash, path = entry.key.removeprefix(FOLDER).partition("/")
        if (slash or beir.belongs(name)) and not name.startswith(_OF_SYSTEMS):
            found.setdefault(name if slash else "", {})[path if slash else name] = entry
    return [Listed(name, _of_set(files)) for name, files in sorted(found.items())]


def _of_set(files: Mapping[str, Entry]) -> dict[str, Entry]:
    top = beir.inside(files)
    inner = {path.removeprefix(top): entry for path, entry in files.items() if path.startswith(top)}
    return {path: entry for path, entry in inner.items() if beir.belongs(path)}


def read(store: Store, listed: Listed, limits: Limits, work: Path) -> GuardSet:
    """A set of the store, from this machine where it was read before.

    Raises GuardError when it cannot be used, StoreError when the store cannot be read.
    """
    where = f"{FOLDER}{listed.name}/"
    if not listed.name:
        raise GuardError(f"{FOLDER}{min(listed.files)} belongs into a folder of its own, such as {FOLDER}general/")
    kept = _Kept(work / "guards", listed.digest)
    found = kept.load(listed.name)
    if found is None:
        files = {path: partial(_body, store, entry, limits) for path, entry in listed.files.items()}
        found = _build(listed.name, where, files, limits)
        kept.save(found)
    return found


def read_folder(folder: Path, limits: Limits) -> GuardSet:
    """A set in a folder of this machine. Raises GuardError when it cannot be used."""
    return _build(folder.resolve().name, f"{folder}/", beir.local_files(folder), limits)


def _body(store: Store, entry: Entry, limits: Limits) -> bytes:
    if entry.size > limits.max_object_bytes:
        raise GuardError(f"{entry.key} is larger than {limits.max_object_bytes} bytes (limits.max_object_bytes)")
    try:
        return store.get_listed(entry).body
    except ChangedError as error:
        raise GuardError(f"{entry.key} changed while it was read; the next night reads it anew") from error
    except UnreadableError as error:
        if error.transient:
            raise
        raise GuardError(str(error)) from error


def _build(name: str, where: str, files: beir.Files, limits: Limits) -> GuardSet:
    """A set of distinct texts: documents and queries that are the same after normalising are one, as on the test."""
    try:
        found = beir.read_set(files, limits)
    except beir.LayoutError as error:
        raise GuardError(f"{where}: {error}") from error
    place: dict[str, int] = {}
    documents: list[str] = []
    of_id: dict[str, int] = {}
    for known, text in found.documents.items():
        of_id[known] = place.setdefault(document_key(text), len(documents))
        if of_id[known] == len(documents):
            documents.append(text)
    asked: dict[str, tuple[str, set[int]]] = {}
    for query, scores in found.scores.items():
        _, relevant = asked.setdefault(document_key(found.queries[query]), (found.queries[query], set()))
        relevant.update(of_id[document] for document, score in scores.items() if score > 0)
    answered = [(query, relevant) for query, relevant in asked.values() if relevant]
    if not answered:
        raise GuardError(f"{where}: no query has a relevant document, which is one with a score above 0")
    if all(len(relevant) == len(documents) for _, relevant in answered):
        raise GuardError(f"{where}: every document is relevant to every query, so that no model can rank one wrongly")
    test = EvaluationSet(
        queries=[query for query, _ in answered],
        relevant=[np.array(sorted(relevant), dtype=np.int64) for _, relevant in answered],
        slices=[None] * len(answered),
        golden=np.zeros(len(answered), dtype=bool),
        excluded=len(asked) - len(answered),
    )
    return GuardSet(name, test, documents)


@dataclass(frozen=True)
class _Kept:
    """What was understood of the files with a digest, in a folder of this machine; the name has the hash of it."""

    folder: Path
    digest: str

    def load(self, name: str) -> GuardSet | None:
        """The set, under its name; None where it is not there or damaged."""
        for path in self.folder.glob(f"{self.digest}-*.parquet"):
            with suppress(FileNotFoundError):  # another run removed it
                if file_sha256(path) == path.stem.partition("-")[2]:
                    os.utime(path)
                    return _unpacked(name, pq.read_table(path))
                path.unlink()
        return None

    def save(self, found: GuardSet) -> None:
        """Keep a set, all at once, and remove those that nobody asked for in a month."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.folder) as temporary:
            part = Path(temporary) / "set.parquet"
            pq.write_table(_packed(found), part, compression="zstd")
            part.replace(self.folder / f"{self.digest}-{file_sha256(part)}.parquet")
        for path in self.folder.glob("*.parquet"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _KEPT_SECONDS:
                    path.unlink()


def _packed(found: GuardSet) -> pa.Table:
    """Documents, then queries, which have a list of what is relevant."""
    texts = [*found.documents, *found.test.queries]
    relevant = [None] * len(found.documents) + [indices.tolist() for indices in found.test.relevant]
    excluded = {b"excluded": str(found.test.excluded).encode()}
    columns = {"text": pa.array(texts, pa.large_string()), "relevant": pa.array(relevant, pa.list_(pa.int64()))}
    return pa.table(columns).replace_schema_metadata(excluded)


def _unpacked(name: str, table: pa.Table) -> GuardSet:
    is_query = table["relevant"].is_valid()
    asked = table.filter(is_query)
    test = EvaluationSet(
        queries=asked["text"].to_pylist(),
        relevant=[np.array(indices, dtype=np.int64) for indices in asked["relevant"].to_pylist()],
        slices=[None] * asked.num_rows,
        golden=np.zeros(asked.num_rows, dtype=bool),
        excluded=int(table.schema.metadata[b"excluded"]),
    )
    return GuardSet(name, test, table["text"].filter(table["relevant"].is_null()).to_pylist())


# --- scoring and judging -----------------------------------------------------------------------------------------


def score(
    run: Run,
    encoders: Mapping[str, Encoder],
    trained_on: Iterable[str],
    work: Path,
    on_progress: Progress | None = None,
) -> list[GuardScored]:
    """Score candidate and production on every set of the store; what they scored is written into the run's folder.

    Args:
        run: Whose night it is.
        encoders: Both sides, by their names.
        trained_on: The candidate's training queries.
        work: Where sets are kept on this machine.
        on_progress: Told of the texts that are encoded.

    Raises StoreError when the store cannot be read; what is wrong with a set is in its record.
    """
    listed = find(run.store)
    settings = run.find(runs.SETTINGS)
    limits = settings.limits if settings else Limits()
    keys = {query_key(text) for text in trained_on} if listed else set()
    found = []
    for one in listed:
        try:
            guarded = read(run.store, one, limits, work)
            table = _score_set(guarded, encoders, on_progress)
        except (GuardError, VectorError) as error:
            found.append(GuardScored(one.name, one.digest, problem=str(error)))
            continue
        run.put(_key(one.name), table)
        counts = len(guarded.test), len(guarded.documents), _trained(guarded, keys)
        found.append(GuardScored(one.name, one.digest, "", *counts))
    return found


def _score_set(guarded: GuardSet, encoders: Mapping[str, Encoder], on_progress: Progress | None = None) -> bytes:
    """Metrics per query of candidate and production on a set, as `per_query_table` writes them."""
    sides: dict[str, SideScores] = {
        side: score_side(guarded.test, guarded.documents, encoders[side], on_progress=on_progress)
        for side in (CANDIDATE, PRODUCTION)
    }
    return per_query_table(guarded.test, sides)


def _trained(guarded: GuardSet, keys: Set[str]) -> int:
    """How many of its queries are among the keys of training queries."""
    return sum(query_key(query) in keys for query in guarded.test.queries)


def judge(run: Run, scored: Scored, gate: Gate) -> list[GuardResult]:
    """What each set says of the candidate; a set that is not as it was scored says that it cannot be judged."""
    since = {one.name: one for one in changed(run.store, scored.guards)}
    prints = {side: scored.sides[side].fingerprint for side in (CANDIDATE, PRODUCTION)}
    results = []
    for one in scored.guards:
        if one.problem:
            results.append(_not_judged(one.name, f"cannot be read: {one.problem}."))
        elif one.name not in since:
            table = run.store.get(run.key(_key(one.name))).body
            results.append(_judge_set(one, table, prints, gate))
    told = {one.name for one in results}
    return [*results, *(one for name, one in since.items() if name not in told)]


def changed(store: Store, scored: Sequence[GuardScored]) -> list[GuardResult]:
    """The sets that are not as they were scored: they cannot be judged."""
    now, before = {one.name: one.digest for one in find(store)}, {one.name: one.digest for one in scored}
    results = []
    for name in sorted({*now, *before}):
        if name not in before:
            results.append(_not_judged(name, "came while the night ran, so that the candidate was not scored on it."))
        elif now.get(name) != before[name]:
            results.append(_not_judged(name, "changed while the night ran; the next night judges it as it is then."))
    return results


def _judge_set(one: GuardScored, table: bytes, prints: Mapping[str, str], gate: Gate) -> GuardResult:
    """What a set says of a candidate by the metrics per query; `prints` are the fingerprints of both sides."""
    candidate, production = (read_side(table, side, prints[side]) for side in (CANDIDATE, PRODUCTION))
    said = guard(one.name, candidate, production, gate)
    after, before = (
        {metric: float(side.per_query[metric].mean()) for metric in DECISIVE} for side in (candidate, production)
    )
    return GuardResult(
        name=one.name,
        verdict="not judged" if not said.judged else "falls" if said.reasons else "stands",
        reasons=list(said.reasons),
        queries=one.queries,
        documents=one.documents,
        before=before,
        after=after,
        deltas=said.deltas,
        trained=one.trained,
    )


def try_out(
    sets: Sequence[GuardSet], encoders: Mapping[str, ModelEncoder], trained_on: Iterable[str], gate: Gate
) -> list[GuardResult]:
    """What sets say of a candidate without a night; `encoders` and `trained_on` as in `score`."""
    keys = {query_key(text) for text in trained_on} if sets else set()
    prints = {side: encoder.fingerprint for side, encoder in encoders.items()}
    results = []
    for one in sets:
        scored = GuardScored(one.name, "", "", len(one.test), len(one.documents), _trained(one, keys))
        results.append(_judge_set(scored, _score_set(one, encoders), prints, gate))
    return results


def vetoes(results: Sequence[GuardResult]) -> list[str]:
    """Why a candidate must not serve."""
    return [reason for result in results for reason in result.reasons]


def _not_judged(name: str, why: str) -> GuardResult:
    return GuardResult(name=name, verdict="not judged", reasons=[f"Guard set {name!r} {why}"])


def _key(name: str) -> str:
    return f"{runs.GUARDS}{name}.parquet"
