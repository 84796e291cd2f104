"""What happens to a store, on the real code, and what must stay true whatever happens."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import to_json

from tasks import erasure, intake, night, registry, runs, splits
from tasks.config import Limits, Model, Outcome
from tasks.intake import LogError, commit_log
from tasks.records import Asked
from tasks.registry import Change, RegistryError
from tasks.runs import Run
from tasks.splits import SplitError
from tasks.storage import Store, StoreError
from tasks.watch import fresh
from tests.models import DESCRIPTION, model_folder
from tests.report_cases import material
from tests.simulation.actors import Crash, Crowd, Process
from tests.simulation.server import BEGINNING, Client, Server, Stored

LIMITS = Limits(max_removed_share=1.0, full_listing_below=2, full_listing_commits=4)
_TROUBLE = (StoreError, RegistryError, LogError, SplitError, erasure.StubbornError, erasure.NothingToForgetError)
_LEDGER = "promotions/"
_ATTEMPTS = 4


class Violation(BaseException):
    """Something that must always be true is not; no code under test may catch this."""


@dataclass
class World:
    """One schedule: the server, the actors, and what is known of what they did."""

    seed: int
    told: list[int] = field(default_factory=list)
    uploads: dict[str, list[list[tuple[str, int]]]] = field(default_factory=dict)
    """By key: the rows (query, line) of each state of the object."""
    forgotten: set[str] = field(default_factory=set)
    erased: set[str] = field(default_factory=set)
    """Of these the erasure has ended."""
    trained: dict[str, set[str]] = field(default_factory=dict)
    """By run: the queries that its candidate was trained on."""
    in_use: dict[str, str] = field(default_factory=dict)
    """By run: the candidate of a night that is under way."""
    over: set[str] = field(default_factory=set)
    """Runs that came to a verdict."""
    training: set[str] = field(default_factory=set)
    """Runs whose checkpoints are needed."""
    critical: int = 0
    """How many are between two requests that no day passes between."""
    failures: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.focus = self.random.choice(("all", "all", "retention"))
        """What most of the schedule is about."""
        self.server = Server(self.random, trouble=self.random.choice((0.0, 0.0, 0.002, 0.01)), tree=self.seed % 2 == 1)
        self.server.on_put, self.server.on_delete = self._put, self._delete
        self.crowd = Crowd(
            self.random,
            deaths=self.random.choice((0, 1, 2, 4)),
            likely=self.random.choice((0.01, 0.04)),
            holds_up=self.random.choice((0.0, 0.5)),
            restless=self.random.choice((1.0, 0.3, 0.05)),
        )
        self.count = 0

    # --- the schedule ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Let everybody act, then look at what came of it. Raises Violation."""
        with _deterministic(self.random), mock.patch("tasks.registry.retention._seconds", self._seconds):
            self._uploads(4 if self.focus == "all" else 2)
            self._history()
            for number in range(self.random.choice((2, 3))):
                self.crowd.add(lambda number=number: self._nights(number))
            for act in self._company():
                self.crowd.add(act)
            self.crowd.add(self._time)
            self.crowd.run()
            self.server.trouble = 0.0
            self.crowd.deaths = 0
            self._settle()

    def _company(self) -> list[Callable[[], None]]:
        """Who acts besides the nights."""
        if self.focus == "retention":
            return [self._retirer, self._retirer, self._person]
        others = (self._person, self._retirer, self._eraser, self._watch)
        acts = [act for act in others if self.random.random() < 0.7]
        return [lambda: self._uploads(self.random.randrange(6)), *acts]

    def _store(self, process: Process) -> Store:
        client: Any = Client(self.server, process)
        return Store("s3://simulated", client)

    def _insist(self, act: Callable[[Store], object]) -> bool:
        """Act, again after a death or a failure, like a step that is tried again; says whether it succeeded."""
        for _ in range(_ATTEMPTS):
            try:
                act(self._store(Process(self.crowd)))
            except _TROUBLE:
                self.failures += 1
            except Crash:
                pass
            else:
                return True
        return False

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """What follows takes less than a day, as everything does that retention relies on."""
        self.critical += 1
        try:
            yield
        finally:
            self.critical -= 1

    # --- who acts ----------------------------------------------------------------------------------------------

    def _uploads(self, count: int) -> None:
        """Objects come, change and go."""
        for _ in range(count):
            self.crowd.turn()
            day = self.random.choice((1, 2, 3, 4, 5, 28))
            key = self.random.choice((f"pairs/dt=2026-10-{day:02d}/a.jsonl", "pairs/b.jsonl", "golden/g.jsonl"))
            if key in self.server.objects and self.random.random() < 0.3:
                self.server.delete(key)
                continue
            lines = []
            for _ in range(self.random.randrange(1, 4)):
                self.count += 1
                row = {"query": f"how does part{self.count} work", "document": f"part{self.count} turns"}
                broken = self.random.random() < 0.15
                lines.append(b"broken %d" % self.count if broken else json.dumps(row).encode())
            self.server.put(key, b"\n".join(lines) + b"\n")

    def _history(self) -> None:
        """What happened before: perhaps some versions served, and nothing is young any more."""
        store = self._store(Process(self.crowd))
        trouble, self.server.trouble = self.server.trouble, 0.0
        for number in range(self.random.randrange(4) if self.focus == "all" else 4):
            now = registry.read_production(store)
            words = {"run_id": f"2026100{number}T000000Z-00000000", "who": "night", "reason": "earlier"}
            version, etag = self._publish(store, number), now.etag if now else None
            registry.promote(store, version, etag, scores={}, announce=self._announce, **words)
        self.server.now += timedelta(days=self.random.choice((0, 2)))
        self.server.trouble = trouble

    def _nights(self, number: int) -> None:
        for turn in range(self.random.choice((1, 2))):
            year = self.random.choice((2026, 2026, 2026, 2027))  # one clock in four is a year ahead
            run_id = f"{year}11{turn + 2:02d}T0{number}0000Z-{self.random.randrange(1 << 32):08x}"
            promotes = self.random.random() < 0.75
            if not self._insist(lambda store, r=run_id, p=promotes: self._night(store, r, p)):  # type: ignore[misc]
                self._insist(lambda store, r=run_id: self._break_off(store, r))  # type: ignore[misc]
            self.in_use.pop(run_id, None)
            self.training.discard(run_id)

    def _night(self, store: Store, run_id: str, promotes: bool) -> None:
        """One attempt of a night: the real steps, but for training and scoring."""
        run = Run(store, run_id)
        begun = night.begin(store, run_id, None, self._announce)
        before = self._known(store) if run.find(runs.TAKEN) is None else {}
        taken = night.take_in(store, run_id, begun.last_commit, LIMITS)
        self._check_rows(store, taken.commit, before)
        candidate = run.find(runs.CANDIDATE)
        if candidate is None:
            self.training.add(run_id)
            run.put(f"{runs.CHECKPOINTS}latest.json", b"{}")
            split = splits.load_split(store)
            rows = intake.read_rows(store, taken.commit).to_pylist()
            golden = {splits.query_key(row["query"]) for row in rows if row["kind"] == "golden"}
            train = [row["query"] for row in rows if row["kind"] == "pair" and split.side(row["query"]) == "train"]
            train = [query for query in train if splits.query_key(query) not in golden]
            with self._at_once():
                weights = len(train) if self.focus == "all" else self.random.randrange(4)
                version = self._publish(store, weights % 4)
                self.in_use[run_id] = version  # it is young until the run's folder names it
                try:
                    for _ in range(self.random.choice((0, 60)) if self.focus == "retention" else 0):
                        self.crowd.turn()
                    run.put(runs.CANDIDATE.name, _candidate(version, taken.commit))
                except BaseException:
                    del self.in_use[run_id]
                    raise
            self.trained[run_id] = set(train)
        else:
            version = candidate.version
            if run_id not in self.over:  # a run that came to a verdict, and is made again, uses what is still there
                self.in_use[run_id] = version
        for _ in range(self.random.choice((0, 0, 60) if self.focus == "all" else (0, 100))):
            self.crowd.turn()  # it trains, and is scored
        reasons, verdict = ["simulated"], "held"
        after = begun.version
        if promotes:
            words = {"who": "night", "reason": "simulated", "announce": self._announce}
            with self._at_once():
                change, why = night.promote(store, run_id, Model(version=version), begun.etag, **words)  # type: ignore[arg-type]
            reasons.append(why)
            if change is not None:
                verdict, after = "promoted", change.version
        self._conclude(store, run_id, taken.commit, verdict, begun.version, after)
        if self.random.random() < 0.5:
            night.retire(store, keep=1, ledger_entries=1)

    def _publish(self, store: Store, weights: int) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return registry.publish(store, model_folder(Path(folder), b"%d" % weights), DESCRIPTION)

    def _break_off(self, store: Store, run_id: str) -> None:
        serves, promoted = night.stands(store, run_id)
        taken = Run(store, run_id).find(runs.TAKEN)
        verdict = "failed" if promoted is None else "promoted"
        self._conclude(store, run_id, taken.commit if taken else 0, verdict, None, serves)

    def _conclude(self, store: Store, run_id: str, commit: int, verdict: Any, before: Any, after: Any) -> None:
        if verdict != "failed":
            self.training.discard(run_id)
        outcome = Outcome(run_id=run_id, verdict=verdict, reasons=["simulated"], commit=commit)
        night.conclude(store, outcome.model_copy(update={"production_before": before, "production_after": after}))
        if verdict != "failed":
            self.in_use.pop(run_id, None)

    def _person(self) -> None:
        """Rolls back and releases, as `ratchet` and the flow do."""
        for number in range(self.random.choice((1, 2, 3))):
            run_id = f"20261120T0{number}0000Z-{self.random.randrange(1 << 32):08x}"
            target = self.random.choice((None, None, "base"))
            act = (
                self._release if self.random.random() < 0.3 else lambda s, r=run_id, t=target: self._roll_back(s, r, t)
            )
            self._insist(act)

    def _roll_back(self, store: Store, run_id: str, target: str | None) -> None:
        asked = Run(store, run_id).once(runs.ROLLBACK, lambda: Asked(night.leaving(store)))
        words = {"run_id": run_id, "who": "person", "reason": "simulated"}
        with self._at_once():
            registry.rollback(store, target, leaving=asked.leaving, announce=self._announce, **words)

    def _release(self, store: Store) -> None:
        for one in registry.held(store)[:1]:
            registry.release(store, one.version, who="person", reason="simulated")

    def _retirer(self) -> None:
        for _ in range(self.random.choice((1, 2, 3))):
            self._insist(lambda store: night.retire(store, keep=1, ledger_entries=1))

    def _eraser(self) -> None:
        """Forgets one text that was uploaded."""
        for _ in range(self.random.randrange(5)):
            self.crowd.turn()
        texts = [query for states in self.uploads.values() for rows in states for query, _ in rows]
        if not texts:
            return
        text = self.random.choice(texts)
        self.forgotten.add(text)

        def forget(store: Store) -> None:
            """As `ratchet forget` does: erased is what is no longer found after it was carried out."""
            wanted = erasure.select(store, query=text)
            plan = erasure.find(store, wanted)
            if plan:
                erasure.carry_out(store, wanted, plan)
                if erasure.find(store, wanted):
                    raise StoreError("something was written meanwhile")
                self.erased.add(text)

        self._insist(forget)

    def _watch(self) -> None:
        """Takes in what is new as the hourly watch does: unlike a night, from recent partitions alone where it can."""

        def take_in(store: Store) -> None:
            before = self._known(store)
            self._check_rows(store, fresh.take_in(store, "the watch", LIMITS), before)

        for _ in range(self.random.choice((2, 4, 6))):
            for _ in range(self.random.randrange(20)):
                self.crowd.turn()
            self._insist(take_in)

    def _known(self, store: Store) -> dict[str, Stored]:
        """Objects that the log holds as they are now."""
        known = commit_log.load(store).objects
        return {key: self.server.objects[key] for key, live in known.items() if self._is_there(key, live.etag)}

    def _time(self) -> None:
        """Days pass, but not within what takes less than a day."""
        for _ in range(3):
            for _ in range(self.random.randrange(60)):
                self.crowd.turn()
            if not self.critical and not self.crowd.hurried:
                self.server.now += timedelta(hours=self.random.choice((1, 30, 50)))

    def _seconds(self) -> float:
        """A machine's clock, which goes on while it sleeps. The request that follows arrives within half a day."""
        self.crowd.hurry()
        return (self.server.now - BEGINNING).total_seconds()

    def _announce(self, change: Change) -> None:
        self.told.append(change.promotion)

    # --- what must stay true, at every request --------------------------------------------------------------------

    def _put(self, key: str, before: Stored | None, stored: Stored) -> None:
        if key.startswith(("pairs/", "golden/")):
            self.uploads.setdefault(key, []).append(_rows(stored.body))
        elif key.endswith("/outcome.json") and json.loads(stored.body)["verdict"] != "failed":
            run = key.split("/")[1]
            self.over.add(run)
            self.in_use.pop(run, None)
        elif key == registry.POINTER:
            self._moved(before, stored)
        elif key.startswith(_LEDGER):
            self._demand(before is None or before.body == stored.body, f"{key} was written twice")
            change = Change.model_validate_json(stored.body)
            self._demand(change.promotion in self.told, f"{key} was written before the change was announced")
        elif key.startswith("log/") and before is not None and not self.forgotten:
            self._demand(before.body == stored.body, f"{key} was written twice")

    def _moved(self, before: Stored | None, stored: Stored) -> None:
        """Production changes: by one, over what was settled, to a version that is whole and not held."""
        change = Change.model_validate_json(stored.body)
        last = Change.model_validate_json(before.body) if before else None
        if last is not None and before is not None:
            if last.body() == change.body():
                return  # the same request, made again
            copy = self.server.objects.get(f"{_LEDGER}{last.promotion:012d}.json")
            self._demand(copy is not None and copy.body == before.body, f"change {last.promotion} left no entry")
        self._demand(change.promotion == (last.promotion if last else 0) + 1, "the number of the change")
        self._demand(change.previous == (last.version if last else None), "what served before")
        ledger = [*self._ledger(), *([last] if last else [])]
        self._demand(
            all((one.run_id, one.action) != (change.run_id, change.action) for one in ledger),
            f"run {change.run_id} made two changes",
        )
        if change.version is not None:
            self._demand(self._is_whole(change.version), f"version {change.version} serves and is not whole")
        if change.action == "promotion":
            self._demand(not self._is_held(str(change.version), ledger), f"version {change.version} is held")

    def _ledger(self) -> list[Change]:
        keys = sorted(key for key in self.server.objects if key.startswith(_LEDGER))
        changes = {c.promotion: c for c in (Change.model_validate_json(self.server.objects[k].body) for k in keys)}
        return [changes[number] for number in sorted(changes)]

    def _is_held(self, version: str, ledger: list[Change]) -> bool:
        """Whether a rollback left a version that nobody released, by a count of its own: a replay of the ledger."""
        held: dict[str, str] = {}
        served: list[str | None] = [None]
        for change in ledger:
            if change.action == "rollback":
                back = len(served) - 1 - served[::-1].index(change.version)
                held |= {str(v): f"{change.promotion:012d}" for v in served[back + 1 :] if v}
            if change.version is not None:
                held.pop(change.version, None)
            served.append(change.version)
        return version in held and f"releases/{held[version]}-{version}.json" not in self.server.objects

    def _is_whole(self, version: str) -> bool:
        manifest = self.server.objects.get(f"models/{version}/manifest.json")
        files = json.loads(manifest.body)["files"] if manifest else {"no manifest": {}}
        return all(f"models/{version}/{path}" in self.server.objects for path in files)

    def _delete(self, key: str) -> None:
        if key.startswith("models/") and not key.endswith("RETIRED"):
            version = key.split("/")[1]
            pointer = self.server.objects.get(registry.POINTER)
            serves = json.loads(pointer.body)["version"] if pointer else None
            self._demand(version != serves, f"{key} was deleted, and serves")
            self._demand(version not in self.in_use.values(), f"{key} was deleted, and a night uses it")
        if "/checkpoints/" in key:
            run = key.split("/")[1]
            self._demand(run not in self.training, f"{key} was deleted, and the run is under way")
        protected = ("log/", _LEDGER, "releases/", "split.json", registry.POINTER)
        self._demand(not key.startswith(protected), f"{key} was deleted")

    def _is_there(self, key: str, etag: str) -> bool:
        return key in self.server.objects and self.server.objects[key].etag == etag

    def _check_rows(self, store: Store, commit: int, known: dict[str, Stored] | None = None) -> None:
        """The rows of a commit: of each object one whole state that it had, each row once.

        None is missing of an object that was known before, and stayed as it was.
        """
        found: dict[str, list[tuple[str, int]]] = {}
        for row in intake.read_rows(store, commit).to_pylist():
            found.setdefault(row["object"], []).append((row["query"], row["line"]))
        for key, rows in found.items():
            states = self.uploads.get(key, [])
            without = [[row for row in state if row[0] not in self.forgotten] for state in states]
            kept = [row for row in rows if row[0] not in self.forgotten]
            whole = any(sorted(kept) == sorted(state) for state in without)
            self._demand(whole and len(set(rows)) == len(rows), f"{key} at commit {commit} has the rows {rows}")
        for key, stored in (known or {}).items():
            rows = [row for row in _rows(stored.body) if row[0] not in self.forgotten]
            lost = rows and key not in found and self.server.objects.get(key) is stored
            self._demand(not lost, f"{key} stayed as it was, and commit {commit} has no rows of it")

    # --- what must be true in the end -----------------------------------------------------------------------------

    def _settle(self) -> None:
        """Nothing fails any more and nobody else acts: everything is completed, and must add up."""
        store = self._store(Process(self.crowd))
        registry.settle(store, self._announce)
        self._check_ledger(store)
        taken = intake.take_in(store, writer="the end", limits=LIMITS, full=True)
        self._check_rows(store, taken.commit)
        self._check_live(store, taken.commit)
        self._check_split(store)
        self._check_outcomes(store)

    def _check_ledger(self, store: Store) -> None:
        changes = registry.history(store)
        self._demand([c.promotion for c in changes] == list(range(1, len(changes) + 1)), "the ledger has a gap")
        self._demand(sorted(set(self.told)) == [c.promotion for c in changes], "a change was not announced")
        production = registry.read_production(store)
        if production is not None and production.version is not None:
            registry.verify(store, production.version)

    def _check_live(self, store: Store, commit: int) -> None:
        """The rows are those of the objects that are there, and so are the rejected ones."""
        found = sorted(
            (row["object"], row["query"], row["line"]) for row in intake.read_rows(store, commit).to_pylist()
        )
        live = {key: one.body for key, one in self.server.objects.items() if key.startswith(("pairs/", "golden/"))}
        wanted = sorted((key, query, line) for key, body in live.items() for query, line in _rows(body))
        self._demand(found == wanted, f"rows {found}, objects {wanted}")
        broken = sum(line.startswith(b"broken") for body in live.values() for line in body.splitlines())
        self._demand(len(list(intake.quarantined(store))) == broken, "the rejected rows are not those of the objects")
        entries = commit_log.read(store, range(1, commit + 1))
        held = {row["query"] for one in entries if one.batch for row in _table(self.server.objects[one.batch].body)}
        self._demand(not held & self.erased, f"{held & self.erased} was erased, and a batch holds it")

    def _check_split(self, store: Store) -> None:
        """No candidate was trained on a query that is tested on."""
        split = splits.load_split(store)
        for run, queries in self.trained.items():
            tested = [query for query in queries if split.side(query) != "train"]
            self._demand(not tested, f"run {run} trained on {tested}, which are tested on")

    def _check_outcomes(self, store: Store) -> None:
        """An outcome says promoted where the ledger does, and names the version that the run promoted."""
        made = {c.run_id: c.version for c in registry.history(store) if c.action == "promotion"}
        for run in runs.backwards(store):
            outcome = run.outcome
            if outcome is not None:
                self._demand(
                    (outcome.verdict == "promoted") == (run.run_id in made),
                    f"run {run.run_id} says {outcome.verdict}, and promoted {made.get(run.run_id)}",
                )

    def _demand(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(f"seed {self.seed}: {what}")


def _rows(body: bytes) -> list[tuple[str, int]]:
    """Query and line of the rows of an upload."""
    lines = enumerate(body.splitlines(), 1)
    return [(json.loads(text)["query"], line) for line, text in lines if text.startswith(b"{")]


def _table(batch: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(batch)).to_pylist()
    return rows


@functools.lru_cache(512)
def _parsed(body: bytes, schema: pa.Schema | None) -> pa.Table:
    columns = None if schema is None else schema.names
    return pq.ParquetFile(pa.BufferReader(body)).read(columns, use_threads=False)


def _read_table(source: Any, schema: pa.Schema | None = None) -> pa.Table:
    """Parquet, without the threads that make it slow for a few rows, and each batch once."""
    return _parsed(source.read(), schema)


def _candidate(version: str, commit: int) -> bytes:
    trained = material("held").training
    assert trained is not None
    return to_json({**vars(trained), "version": version, "commit": commit, "base": "b", "started_why": "why"})


class _Inline:
    """A pool of threads that does everything at once in the caller's: so one actor is one thread."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, call: Callable[..., Any], *items: Any) -> Iterator[Any]:
        return iter([call(*one) for one in zip(*items, strict=False)])

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Any:
        value = call(*arguments)
        return SimpleNamespace(result=lambda: value)

    def shutdown(self, **_: object) -> None:
        pass


_POOLS = (
    *("tasks.intake.commit_log", "tasks.intake.listing", "tasks.intake.read", "tasks.intake.take"),
    *("tasks.registry.ledger", "tasks.registry.production"),
)


_CLOCKS = ("intake.batch", "intake.take", "erasure.forget")


@contextmanager
def _deterministic(source: random.Random) -> Iterator[None]:
    """Threads, waits and random names as the seed has them; reports are left out."""
    names = random.Random(source.random())
    texts = {"html": lambda *_: "", "markdown": lambda *_: "", "charts_of": lambda *_: []}
    with mock.patch.multiple("tasks.night.concluding.report", **texts):
        patches = [mock.patch(f"{module}.ThreadPoolExecutor", _Inline) for module in _POOLS]
        patches += [
            mock.patch("secrets.token_hex", lambda size=16: f"{names.getrandbits(8 * size):0{2 * size}x}"),
            mock.patch("tasks.storage.time", SimpleNamespace(sleep=lambda _: None)),
            mock.patch("tasks.night.concluding.material.gather", return_value=None),
            mock.patch("pyarrow.parquet.read_table", _read_table),
            mock.patch("tasks.intake.listing._tomorrow", return_value="dt=2026-11-02"),
            *(mock.patch(f"tasks.{module}.now", return_value="now") for module in _CLOCKS),
            mock.patch("tempfile.tempdir", "/dev/shm" if os.access("/dev/shm", os.W_OK) else None),  # noqa: S108
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


def simulate(seed: int) -> World:
    """Run the schedule of one seed; raises Violation."""
    world = World(seed)
    world.run()
    return world


def digest(world: World) -> str:
    """A hash of all that is in the store at the end: the same for the same seed."""
    lines = (f"{key} {stored.etag} {stored.modified}" for key, stored in sorted(world.server.objects.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
