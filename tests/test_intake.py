"""Intake on a real S3 server: every row exactly once, whatever crashes, races or is overwritten meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson
import pytest

from tasks import night
from tasks.config import Limits
from tasks.intake import ROWS, LogError, commit_log, counts, decisions, new_pairs, quarantined, read_rows, take, take_in
from tasks.storage import Blob, Entry, Store
from tests.faults import Crash, faulty, writes

SMALL = Limits(max_commit_rows=5)
"""Commits of a few rows, so that one night makes several."""


def lines(*queries: str, bad: int = 0) -> bytes:
    """JSON lines with one row per query, and lines that are none."""
    rows = [orjson.dumps({"query": query, "document": f"document of {query}"}) for query in queries]
    return b"\n".join([*rows, *(b"bad %d" % number for number in range(bad))])


def queries(store: Store, commit: int) -> list[str]:
    """The queries of all rows up to a commit, in their order."""
    return list(read_rows(store, commit)["query"].to_pylist())


def in_quarantine(store: Store) -> Counter[tuple[str, int, str]]:
    """Object, line and text of every line under quarantine/."""
    found: Counter[tuple[str, int, str]] = Counter()
    for entry in store.entries("quarantine/"):
        for line in store.get(entry.key).body.splitlines():
            row = orjson.loads(line)
            found[row["object"], row["line"], row["text"]] += 1
    return found


# --- what is new -----------------------------------------------------------------------------------------


def test_a_night_takes_what_is_new_and_only_that(store: Store) -> None:
    """First everything, then nothing, then the late object alone."""
    store.put("pairs/b.jsonl", lines("q1", "q2", bad=1))
    store.put("golden/g.jsonl", lines("g1"))
    store.put("corpus/c.jsonl", b'{"text": "further"}')
    first = take_in(store, writer="run-1")
    assert (first.commit, first.new_commits, first.accepted, first.rejected) == (1, (1,), 2, 1)
    again = take_in(store, writer="run-2")
    assert (again.commit, again.new_commits, again.accepted, again.rejected) == (1, (), 0, 0)
    store.put("pairs/a.jsonl", lines("q0"))
    late = take_in(store, writer="run-3")
    assert (late.commit, late.new_commits, late.accepted) == (2, (2,), 1)
    assert queries(store, 2) == [None, "g1", "q1", "q2", "q0"]
    assert counts(store, 1) == {"accepted": 2, "rejected": 1, "golden": 1, "corpus": 1}
    assert counts(store, 2) == {"accepted": 3, "rejected": 1, "golden": 1, "corpus": 1}
    assert [new_pairs(store, since, 2) for since in (0, 1, 2)] == [3, 1, 0]


def test_a_commit_says_who_took_what_and_where_it_is(store: Store) -> None:
    """The entry names writer, time, ETags, counts, batch and quarantine; the batch is named by its content."""
    etag = store.put("pairs/a.jsonl", lines("q1", "q2", bad=1))
    before = datetime.now(UTC).replace(microsecond=0)
    take_in(store, writer="run-1")
    entry = orjson.loads(store.get("log/000000000001.json").body)
    assert entry["objects"] == [{"key": "pairs/a.jsonl", "etag": etag, "accepted": 2, "rejected": 1}]
    assert (entry["commit"], entry["writer"], entry["accepted"], entry["rejected"]) == (1, "run-1", 2, 1)
    assert entry["full_listing"] is True
    assert before <= datetime.fromisoformat(entry["at"]) <= datetime.now(UTC)
    assert entry["quarantine"] == "quarantine/000000000001.jsonl"
    assert entry["batch"] == f"batches/{hashlib.sha256(store.get(entry['batch']).body).hexdigest()}.parquet"
    row = {"object": "pairs/a.jsonl", "line": 3, "text": "bad 0"}
    (stored,) = store.get(entry["quarantine"]).body.splitlines()
    assert row.items() <= orjson.loads(stored).items()


def test_an_overwritten_object_is_replaced_in_its_place(store: Store) -> None:
    """Newer rows stand where the older ones stood, and carry the commit that took them; the past stays readable."""
    for name in "abc":
        store.put(f"pairs/{name}.jsonl", lines(f"{name}1", f"{name}2"))
    take_in(store, writer="run-1")
    store.put("pairs/b.jsonl", lines("b3", "b4", "b5"))
    store.put("pairs/0.jsonl", lines("first by name, last by arrival"))
    take_in(store, writer="run-2")
    assert queries(store, 1) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    rows = read_rows(store, 2)
    assert rows["query"].to_pylist() == ["a1", "a2", "b3", "b4", "b5", "c1", "c2", "first by name, last by arrival"]
    assert rows["commit"].to_pylist() == [1, 1, 2, 2, 2, 1, 1, 2]
    assert rows["line"].to_pylist() == [1, 2, 1, 2, 3, 1, 2, 1]
    assert rows.schema == ROWS


def test_an_object_that_returns_to_an_older_state_is_taken_again(store: Store) -> None:
    """What counts is the state the log holds now, not every state it ever held."""
    for body in (lines("old"), lines("new"), lines("old")):
        store.put("pairs/a.jsonl", body)
        take_in(store, writer="run")
    assert [queries(store, commit) for commit in (1, 2, 3)] == [["old"], ["new"], ["old"]]


def test_a_corrected_upload_leaves_the_list_of_what_is_wrong(store: Store) -> None:
    """The list shows what there is to mend now; quarantine keeps what was."""
    store.put("pairs/a.jsonl", lines("q1", bad=2))
    store.put("pairs/b.jsonl", lines(bad=1))
    take_in(store, writer="run-1")
    assert [(row.object, row.line) for row in quarantined(store)] == [
        ("pairs/a.jsonl", 2),
        ("pairs/a.jsonl", 3),
        ("pairs/b.jsonl", 1),
    ]
    store.put("pairs/a.jsonl", lines("q1", "q2"))
    take_in(store, writer="run-2")
    assert [row.object for row in quarantined(store)] == ["pairs/b.jsonl"]
    assert counts(store, 2)["rejected"] == 1
    assert sum(in_quarantine(store).values()) == 3


def test_objects_without_rows_are_named_once(store: Store) -> None:
    """Empty objects, unknown endings and too large ones: a record each on the first night, and silence after it."""
    store.put("pairs/empty.jsonl", b"")
    store.put("pairs/notes.txt", b"not data")
    store.put("golden/large.jsonl", lines("q" * 100))
    store.put("pairs/folder/", b"")
    limits = Limits(max_object_bytes=100)
    assert take_in(store, writer="run-1", limits=limits).commit == 1
    assert take_in(store, writer="run-2", limits=limits).new_commits == ()
    assert [row.reason for row in quarantined(store)] == [
        "larger than 100 bytes: write several smaller ones, or raise limits.max_object_bytes",
        "empty",
        "unknown kind of file: the name must end in .jsonl, .ndjson, .json, .csv, .tsv, each also with .gz or .zst, or "
        "in .parquet",
    ]
    assert read_rows(store, 1).num_rows == 0


def test_an_object_that_changes_or_goes_while_it_is_read_is_left_for_the_next_night(store: Store) -> None:
    """What was listed is no longer there: nothing of it is committed, and the next call takes what is."""
    for name in "abc":
        store.put(f"pairs/{name}.jsonl", lines(name))

    class Disturbed(Store):
        def entries(self, prefix: str, *, start_after: str | None = None) -> Iterator[Entry]:
            yield from super().entries(prefix, start_after=start_after)
            if prefix == "pairs/":
                store.put("pairs/b.jsonl", lines("b changed"))
                store.delete(["pairs/c.jsonl"])

    assert take_in(Disturbed(store.url, store._client), writer="run-1").accepted == 1
    assert queries(store, 1) == ["a"]
    assert take_in(store, writer="run-2").accepted == 1
    assert queries(store, 2) == ["a", "b changed"]


def test_an_object_that_a_listing_names_twice_is_taken_once(store: Store) -> None:
    """A server may repeat a key when objects come and go between the pages of a listing."""
    store.put("pairs/a.jsonl", lines("q1"))

    class Stammering(Store):
        def entries(self, prefix: str, *, start_after: str | None = None) -> Iterator[Entry]:
            for entry in super().entries(prefix, start_after=start_after):
                yield entry
                yield entry

    assert take_in(Stammering(store.url, store._client), writer="run").accepted == 1
    assert queries(store, 1) == ["q1"]


def test_an_empty_store_has_no_commit(store: Store) -> None:
    """Commit 0 is the state before the first one."""
    assert take_in(store, writer="run").commit == 0
    assert read_rows(store, 0).num_rows == 0
    assert read_rows(store, 0).schema == ROWS
    assert list(quarantined(store)) == []
    assert sum(counts(store, 0).values()) == 0


# --- size ------------------------------------------------------------------------------------------------


def test_a_large_night_makes_several_commits(store: Store) -> None:
    """A commit is closed at its rows or its bytes; progress counts objects."""
    for number in range(8):
        store.put(f"pairs/{number}.jsonl", lines(*(f"q{number}-{i}" for i in range(3))))
    seen: list[tuple[int, int]] = []
    found = take_in(store, writer="run", limits=SMALL, on_progress=lambda done, total: seen.append((done, total)))
    assert found.new_commits == (1, 2, 3, 4)
    assert found.accepted == 24
    assert seen == [(done, 8) for done in range(1, 9)]
    assert queries(store, 4) == [f"q{number}-{i}" for number in range(8) for i in range(3)]
    store.put("pairs/9.jsonl", lines("x"))
    store.put("pairs/91.jsonl", lines("y"))
    assert take_in(store, writer="run", limits=Limits(max_commit_bytes=1)).new_commits == (5, 6)


class Shelf(Store):
    """Objects that weigh nothing: counts the bytes that were asked for and are not parsed yet."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes, self.held, self.most = sizes, 0, 0
        self.lock = threading.Lock()

    def get_listed(self, entry: Entry) -> Blob:
        """Hand out an object."""
        with self.lock:
            self.held += entry.size
            self.most = max(self.most, self.held)
        return Blob(entry.key.encode(), entry.etag)

    def parsed(self, key: str) -> None:
        """Take an object back."""
        with self.lock:
            self.held -= self.sizes[key]


def test_reading_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many bytes are read and not yet parsed, however many objects there are; a larger object is alone."""
    monkeypatch.setattr("tasks.intake.take.AHEAD_BYTES", 100)
    sizes = {f"pairs/{n}.csv": size for n, size in enumerate([10] * 50 + [500] + [40] * 20)}
    shelf = Shelf(sizes)
    entries = [Entry(key, "", size, datetime.now(UTC)) for key, size in sizes.items()]
    order = []
    for entry, body in take._bodies(shelf, entries, Limits()):
        assert body == entry.key.encode()
        order.append(entry.key)
        shelf.parsed(entry.key)
    assert order == list(sizes)
    assert shelf.most == 500


def test_equal_rows_are_equal_bytes(bucket: Store) -> None:
    """Two stores with the same objects have the same batches, and the same rows in the same order."""
    stores = [Store(f"s3://ratchet/{uuid.uuid4().hex}", bucket._client) for _ in range(2)]
    for each in stores:
        for number in random.Random(each.url).sample(range(20), 20):  # the order of arrival must not matter
            each.put(f"pairs/{number}.jsonl", lines(f"q{number}", f"r{number}", bad=number % 2))
        take_in(each, writer=each.url)
    first, second = ({entry.key for entry in each.entries("batches/")} for each in stores)
    assert first == second
    assert read_rows(stores[0], 1).equals(read_rows(stores[1], 1))


# --- crashes ---------------------------------------------------------------------------------------------


def crowd(store: Store) -> tuple[list[str], Counter[tuple[str, int, str]]]:
    """Put seven objects, two of them overwritten after a first night; returns what must be there after the second."""
    for number in range(4):
        store.put(f"pairs/{number}.jsonl", lines(f"old{number}-a", f"old{number}-b", bad=number % 2))
    take_in(store, writer="before", limits=SMALL)
    rejected = Counter({("pairs/1.jsonl", 3, "bad 0"): 1, ("pairs/3.jsonl", 3, "bad 0"): 1})
    for number in (1, 2):
        store.put(f"pairs/{number}.jsonl", lines(f"new{number}", bad=2))
        rejected.update({(f"pairs/{number}.jsonl", line, f"bad {line - 2}"): 1 for line in (2, 3)})
    for number in range(4, 7):
        store.put(f"pairs/{number}.jsonl", lines(f"q{number}-a", f"q{number}-b", bad=1))
        rejected[f"pairs/{number}.jsonl", 3, "bad 0"] = 1
    kept = ["old0-a", "old0-b", "new1", "new2", "old3-a", "old3-b"]
    return kept + [f"q{number}-{part}" for number in range(4, 7) for part in "ab"], rejected


def crowd_writes(bucket: Store) -> int:
    """How many writes the second night of `crowd` makes when nothing fails."""
    whole = Store(f"s3://ratchet/{uuid.uuid4().hex}", bucket._client)
    crowd(whole)
    counted = faulty(whole, at=0)
    take_in(counted, writer="counted", limits=SMALL)
    return writes(counted)


def test_a_crash_at_any_write_loses_and_doubles_nothing(bucket: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die before and after each write of a night, run again: every row once, every rejected row in quarantine once."""
    monkeypatch.setattr(commit_log, "CHECKPOINT_COMMITS", 2)
    total = crowd_writes(bucket)
    assert total >= 12  # three commits of a batch, rejected rows, an entry and a quarantine file; a checkpoint
    for at in range(1, total + 1):
        for when in ("before", "after"):
            store = Store(f"s3://ratchet/{uuid.uuid4().hex}", bucket._client)
            wanted, rejected = crowd(store)
            with pytest.raises(Crash):
                take_in(faulty(store, at, when), writer="dies", limits=SMALL)
            found = take_in(store, writer="again", limits=SMALL)
            rows = read_rows(store, found.commit)
            assert sorted(rows["query"].to_pylist()) == sorted(wanted), (at, when)
            assert in_quarantine(store) == rejected, (at, when)
            assert counts(store, found.commit)["accepted"] == len(wanted)
            again = take_in(store, writer="once more", limits=SMALL)
            assert again.new_commits == ()
            assert read_rows(store, again.commit).equals(rows)


def test_what_a_crash_left_without_quarantine_is_completed_before_the_next_commit(store: Store) -> None:
    """The file of the last commit may be missing; whoever comes next writes it, from what the commit names."""
    store.put("pairs/a.jsonl", lines("q1", bad=2))
    dying = faulty(store, at=5)  # split, batch, rejected rows, entry, quarantine
    with pytest.raises(Crash):
        take_in(dying, writer="dies")
    assert commit_log.load(store).commit == 1
    assert sum(in_quarantine(store).values()) == 0
    assert len(list(quarantined(store))) == 2
    assert sum(in_quarantine(store).values()) == 2


# --- races -----------------------------------------------------------------------------------------------


@dataclass
class Uploads:
    """Objects put while intakes run, and what each state of each object holds."""

    store: Store
    seed: int
    states: dict[str, list[str]] = field(default_factory=dict)
    """ETags by key, in the order of uploading."""
    rows: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    """Queries, and texts of the rejected lines, by ETag."""

    def put(self, key: str, chance: random.Random) -> None:
        """Put a new state of an object."""
        name = f"{key} {len(self.states.get(key, []))} {self.seed}"
        good = [f"{name} {number}" for number in range(chance.randrange(4))]
        bad = [f"bad {name} {number}" for number in range(chance.randrange(3))]
        blank = b"\n" * (len(self.states.get(key, [])) + 1)  # empty objects differ too, so that their ETags do
        etag = self.store.put(key, b"\n".join([lines(*good), *(text.encode() for text in bad)]) + blank)
        self.states.setdefault(key, []).append(etag)
        self.rows[etag] = good, bad if good or bad else [""]

    def verify(self, commit: int) -> None:
        """Compare log, rows and quarantine with what was uploaded."""
        entries = commit_log.read(self.store, range(1, commit + 1))
        taken: dict[str, list[str]] = {}
        rejected: Counter[tuple[int, str, str]] = Counter()
        for entry in entries:
            for source in entry.objects:
                taken.setdefault(source.key, []).append(source.etag)
                good, bad = self.rows[source.etag]
                assert (source.accepted, source.rejected) == (len(good), len(bad))
                rejected.update((entry.commit, source.key, text) for text in bad)
        for key, states in self.states.items():
            places = [states.index(etag) for etag in taken[key]]
            assert places == sorted(set(places)), f"{key}: taken twice, or an older state after a newer one"
            assert places[-1] == len(states) - 1, f"{key}: the last state is missing"
        last = [self.rows[states[-1]][0] for states in self.states.values()]
        assert Counter(queries(self.store, commit)) == Counter(itertools.chain(*last))
        assert Counter(self._in_quarantine()) == rejected

    def _in_quarantine(self) -> Iterator[tuple[int, str, str]]:
        for found in self.store.entries("quarantine/"):
            for line in self.store.get(found.key).body.splitlines():
                row = orjson.loads(line)
                yield int(found.key[-18:-6]), row["object"], row["text"]


def race(store: Store, seed: int) -> None:
    """Four intakes, some of which die, against uploads, overwrites and late arrivals; then compare."""
    chance = random.Random(seed)
    uploads = Uploads(store, seed)
    keys = [f"pairs/dt=2026-01-{day:02}/{number}.jsonl" for day in range(1, 6) for number in range(3)]
    keys.append("golden/g.jsonl")
    for key in chance.sample(keys, 8):
        uploads.put(key, chance)
    limits = Limits(max_commit_rows=chance.choice([1, 5, 100]), full_listing_below=chance.choice([0, 1000]))
    started = threading.Barrier(5)

    def write(number: int) -> None:
        own = random.Random(seed * 10 + number)
        started.wait()
        for attempt in range(3):
            dies = own.random() < 0.4
            through = faulty(store, own.randrange(1, 8), own.choice(["before", "after"])) if dies else store
            with contextlib.suppress(Crash):
                take_in(through, writer=f"run-{number}-{attempt}", limits=limits)

    def disturb() -> None:
        started.wait()
        for _ in range(12):
            uploads.put(chance.choice(keys), chance)

    with ThreadPoolExecutor(5) as pool:
        for future in [pool.submit(disturb), *(pool.submit(write, number) for number in range(4))]:
            future.result()
    take_in(store, writer="last", limits=limits)
    last = take_in(store, writer="last of all", limits=limits)
    uploads.verify(last.commit)


@pytest.mark.parametrize("seed", range(3))
def test_racing_intakes_take_every_row_once(store: Store, seed: int) -> None:
    """Under races, crashes, overwrites and late arrivals."""
    race(store, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 33))
def test_racing_intakes_take_every_row_once_in_any_schedule(store: Store, seed: int) -> None:
    """The same in thirty more schedules."""
    race(store, seed)


def test_of_racing_intakes_one_takes_each_object(store: Store) -> None:
    """What they report adds up to what there is: nobody counts rows that another committed."""
    for number in range(12):
        store.put(f"pairs/{number:02}.jsonl", lines(f"q{number}", bad=1))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: take_in(store, writer=f"run-{n}", limits=SMALL), range(4)))
    assert sum(intake.accepted for intake in found) == 12
    assert sum(intake.rejected for intake in found) == 12
    head = max(intake.commit for intake in found)
    assert sorted(number for intake in found for number in intake.new_commits) == list(range(1, head + 1))


# --- listing ---------------------------------------------------------------------------------------------


class Listed(Store):
    """A store that notes which prefixes were listed as a whole."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.url, store._client)
        self.prefixes: list[str] = []

    def entries(self, prefix: str, *, start_after: str | None = None) -> Iterator[Entry]:
        """List, and take a note."""
        if prefix.startswith("pairs/"):
            self.prefixes.append(prefix)
        return super().entries(prefix, start_after=start_after)


PARTITIONED = Limits(full_listing_below=0, full_listing_commits=3)


def test_recent_partitions_are_listed_and_a_late_object_is_found_at_last(store: Store) -> None:
    """Latest and unseen partitions every night; everything after three commits, or when nothing new was found."""
    for day in range(1, 7):
        store.put(f"pairs/dt=2026-01-{day:02}/a.jsonl", lines(f"day {day}"))
    store.put("pairs/loose.jsonl", lines("loose"))
    store.put("pairs/other/a.jsonl", lines("other"))
    take_in(store, writer="run-1", limits=PARTITIONED)

    listed = Listed(store)
    store.put("pairs/dt=2026-01-01/late.jsonl", lines("late"))
    store.put("pairs/dt=2026-01-07/a.jsonl", lines("day 7"))
    store.put("pairs/dt=2025-12-31/a.jsonl", lines("an older day, not seen before"))
    store.put("pairs/other/b.jsonl", lines("other b"))
    store.put("pairs/loose.jsonl", lines("loose again"))
    assert take_in(listed, writer="run-2", limits=PARTITIONED).accepted == 4
    recent = ["dt=2025-12-31", "dt=2026-01-05", "dt=2026-01-06", "dt=2026-01-07", "other"]
    assert sorted(listed.prefixes) == [f"pairs/{name}/" for name in recent]
    assert orjson.loads(store.get("log/000000000002.json").body)["full_listing"] is False

    assert take_in(listed, writer="run-3", limits=PARTITIONED).accepted == 1  # nothing recent: look everywhere
    assert listed.prefixes[-1] == "pairs/"
    assert "late" in queries(store, 3)
    assert orjson.loads(store.get("log/000000000003.json").body)["full_listing"] is True


def test_everything_is_listed_after_some_commits_even_when_recent_partitions_are_busy(store: Store) -> None:
    """What is late in an old partition waits for three commits at most."""
    for day in range(1, 7):
        store.put(f"pairs/dt=2026-01-{day:02}/a.jsonl", lines(f"day {day}"))
    take_in(store, writer="run", limits=PARTITIONED)
    store.put("pairs/dt=2026-01-01/late.jsonl", lines("late"))
    waited = 0
    while "late" not in queries(store, commit_log.load(store).commit):
        waited += 1
        store.put(f"pairs/dt=2026-01-06/busy{waited}.jsonl", lines(f"busy {waited}"))
        take_in(store, writer="run", limits=PARTITIONED)
    assert waited == 3


# --- the log ---------------------------------------------------------------------------------------------


def test_the_log_is_read_from_its_last_checkpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a checkpoint few entries are read; damaged, deleted or of another log, it is as if there were none."""
    monkeypatch.setattr(commit_log, "CHECKPOINT_COMMITS", 3)
    for number in range(8):
        store.put(f"pairs/{number}.jsonl", lines(f"q{number}", bad=1))
        take_in(store, writer="run")
    whole = commit_log.load(store)
    assert whole.read < 3
    kept = [entry.key for entry in store.entries("cache/log/")]
    assert 1 <= len(kept) <= 2

    def same(state: commit_log.State) -> bool:
        names = ("commit", "head", "full_listing", "objects", "batches", "rejected_rows")
        return all(getattr(state, name) == getattr(whole, name) for name in names)

    for key in kept:
        store.put(key, b"damaged")
    assert same(commit_log.load(store))
    assert commit_log.load(store).read == 8
    store.delete(kept)
    assert same(commit_log.load(store))
    assert take_in(store, writer="run").commit == 8
    assert [entry.key[:22] for entry in store.entries("cache/log/")] == ["cache/log/000000000008"]
    assert commit_log.load(store).read == 0
    assert commit_log.load(store, 5).commit == 5
    first = orjson.loads(store.get("log/000000000008.json").body)
    store.put("log/000000000008.json", orjson.dumps({**first, "writer": "another log"}))
    assert commit_log.load(store).read == 8


@pytest.mark.parametrize("damage", ["gap", "junk", "number", "batch", "missing batch"])
def test_a_damaged_log_is_an_error(store: Store, damage: str) -> None:
    """A missing or changed entry or batch stops the night; the message names the key."""
    for number in range(3):
        store.put(f"pairs/{number}.jsonl", lines(f"q{number}"))
        take_in(store, writer="run")
    key = "log/000000000002.json"
    entry = orjson.loads(store.get(key).body)
    match damage:
        case "gap":
            store.delete([key])
        case "junk":
            store.put(key, b'{"commit": 2}')
        case "number":
            store.put(key, orjson.dumps({**entry, "commit": 7}))
        case "batch":
            key = entry["batch"]
            store.put(key, b"other rows")
        case _:
            key = entry["batch"]
            store.delete([key])
    with pytest.raises(LogError, match=key):
        read_rows(store, 3)


def test_there_is_no_commit_beyond_the_last(store: Store) -> None:
    """Asking for one is an error, not an empty answer."""
    with pytest.raises(LogError, match=r"log/000000000001\.json.* does not exist"):
        read_rows(store, 1)


def test_a_night_takes_the_caps_that_it_is_given(store: Store) -> None:
    """What is too long for this night's limits is rejected by name; the rows beside it are taken in."""
    store.put(
        "pairs/a.jsonl", b'{"query": "short", "document": "text"}\n{"query": "longer than ten", "document": "text"}'
    )
    found = night.take_in(store, "run", 0, Limits(max_text_chars=10))
    assert (found.counts["accepted"], found.counts["rejected"]) == (1, 1)
    assert "10" in next(quarantined(store)).reason


def test_what_was_decided_about_columns_is_told_with_its_objects(store: Store) -> None:
    """Columns left alone and scores that are none, each once; commits before `since` are not told of again."""
    row = b'{"query": "q", "document": "d", "score": 1.0, "id": 7}\n'
    store.put("pairs/a.jsonl", row * 2)
    store.put("pairs/b.jsonl", row * 2)
    commit = take_in(store, writer="run-1").commit
    assert decisions(store, 0, commit) == [
        "Columns ignored: id (in pairs/a.jsonl and 1 more).",
        "score is 1 in every row, which is no score (in pairs/a.jsonl and 1 more).",
    ]
    assert decisions(store, commit, commit) == []
