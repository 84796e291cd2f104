"""The commit log: which objects have been taken, by whom, and where their rows are.

Commit n is `log/<n>.json`, written only where there is none: whoever writes it has won, whoever does not has taken
nothing and looks again. Everything a commit names is stored before it under its own sha256, so a crash before the
commit leaves only files that nobody names. Rejected rows take one step more: their file is named by the commit's
number, which nobody knows before the race is won, so it is copied afterwards from what the commit names, and
**before commit n + 1 is written, by whoever writes that**. Only the last commit's file can ever be missing.

An object that has gone is removed by an entry too, with its key under `removed`: nothing that happened is unwritten.

The state after commit n (each object's current ETag and the place of its rows) is kept now and then under
`cache/log/`, so that reading the log does not grow with its age. Those checkpoints are checked and can be deleted.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from tasks.storage import MissingKeyError, Store

CHECKPOINT_COMMITS: Final = 16
"""Commits read one by one after which a new checkpoint pays."""

_CHECKPOINTS_KEPT: Final = 2
_THREADS: Final = 16
_LOG_KEY: Final = re.compile(r"log/(\d{12})\.json")
_CHECKPOINT_KEY: Final = re.compile(r"cache/log/(\d{12})-([0-9a-f]{64})\.json\.gz")


class LogError(Exception):
    """The log is not whole, or what it names is not what was stored; the message names the key."""


@dataclass(frozen=True)
class Source:
    """One object as a commit took it."""

    key: str
    etag: str
    accepted: int
    rejected: int
    """Rows that were not taken; of an object that was refused, how many it probably holds."""


@dataclass(frozen=True)
class Commit:
    """One entry of the log. The batch holds the rows of the objects in their order here."""

    commit: int
    writer: str
    at: str
    full_listing: bool
    objects: tuple[Source, ...]
    accepted: int
    rejected: int
    batch: str | None
    """Key of the accepted rows (Parquet), None when there are none."""
    rejected_rows: str | None
    """Key of the rejected rows (JSON lines), None when there are none; copied to `quarantine`."""
    quarantine: str | None
    attempt: str = field(default_factory=lambda: secrets.token_hex(8))
    """Makes two attempts different bytes even where everything else is the same: only one of them wins."""
    understood: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the reader made of each object: format, columns used and ignored, judgements, the refusal."""
    removed: tuple[str, ...] = ()
    """Keys of objects that are no longer there; their rows no longer count."""
    reader: Mapping[str, Any] = field(default_factory=dict)
    """The parser's version and its caps: what they refused, others may take."""
    split: Mapping[str, Any] = field(default_factory=dict)
    """The split, so that it is not lost with `split.json`."""

    @property
    def key(self) -> str:
        """Where the entry is."""
        return log_key(self.commit)

    def refusal(self, key: str) -> str:
        """Why nothing of an object was taken; empty where something was."""
        found = self.understood.get(key, {}).get("refusal")
        return f"{found['reason']}: {found['remedy']}".removesuffix(": ") if found else ""


class Live(NamedTuple):
    """What the log says of one object now."""

    etag: str
    first: int
    """Commit that took it first: its place in the order of rows, whatever is written over it later."""
    last: int
    """Commit that holds its rows."""
    start: int
    """Row of that commit's batch at which they start."""
    accepted: int
    rejected: int
    refusal: str = ""
    """Why nothing of it was taken; empty where something was."""


@dataclass
class State:
    """Everything the log says up to one commit."""

    commit: int = 0
    head: str = ""
    """sha256 of the last entry's bytes: a checkpoint of another log is not taken for one of this."""
    full_listing: int = 0
    """Last commit that came from a listing of everything."""
    objects: dict[str, Live] = field(default_factory=dict)
    batches: dict[int, str] = field(default_factory=dict)
    """Key of the batch by commit."""
    rejected_rows: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Keys of the rejected rows by commit: as the commit stored them, and in quarantine."""
    readers: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """The parser's version and its caps by commit."""
    read: int = 0
    """Entries that were read one by one since the last checkpoint."""

    def apply(self, entry: Commit, body: bytes) -> None:
        """Add the next entry. Raises LogError when it is not the next."""
        if entry.commit != self.commit + 1:
            raise LogError(f"{log_key(self.commit + 1)} says that it is commit {entry.commit}")
        start = 0
        for source in entry.objects:
            before = self.objects.get(source.key)
            first = entry.commit if before is None else before.first
            self.objects[source.key] = Live(
                source.etag, first, entry.commit, start, source.accepted, source.rejected, entry.refusal(source.key)
            )
            start += source.accepted
        for key in entry.removed:
            self.objects.pop(key, None)
        if entry.batch is not None:
            self.batches[entry.commit] = entry.batch
        if entry.rejected_rows is not None and entry.quarantine is not None:
            self.rejected_rows[entry.commit] = entry.rejected_rows, entry.quarantine
        if entry.reader:
            self.readers[entry.commit] = entry.reader
        if entry.full_listing:
            self.full_listing = entry.commit
        self.commit = entry.commit
        self.head = hashlib.sha256(body).hexdigest()
        self.read += 1


def log_key(commit: int) -> str:
    """Where commit number `commit` is."""
    return f"log/{commit:012d}.json"


def quarantine_key(commit: int) -> str:
    """Where the rejected rows of commit number `commit` are."""
    return f"quarantine/{commit:012d}.jsonl"


# --- reading ---------------------------------------------------------------------------------------------


def load(store: Store, commit: int | None = None) -> State:
    """The state after `commit`, by default after the last one.

    Raises LogError when the log has a gap, an entry is not one, or there is no such commit.
    """
    state = _from_checkpoint(store, commit)
    after = log_key(state.commit) if state.commit else None
    found = (_LOG_KEY.fullmatch(entry.key) for entry in store.entries("log/", start_after=after))
    numbers = sorted(int(match[1]) for match in found if match)
    if commit is not None:
        if commit > max(numbers, default=state.commit):
            raise LogError(f"{store.uri(log_key(commit))} does not exist")
        numbers = [number for number in numbers if number <= commit]
    wanted = range(state.commit + 1, state.commit + 1 + len(numbers))
    for number, expected in zip(numbers, wanted, strict=True):
        if number != expected:
            raise LogError(f"{store.uri(log_key(expected))} is missing, but {log_key(number)} is there")
    with ThreadPoolExecutor(_THREADS) as pool:
        for body in pool.map(lambda number: _body(store, number), wanted):
            state.apply(_parse(store, state.commit + 1, body), body)
    return state


def identity(store: Store) -> str:
    """Which log this is: another one, once it was deleted and started again; empty while it has no entry."""
    blob = store.find(log_key(1))
    return "" if blob is None else _parse(store, 1, blob.body).attempt


def read(store: Store, commits: Iterable[int]) -> list[Commit]:
    """The entries of some commits. Raises LogError when one is missing or damaged."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda number: _parse(store, number, _body(store, number)), commits))


def _body(store: Store, commit: int) -> bytes:
    try:
        return store.get(log_key(commit)).body
    except MissingKeyError as error:
        raise LogError(f"{store.uri(log_key(commit))} is missing") from error


def _parse(store: Store, commit: int, body: bytes) -> Commit:
    try:
        fields = orjson.loads(body)
        fields["objects"] = tuple(Source(**source) for source in fields["objects"])
        fields["removed"] = tuple(fields.get("removed", ()))
        return Commit(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise LogError(f"{store.uri(log_key(commit))} is not a commit: {error}") from error


# --- writing ---------------------------------------------------------------------------------------------


def append(store: Store, state: State, entry: Commit) -> bool:
    """Write the entry as the next one, and add it to the state. False: another writer was faster, nothing changed.

    The rejected rows of the commit before must be in quarantine by now: see `complete`.
    """
    body = as_json(entry)
    if store.put_if_absent(entry.key, body) is None:
        return False
    state.apply(entry, body)
    return True


def as_json(entry: Commit) -> bytes:
    """The bytes of an entry; parts that are empty, and that older versions did not know, are left out."""
    optional = {"understood", "removed", "reader", "split"}
    fields = {name: value for name, value in asdict(entry).items() if value or name not in optional}
    return orjson.dumps(fields, option=orjson.OPT_INDENT_2)


def complete(store: Store, state: State) -> None:
    """Bring the rejected rows of the last commit into quarantine, where its writer did not come to it.

    A file of another size is of a log that was deleted since: it gives way.
    """
    source, target = state.rejected_rows.get(state.commit, ("", ""))
    if not target:
        return
    there = next((entry for entry in store.entries(target) if entry.key == target), None)
    if there is not None:
        if any(entry.key == source and entry.size != there.size for entry in store.entries(source)):
            store.put_if_match(target, store.get(source).body, there.etag)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rejected.jsonl")
        try:
            store.download(source, path)
        except MissingKeyError as error:
            raise LogError(f"{store.uri(source)} is missing, though {log_key(state.commit)} names it") from error
        store.upload_if_absent(target, path)


# --- checkpoints -----------------------------------------------------------------------------------------


def checkpoint(store: Store, state: State) -> None:
    """Keep the state, when enough was read since the last time; older checkpoints go."""
    if state.read < CHECKPOINT_COMMITS:
        return
    fields = {
        "commit": state.commit,
        "head": state.head,
        "full_listing": state.full_listing,
        "objects": {key: tuple(live) for key, live in state.objects.items()},
        "batches": state.batches,
        "rejected_rows": state.rejected_rows,
        "readers": state.readers,
    }
    body = gzip.compress(orjson.dumps(fields, option=orjson.OPT_NON_STR_KEYS), 1, mtime=0)
    store.put(f"cache/log/{state.commit:012d}-{hashlib.sha256(body).hexdigest()}.json.gz", body)
    state.read = 0
    store.delete(key for _, _, key in _checkpoints(store)[_CHECKPOINTS_KEPT:])


def _checkpoints(store: Store) -> list[tuple[int, str, str]]:
    """Commit, sha256 and key of every checkpoint, the latest first."""
    found = (_CHECKPOINT_KEY.fullmatch(entry.key) for entry in store.entries("cache/log/"))
    return sorted(((int(match[1]), match[2], match[0]) for match in found if match), reverse=True)


def _last_erasure(store: Store) -> int:
    """The commit at which rows were last erased from entries before it: a state from before that no longer holds."""
    bodies = (store.get(entry.key).body for entry in list(store.entries("erasures/")))
    return max((int(orjson.loads(body).get("commit", 0)) for body in bodies), default=0)


def _from_checkpoint(store: Store, commit: int | None) -> State:
    """The latest checkpoint up to a commit that is whole and of this log; without one, the state before commit 1."""
    checkpoints = _checkpoints(store)
    erased = _last_erasure(store) if checkpoints else 0
    for number, digest, key in checkpoints:
        if number < erased or (commit is not None and number > commit):
            continue
        blob, entry = store.find(key), store.find(log_key(number))
        if blob is None or entry is None or hashlib.sha256(blob.body).hexdigest() != digest:
            continue
        fields = orjson.loads(gzip.decompress(blob.body))
        if hashlib.sha256(entry.body).hexdigest() == fields["head"]:
            return State(
                commit=number,
                head=fields["head"],
                full_listing=fields["full_listing"],
                objects={key: Live(*live) for key, live in fields["objects"].items()},
                batches={int(number): batch for number, batch in fields["batches"].items()},
                rejected_rows={int(number): (keys[0], keys[1]) for number, keys in fields["rejected_rows"].items()},
                readers={int(number): reader for number, reader in fields.get("readers", {}).items()},
            )
    return State()
