"""Find everything that holds what is to be forgotten, and rewrite or remove it.

May be interrupted at any write and run again. What is derived goes first (vectors, records of runs), then what others
uploaded, then the log: a new batch is stored before its entry names it, and the old one is removed last. So at any
moment every entry of the log names a batch that is there, and as long as anything is left it is found by its text.

Intake may run meanwhile. A commit of its own (without rows) makes an intake that had begun before lose the race for
the next number, so that it looks again; checkpoints of the log from before that commit no longer count.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.encoding.cache import PREFIX as VECTORS
from tasks.encoding.cache import text_hash
from tasks.erasure import indexed
from tasks.erasure.rewrite import CannotRewriteError, record_without, source_without
from tasks.erasure.wanted import Wanted, batches
from tasks.index.shards import FOLDER as INDEXES
from tasks.intake import BATCH, commit_log
from tasks.intake.batch import upload
from tasks.intake.commit_log import Commit, Source
from tasks.runs import now
from tasks.splits import as_fields, load_split
from tasks.storage import OldVersion, Store, StoreError

SOURCES: Final = ("pairs/", "golden/", "corpus/", "documents/", "guard/")
"""What others uploaded."""

_RECORDS: Final = ("runs/", "watch/")
_FOLDER: Final = "erasures/"


@dataclass(frozen=True)
class Plan:
    """What holds what is to be forgotten. Names no text."""

    rows: int = 0
    """Accepted rows, of all states of all objects."""
    rejected: int = 0
    """Rejected rows."""
    sources: tuple[str, ...] = ()
    """Uploaded objects that hold it."""
    stubborn: tuple[str, ...] = ()
    """Uploaded objects that hold it, in a format that is not rewritten here."""
    commits: tuple[int, ...] = ()
    """Entries of the log whose rows hold it."""
    quarantine: tuple[str, ...] = ()
    """Files of rejected rows, as people read them."""
    live: bool = False
    """Whether the log counts the object among those that are there."""
    mentions: int = 0
    """Longer texts that contain the text: they stay."""
    orphans: tuple[str, ...] = ()
    """Batches that no entry names and that hold it: an interrupted intake or erasure left them."""
    records: tuple[str, ...] = ()
    """What runs and the watch wrote."""
    vectors: tuple[str, ...] = ()
    """Blocks of cached vectors, and shards of indexes."""
    old: tuple[OldVersion, ...] = ()
    """Versions that the bucket keeps of objects that were overwritten or deleted."""
    versions: tuple[str, ...] = ()
    """Models that were trained on it: their weights are not changed."""

    def __bool__(self) -> bool:
        return any(value for name, value in asdict(self).items() if name not in {"mentions", "versions"})


# --- finding ---------------------------------------------------------------------------------------------


def find(store: Store, wanted: Wanted) -> Plan:
    """Look at everything that the store keeps; changes nothing."""
    log = commit_log.load(store)
    entries = commit_log.read(store, range(1, log.commit + 1))
    named = {entry.batch for entry in entries} | {entry.rejected_rows for entry in entries}
    held = {key: table for key, table in batches(store) if wanted.holds_in(table)}
    rejected = {key: dropped for key in _rejected_files(store) if (dropped := len(_split(store, key, wanted)[1]))}
    sources, stubborn = _sources(store, wanted)
    return Plan(
        rows=sum(wanted.in_table(held[entry.batch])[1] for entry in entries if entry.batch in held),
        rejected=sum(rejected.get(entry.rejected_rows or "", 0) for entry in entries),
        sources=tuple(sources),
        stubborn=tuple(stubborn),
        commits=tuple(e.commit for e in entries if e.batch in held or e.rejected_rows in rejected),
        quarantine=tuple(key for key in rejected if key.startswith("quarantine/")),
        live=wanted.object in log.objects,
        mentions=sum(wanted.mentions(table) for _, table in batches(store)),
        orphans=tuple(sorted(key for key in {*held, *rejected} - named if key.startswith("batches/"))),
        records=tuple(key for key in _records(store) if record_without(key, store.get(key).body, wanted) is not None),
        vectors=tuple(_vectors(store, wanted)),
        old=tuple(old for old in _old_versions(store) if _is_held(old.key, store.get_old(old), wanted)),
        versions=tuple(_versions(store, wanted, {e.commit: held[e.batch] for e in entries if e.batch in held})),
    )


def _rejected_files(store: Store) -> Iterator[str]:
    for folder in ("batches/", "quarantine/"):
        yield from (entry.key for entry in list(store.entries(folder)) if entry.key.endswith(".jsonl"))


def _split(store: Store, key: str, wanted: Wanted) -> tuple[list[bytes], list[dict[str, Any]]]:
    """Rejected rows that stay, as lines, and those that do not."""
    return _divided(store.get(key).body, wanted)


def _divided(body: bytes, wanted: Wanted) -> tuple[list[bytes], list[dict[str, Any]]]:
    kept, dropped = [], []
    for line in body.splitlines():
        row = orjson.loads(line)
        if row["object"] == wanted.object or (wanted.object is None and wanted.is_in_record(row["text"])):
            dropped.append(row)
        else:
            kept.append(line)
    return kept, dropped


def _sources(store: Store, wanted: Wanted) -> tuple[list[str], list[str]]:
    """Uploaded objects that hold it, and those that also cannot be rewritten."""
    if wanted.object is not None:
        return ([wanted.object] if store.exists(wanted.object) else []), []
    found, stubborn = [], []
    for folder in SOURCES:
        for entry in store.entries(folder):
            try:
                if source_without(entry.key, store.get(entry.key).body, wanted) is not None:
                    found.append(entry.key)
            except (CannotRewriteError, StoreError):
                stubborn.append(entry.key)
    return found, stubborn


def _records(store: Store) -> Iterator[str]:
    for folder in _RECORDS:
        yield from (entry.key for entry in list(store.entries(folder)))


def _vectors(store: Store, wanted: Wanted) -> Iterator[str]:
    """Blocks with the vector of a text to forget, and shards of indexes that hold it."""
    for entry in list(store.entries(VECTORS)):
        if entry.key.endswith(".npy") and _has_vector(store.get(entry.key).body, wanted):
            yield entry.key
    for key in indexed.shards(store):
        if _is_in_shard(store.get(key).body, wanted):
            yield key


def _is_in_shard(body: bytes, wanted: Wanted) -> bool:
    return any(map(wanted.equals, indexed.values(body)))


def _has_vector(body: bytes, wanted: Wanted) -> bool:
    hashes = {text_hash(text) for text in wanted.spellings}
    return not hashes.isdisjoint(np.load(io.BytesIO(body), allow_pickle=False)["text"].tolist())


def _old_versions(store: Store) -> Iterator[OldVersion]:
    for folder in (*SOURCES, *_RECORDS, "batches/", "quarantine/", VECTORS, INDEXES):
        yield from list(store.old_versions(folder))


def _is_held(key: str, body: bytes, wanted: Wanted) -> bool:
    """Whether an old version of an object holds it. One in a format that is not rewritten is searched byte by byte."""
    if key.startswith(SOURCES):
        try:
            return key == wanted.object or (wanted.object is None and source_without(key, body, wanted) is not None)
        except CannotRewriteError:
            return True
    if key.startswith(_RECORDS):
        return record_without(key, body, wanted) is not None
    if key.endswith(".jsonl"):
        return bool(_divided(body, wanted)[1])
    if indexed.is_shard(key):
        return _is_in_shard(body, wanted)
    if key.endswith(".parquet"):
        return wanted.holds_in(pq.read_table(pa.BufferReader(body)))
    return key.endswith(".npy") and _has_vector(body, wanted)


def _versions(store: Store, wanted: Wanted, held: dict[int, pa.Table]) -> Iterator[str]:
    """Models that were trained at a commit at which a row of the train side held it."""
    split = load_split(store)
    trained: dict[int, set[str]] = {}
    for commit, table in held.items():
        for row in table.to_pylist():
            texts = [row["query"], row["document"], *(row["negatives"] or ())]
            hit = row["object"] == wanted.object or any(map(wanted.equals, filter(None, texts)))
            if hit and row["kind"] == "pair" and split.side(row["query"]) == "train":
                trained.setdefault(commit, set()).add(row["object"])
    states: dict[int, commit_log.State] = {}
    versions = set()
    for run in store.folders("runs/") if trained else ():
        blob = store.find(f"runs/{run}/train.json")
        found = orjson.loads(blob.body) if blob else {}
        at = found.get("commit")
        if found.get("version") and at:
            state = states.setdefault(at, commit_log.load(store, at))
            lives = ((commit, state.objects.get(key)) for commit, keys in trained.items() for key in keys)
            versions |= {found["version"] for commit, live in lives if live is not None and live.last == commit}
    yield from sorted(versions)


# --- erasing ---------------------------------------------------------------------------------------------


class StubbornError(Exception):
    """Some uploaded object holds the text and cannot be rewritten: nothing was changed."""


def carry_out(store: Store, wanted: Wanted, plan: Plan) -> str:
    """Rewrite or remove everything of the plan; returns the key of the audit entry.

    Raises StubbornError before anything is changed, LogError or StoreError where the store does not let it.
    """
    if plan.stubborn:
        raise StubbornError(
            f"{', '.join(plan.stubborn)}: holds the text, and cannot be rewritten or read here. Replace the object "
            "yourself, or erase it whole with --object"
        )
    key, begun = _begin(store, wanted, plan)
    store.delete(plan.vectors)
    for block in plan.vectors:  # found by how the text is spelt in rows: before those go
        store.delete_old(store.old_versions(block))
    for record in plan.records:
        _rewrite(store, record, wanted, record_without)
    for source in plan.sources:
        if source == wanted.object:
            store.delete([source])
        else:
            _rewrite(store, source, wanted, source_without)
    replaced = [name for commit in plan.commits for name in _erase_from_commit(store, commit, wanted)]
    fence = _fence(store, wanted)
    done = {**begun, "state": "done", "commit": fence}
    current = store.get(key)
    if store.put_if_match(key, orjson.dumps(done, option=orjson.OPT_INDENT_2), current.etag) is None:
        raise StoreError(f"cannot write {store.uri(key)}: it was changed meanwhile; run the command again")
    store.delete([entry.key for entry in store.entries("cache/log/")])
    for name in plan.quarantine:
        _filter(store, name, wanted)
    log = commit_log.load(store)
    named = {name for e in commit_log.read(store, range(1, log.commit + 1)) for name in (e.batch, e.rejected_rows)}
    store.delete(sorted({*replaced, *plan.orphans} - named))
    # last, since what was rewritten above has old versions now
    store.delete_old(old for old in _old_versions(store) if _is_held(old.key, store.get_old(old), wanted))
    return key


def _begin(store: Store, wanted: Wanted, plan: Plan) -> tuple[str, dict[str, Any]]:
    """Write the audit entry before anything is changed: what an interrupted run has erased is known from it."""
    taken = [entry.key for entry in store.entries(_FOLDER)]
    number = max((int(key[len(_FOLDER) : -5]) for key in taken), default=0) + 1
    counts = {name: len(value) for name, value in asdict(plan).items() if isinstance(value, tuple)}
    begun = {
        "state": "begun",
        "at": now(),
        "who": os.environ.get("USER", "unknown"),
        "kind": wanted.kind,
        "object": wanted.object,
        "rows": plan.rows,
        "rejected": plan.rejected,
        "changed": {
            name: counts[name] for name in ("sources", "commits", "quarantine", "records", "vectors", "orphans", "old")
        },
        "versions": list(plan.versions),
    }
    while True:
        key = f"{_FOLDER}{number:012d}.json"
        if store.put_if_absent(key, orjson.dumps(begun, option=orjson.OPT_INDENT_2)) is not None:
            return key, begun
        number += 1


def _rewrite(store: Store, key: str, wanted: Wanted, without: Callable[[str, bytes, Wanted], bytes | None]) -> None:
    """Replace an object by what it may keep, or delete it; again where it was changed meanwhile."""
    while (blob := store.find(key)) is not None:
        body = without(key, blob.body, wanted)
        if body is None:
            return
        if not body:
            store.delete([key])
        elif store.put_if_match(key, body, blob.etag) is not None:
            return


def _filter(store: Store, key: str, wanted: Wanted) -> None:
    """Drop rejected rows from a file of quarantine; one without rows goes."""
    kept, dropped = _split(store, key, wanted)
    if dropped and kept:
        store.put(key, b"".join(line + b"\n" for line in kept))
    elif dropped:
        store.delete([key])


def _erase_from_commit(store: Store, commit: int, wanted: Wanted) -> list[str]:
    """Let an entry of the log name files without what is to be forgotten; returns the files that it named before."""
    blob = store.get(commit_log.log_key(commit))
    (entry,) = commit_log.read(store, [commit])
    accepted = {source.key: source.accepted for source in entry.objects}
    rejected = {source.key: source.rejected for source in entry.objects}
    batch, lines = entry.batch, entry.rejected_rows
    with tempfile.TemporaryDirectory() as folder:
        if batch is not None:
            batch, accepted = _new_batch(store, batch, wanted, Path(folder, "rows.parquet"), accepted)
        if lines is not None:
            lines, rejected = _new_rejected(store, lines, wanted, Path(folder, "rejected.jsonl"), rejected)
    sources = tuple(Source(s.key, s.etag, accepted[s.key], rejected[s.key]) for s in entry.objects)
    new = replace(
        entry,
        objects=sources,
        accepted=sum(accepted.values()),
        rejected=sum(rejected.values()),
        batch=batch,
        rejected_rows=lines,
        quarantine=entry.quarantine if lines else None,
    )
    if new == entry:
        return []
    if store.put_if_match(entry.key, commit_log.as_json(new), blob.etag) is None:
        raise StoreError(f"cannot write {store.uri(entry.key)}: it was changed meanwhile; run the command again")
    return [name for name in (entry.batch, entry.rejected_rows) if name not in {None, batch, lines} and name]


def _new_batch(
    store: Store, key: str, wanted: Wanted, path: Path, accepted: dict[str, int]
) -> tuple[str | None, dict[str, int]]:
    """The batch without the rows, stored under its own name; and the rows that each object has left."""
    table = pq.read_table(pa.BufferReader(store.get(key).body), schema=BATCH)
    if not wanted.holds_in(table):
        return key, accepted
    kept, _ = wanted.in_table(table)
    counts = {entry["values"]: entry["counts"] for entry in kept["object"].value_counts().to_pylist()}
    left = {name: int(counts.get(name, 0)) for name in accepted}
    if not kept.num_rows:
        return None, left
    pq.write_table(kept, path, compression="zstd", row_group_size=20_000)
    return upload(store, path), left


def _new_rejected(
    store: Store, key: str, wanted: Wanted, path: Path, rejected: dict[str, int]
) -> tuple[str | None, dict[str, int]]:
    """The rejected rows without those to forget, stored under their own name; and how many each object has left."""
    kept, dropped = _split(store, key, wanted)
    if not dropped:
        return key, rejected
    left = dict(rejected)
    for row in dropped:
        left[row["object"]] = max(0, left[row["object"]] - 1) if row["line"] else 0  # line 0 stands for all of them
    if not kept:
        return None, left
    path.write_bytes(b"".join(line + b"\n" for line in kept))
    return upload(store, path), left


def _fence(store: Store, wanted: Wanted) -> int:
    """Write a commit without rows, the removal of the object where one is erased; returns its number."""
    while True:
        log = commit_log.load(store)
        commit_log.complete(store, log)
        entry = Commit(
            commit=log.commit + 1,
            writer="forget",
            at=now(),
            full_listing=False,
            objects=(),
            accepted=0,
            rejected=0,
            batch=None,
            rejected_rows=None,
            quarantine=None,
            removed=(wanted.object,) if wanted.object in log.objects else (),
            split=as_fields(load_split(store)),
        )
        if commit_log.append(store, log, entry):
            return entry.commit
