"""The bucket is the truth: what is removed, renamed, overwritten or unreadable there, and what a night makes of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from tasks import intake, night, runs
from tasks.config import Limits, Outcome
from tasks.intake import LogError, commit_log, take_in
from tasks.intake import listing as intake_listing
from tasks.records import Taken
from tasks.runs import Run
from tasks.splits import SPLIT_KEY, SplitError, load_split
from tasks.storage import Entry, Store, StoreError
from tests.faults import Crash, faulty
from tests.memory import MemoryClient, error, memory_store

CONFIRMED = Limits(max_removed_share=1.0)


def lines(*queries: str, bad: int = 0) -> bytes:
    """JSON lines with one row per query, and lines that are none."""
    rows = [orjson.dumps({"query": query, "document": f"document of {query}"}) for query in queries]
    return b"\n".join([*rows, *(b"bad %d" % number for number in range(bad))])


def queries(store: Store, commit: int) -> list[str]:
    """The queries of all rows up to a commit, in their order."""
    return list(intake.read_rows(store, commit)["query"].to_pylist())


def fill(store: Store, *names: str, bad: int = 0) -> None:
    """An object of two rows for each name."""
    for name in names:
        store.put(f"pairs/{name}.jsonl", lines(f"{name}1", f"{name}2", bad=bad))


@pytest.fixture
def memory() -> Store:
    """A store in memory."""
    return memory_store()


# --- removals --------------------------------------------------------------------------------------------


def test_a_removed_object_takes_its_rows_along(store: Store) -> None:
    """By a commit of its own; counts and quarantine follow, the past stays readable, and it counts as a change."""
    fill(store, "a", "b", "c", bad=1)
    assert take_in(store, writer="run-1").commit == 1
    store.delete(["pairs/b.jsonl"])
    found = take_in(store, writer="run-2")
    assert (found.commit, found.new_commits, found.removed) == (2, (2,), ("pairs/b.jsonl",))
    assert queries(store, 2) == ["a1", "a2", "c1", "c2"]
    assert queries(store, 1) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert intake.counts(store, 2) == {"accepted": 4, "rejected": 2, "golden": 0, "corpus": 0}
    assert [row.object for row in intake.quarantined(store)] == ["pairs/a.jsonl", "pairs/c.jsonl"]
    assert intake.changes(store, 1, 2) == intake.Changes(new_pairs=0, removed=1)
    entry = orjson.loads(store.get("log/000000000002.json").body)
    assert (entry["removed"], entry["objects"], entry["full_listing"]) == (["pairs/b.jsonl"], [], True)
    assert take_in(store, writer="run-3").new_commits == ()


def test_an_object_that_comes_back_is_taken_again(store: Store) -> None:
    """Also with the same bytes: what counts is what the log holds now."""
    fill(store, "a", "b", "c")
    take_in(store, writer="run-1")
    store.delete(["pairs/a.jsonl"])
    take_in(store, writer="run-2")
    fill(store, "a")
    assert take_in(store, writer="run-3").accepted == 2
    assert queries(store, 3) == ["b1", "b2", "c1", "c2", "a1", "a2"]


def test_a_renamed_object_is_there_once(store: Store) -> None:
    """However many are renamed at once: their bytes are there under another name."""
    fill(store, "a", "b", "c")
    take_in(store, writer="run-1")
    for name in "abc":
        store.put(f"pairs/2026/{name}.jsonl", store.get(f"pairs/{name}.jsonl").body)
        store.delete([f"pairs/{name}.jsonl"])
    found = take_in(store, writer="run-2")
    assert found.blocked == ""
    assert sorted(queries(store, found.commit)) == ["a1", "a2", "b1", "b2", "c1", "c2"]


def test_a_folder_that_a_program_writes_anew_is_replaced(store: Store) -> None:
    """Spark's overwrite: every part goes, and as many come under new names, with a marker beside them."""
    for part in range(4):
        store.put(f"pairs/out/part-{part}-old.jsonl", lines(f"old {part}"))
    take_in(store, writer="run-1")
    for part in range(4):
        store.delete([f"pairs/out/part-{part}-old.jsonl"])
        store.put(f"pairs/out/part-{part}-new.jsonl", lines(f"new {part}"))
    store.put("pairs/out/_SUCCESS", b"")
    store.put("pairs/out/_temporary/0/part-9.jsonl", lines("half written"))
    found = take_in(store, writer="run-2")
    assert queries(store, found.commit) == [f"new {part}" for part in range(4)]
    assert found.ignored == ("pairs/out/_SUCCESS", "pairs/out/_temporary/0/part-9.jsonl")
    assert list(intake.quarantined(store)) == []


def test_side_files_that_an_older_version_took_for_data_are_dropped(memory: Store) -> None:
    """Their rejected rows could never be cleared."""
    fill(memory, "a", "b")
    memory.put("pairs/_SUCCESS", b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake_listing, "is_ignored", lambda _key: False)
        take_in(memory, writer="older")
    assert intake.counts(memory, 1)["rejected"] > 0
    found = take_in(memory, writer="run-1")
    assert found.removed == ("pairs/_SUCCESS",)
    assert intake.counts(memory, found.commit)["rejected"] == 0


def test_golden_and_corpus_are_removed_too(memory: Store) -> None:
    """Whatever the folder."""
    fill(memory, "a", "b", "c")
    memory.put("golden/g.jsonl", lines("g"))
    memory.put("corpus/c.jsonl", b'{"text": "further"}')
    take_in(memory, writer="run-1")
    memory.delete(["golden/g.jsonl", "corpus/c.jsonl"])
    found = take_in(memory, writer="run-2")
    assert set(found.removed) == {"golden/g.jsonl", "corpus/c.jsonl"}
    assert intake.counts(memory, 2) == {"accepted": 6, "rejected": 0, "golden": 0, "corpus": 0}


def test_more_than_half_of_the_objects_gone_at_once_wait_for_a_word(store: Store) -> None:
    """Nothing is taken in, not even what is new; the message says how to confirm; half is not more than half."""
    fill(store, *"abcd")
    take_in(store, writer="run-1")
    store.delete([f"pairs/{name}.jsonl" for name in "abc"])
    fill(store, "e")
    found = take_in(store, writer="run-2")
    assert (found.commit, found.new_commits, found.removed) == (1, (), ())
    assert "3 of 4 known objects are gone" in found.blocked
    assert "pairs/a.jsonl" in found.blocked
    assert "limits.max_removed_share=1" in found.blocked
    assert take_in(store, writer="run-3").blocked == found.blocked
    confirmed = take_in(store, writer="run-4", limits=CONFIRMED)
    assert confirmed.blocked == ""
    assert queries(store, confirmed.commit) == ["d1", "d2", "e1", "e2"]
    store.delete(["pairs/d.jsonl"])
    assert queries(store, take_in(store, writer="run-5").commit) == ["e1", "e2"]


def test_a_listing_that_fails_removes_nothing(memory: Store) -> None:
    """On any of its pages: the error is one of the store, and the log is as it was."""
    store = memory_store(page=2)
    fill(store, *"abcdef")
    take_in(store, writer="run-1")
    store.delete(["pairs/a.jsonl"])
    client: Any = store._client
    for failing in range(1, 6):
        calls = iter(range(1, 100))

        def listed(at: int = failing, calls: Iterator[int] = calls, **arguments: Any) -> Any:
            if "pairs/" in arguments["Prefix"] and next(calls) == at:
                raise error("InternalError", 500)
            return MemoryClient.list_objects_v2(client, **arguments)

        client.list_objects_v2 = listed
        if failing <= 3:
            with pytest.raises(StoreError):
                take_in(store, writer="run-2")
            assert commit_log.load(store).commit == 1
        del client.list_objects_v2
    assert take_in(store, writer="run-3").removed == ("pairs/a.jsonl",)


def test_an_object_that_a_listing_leaves_out_by_mistake_is_asked_for_once_more(memory: Store) -> None:
    """A server that loses sight of an object for a moment does not cost its rows."""
    fill(memory, *"abc")
    take_in(memory, writer="run-1")

    class Forgetful(Store):
        def entries(self, prefix: str, *, start_after: str | None = None) -> Iterator[Entry]:
            for entry in super().entries(prefix, start_after=start_after):
                if entry.key != "pairs/b.jsonl":
                    yield entry

    assert take_in(Forgetful(memory.url, memory._client), writer="run-2").removed == ()


def test_a_listing_of_recent_partitions_removes_nothing_and_a_full_one_does(memory: Store) -> None:
    """In a large store; a night asks for a full listing, so that it sees old partitions, the watch does not."""
    large = Limits(full_listing_below=0, full_listing_commits=100)
    for day in range(1, 8):
        memory.put(f"pairs/dt=2026-01-{day:02}/a.jsonl", lines(f"day {day}"))
    take_in(memory, writer="run-1", limits=large)
    memory.delete(["pairs/dt=2026-01-01/a.jsonl", "pairs/dt=2026-01-06/a.jsonl"])
    memory.put("pairs/dt=2026-01-02/a.jsonl", lines("day 2 corrected"))
    memory.put("pairs/dt=2026-01-07/b.jsonl", lines("more"))
    assert take_in(memory, writer="watch", limits=large).removed == ()
    found = take_in(memory, writer="night", limits=large, full=True)
    assert found.removed == ("pairs/dt=2026-01-01/a.jsonl", "pairs/dt=2026-01-06/a.jsonl")
    assert "day 2 corrected" in queries(memory, found.commit)


def test_partitions_of_the_future_do_not_hide_the_present(memory: Store) -> None:
    """However many there are, the latest days that have come are listed; the others are named."""
    large = Limits(full_listing_below=0, full_listing_commits=100)
    future = [f"dt=2999-01-0{day}" for day in range(1, 6)]
    for name in ["dt=2026-01-01", "dt=2026-01-02", "dt=2026-01-03", *future]:
        memory.put(f"pairs/{name}/a.jsonl", lines(name))
    assert take_in(memory, writer="run-1", limits=large).future == tuple(future)
    for name in ("dt=2026-01-03", "dt=2999-01-01"):
        memory.put(f"pairs/{name}/b.jsonl", lines(f"{name} again"))
    assert take_in(memory, writer="run-2", limits=large).accepted == 2


@pytest.mark.parametrize("page", [2, 1000])
@pytest.mark.parametrize("seed", range(30))
def test_a_night_has_the_rows_of_the_objects_that_are_there(seed: int, page: int) -> None:
    """Uploads, overwrites, renames, removals, re-uploads and crashes in any order: each row once, after each night."""
    schedule(memory_store(page), seed)


@pytest.mark.parametrize("seed", range(100, 103))
def test_a_night_has_the_rows_of_the_objects_that_are_there_on_a_real_server(store: Store, seed: int) -> None:
    """A few of them on SeaweedFS."""
    schedule(store, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_a_night_has_the_rows_of_the_objects_that_are_there_on_a_real_server_in_any_schedule(
    store: Store, seed: int
) -> None:
    """Thirty of them."""
    schedule(store, seed)


def schedule(store: Store, seed: int) -> None:
    """Play twelve nights with changes between them, most of which crash at some write and are run again."""
    chance = random.Random(seed)
    live: dict[str, bytes] = {}
    limits = Limits(max_commit_rows=chance.choice([1, 4, 100]), full_listing_below=chance.choice([0, 1000]))
    limits = limits.model_copy(update={"max_removed_share": 1.0})
    for number in range(8):
        for step in range(chance.randrange(1, 5)):
            disturb(store, live, chance, f"{number}-{step}")
        if chance.random() < 0.6:
            at, when = chance.randrange(1, 8), chance.choice(["before", "after"])
            try:
                take_in(faulty(store, at, when), writer="dies", limits=limits, full=True)
            except Crash:
                if chance.random() < 0.5:
                    disturb(store, live, chance, f"{number}-crash")
        found = take_in(store, writer=f"run-{number}", limits=limits, full=True)
        wanted = Counter(orjson.loads(line)["query"] for body in live.values() for line in body.splitlines())
        assert Counter(queries(store, found.commit)) == wanted, number
        assert intake.counts(store, found.commit)["accepted"] == wanted.total()
        assert take_in(store, writer="again", limits=limits, full=True).new_commits == ()


def disturb(store: Store, live: dict[str, bytes], chance: random.Random, name: str) -> None:
    """Change one thing: upload, overwrite, rename or remove an object, or bring an older state back."""
    keys = [f"pairs/dt=2026-01-0{day}/{number}.jsonl" for day in range(1, 6) for number in range(2)]
    what = chance.choice(["put", "put", "rename", "remove"])
    if what == "put" or not live:
        key = chance.choice(keys)
        body = lines(*(f"{name} {number}" for number in range(chance.randrange(1, 4))))
        if chance.random() < 0.3:
            body = lines(f"a state of {key} that comes back")
        store.put(key, body)
        live[key] = body
        return
    key = chance.choice(sorted(live))
    body = live.pop(key)
    if what == "rename":
        other = chance.choice([k for k in keys if k != key])
        store.put(other, body)
        live[other] = body
    store.delete([key])


def test_a_crash_at_any_write_of_a_removal_is_made_good(memory: Store) -> None:
    """Before and after each write of a night that removes, overwrites and adds."""
    for when in ("before", "after"):
        for at in range(1, 12):
            store = memory_store()
            fill(store, *"abcd", bad=1)
            take_in(store, writer="run-1")
            store.delete(["pairs/a.jsonl"])
            store.put("pairs/b.jsonl", lines("b3"))
            fill(store, "e", bad=1)
            try:
                take_in(faulty(store, at, when), writer="dies")
            except Crash:
                found = take_in(store, writer="again")
                assert sorted(queries(store, found.commit)) == ["b3", "c1", "c2", "d1", "d2", "e1", "e2"]
                assert len(list(intake.quarantined(store))) == 3
                continue
            assert at > 5


# --- pending ---------------------------------------------------------------------------------------------


def locked(store: Store, key: str, body: bytes) -> None:
    """Put an object that can only be read with a key of its own (SSE-C)."""
    secret = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}
    store._client.put_object(Bucket="ratchet", Key=f"{store.prefix}{key}", Body=body, **secret)


def test_an_object_that_cannot_be_read_does_not_stop_the_others(store: Store) -> None:
    """It is named with the reason, tried again by every call, and taken once it can be read."""
    fill(store, "a", "c")
    locked(store, "pairs/b.jsonl", lines("secret"))
    first = take_in(store, writer="run-1")
    assert queries(store, 1) == ["a1", "a2", "c1", "c2"]
    assert [unread.key for unread in first.pending] == ["pairs/b.jsonl"]
    assert "cannot read" in first.pending[0].reason
    again = take_in(store, writer="run-2")
    assert (again.new_commits, again.pending) == ((), first.pending)
    fill(store, "b")
    last = take_in(store, writer="run-3")
    assert last.pending == ()
    assert queries(store, 2) == ["a1", "a2", "c1", "c2", "b1", "b2"]


def test_what_an_unreadable_object_replaced_is_gone(store: Store) -> None:
    """What is there now is not known, and what was there is not there: its rows no longer count."""
    fill(store, *"abc")
    take_in(store, writer="run-1")
    locked(store, "pairs/b.jsonl", lines("secret"))
    found = take_in(store, writer="run-2")
    assert found.removed == ("pairs/b.jsonl",)
    assert queries(store, found.commit) == ["a1", "a2", "c1", "c2"]
    assert take_in(store, writer="run-3").new_commits == ()


class Unreadable(MemoryClient):
    """A server that answers reads of some objects with an error, so many times each."""

    def __init__(self, code: str, status: int, *keys: str, times: int = 10**9) -> None:
        super().__init__()
        self.error, self.left = error(code, status), dict.fromkeys(keys, times)

    def get_object(self, **arguments: Any) -> Any:
        """Read, or not."""
        name = arguments["Key"].rpartition("/")[2]
        if self.left.get(name, 0) > 0:
            self.left[name] -= 1
            raise self.error
        return super().get_object(**arguments)


def unreadable(code: str, status: int, *keys: str, times: int = 10**9) -> Store:
    """A store on such a server, with objects a, b and c."""
    client: Any = Unreadable(code, status, *keys, times=times)
    store = Store("s3://memory/store", client)
    fill(store, *"abc")
    return store


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("AccessDenied", 403),
        ("InvalidObjectState", 403),
        ("KMS.DisabledException", 400),
        ("InvalidRequest", 400),
        ("InternalError", 500),
    ],
)
def test_reasons_of_an_objects_own_leave_it_pending(code: str, status: int) -> None:
    """Forbidden, archived, a key that is gone, a block of the server's disk that is lost."""
    store = unreadable(code, status, "b.jsonl")
    found = take_in(store, writer="run")
    assert [unread.key for unread in found.pending] == ["pairs/b.jsonl"]
    assert code in found.pending[0].reason
    assert queries(store, found.commit) == ["a1", "a2", "c1", "c2"]


def test_a_server_that_fails_for_a_moment_leaves_nothing_pending() -> None:
    """What it failed at is asked for once more before the call ends."""
    store = unreadable("InternalError", 500, "b.jsonl", times=1)
    found = take_in(store, writer="run")
    assert found.pending == ()
    assert sorted(queries(store, found.commit)) == ["a1", "a2", "b1", "b2", "c1", "c2"]


def test_an_object_that_the_server_always_fails_at_does_not_stop_a_night_without_news() -> None:
    """It is the only one that is read then, and still not taken for a server that is away."""
    store = unreadable("InternalError", 500, "b.jsonl")
    take_in(store, writer="run-1")
    assert [unread.key for unread in take_in(store, writer="run-2").pending] == ["pairs/b.jsonl"]


def test_a_server_that_goes_away_meanwhile_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails at everything: nothing is pending, nothing is committed, and the step is tried again."""
    store = unreadable("InternalError", 500, "a.jsonl", "b.jsonl", "c.jsonl")
    client: Any = store._client
    listed = client.list_objects_v2

    def leave(**arguments: Any) -> Any:
        client.left["split.json"] = 10**9
        return listed(**arguments)

    load_split(store)
    monkeypatch.setattr("tasks.intake.take.load_split", lambda _store: load_split(memory_store()))
    client.list_objects_v2 = leave
    with pytest.raises(StoreError, match="InternalError"):
        take_in(store, writer="run")
    assert not [key for key in client.objects if key.startswith("store/log/")]


@pytest.mark.parametrize(("code", "status"), [("SlowDown", 503), ("InvalidAccessKeyId", 403), ("ExpiredToken", 400)])
def test_a_server_that_fails_at_everything_is_a_failure(code: str, status: int) -> None:
    """And no list of objects, so that the step is tried again."""
    with pytest.raises(StoreError, match=code):
        take_in(unreadable(code, status, "a.jsonl", "b.jsonl", "c.jsonl"), writer="run")


# --- refusals --------------------------------------------------------------------------------------------


def test_an_object_refused_by_a_limit_is_taken_when_the_limit_is_raised(memory: Store) -> None:
    """And only then: the same limits, or narrower ones, look at it no more."""
    fill(memory, "a")
    memory.put("pairs/large.jsonl", lines("large", "larger"))
    narrow = Limits(max_object_bytes=len(memory.get("pairs/large.jsonl").body) - 1)
    take_in(memory, writer="run-1", limits=narrow)
    (refused,) = intake.refused(memory, 1)
    assert refused.key == "pairs/large.jsonl"
    assert "larger than" in refused.reason
    assert take_in(memory, writer="run-2", limits=narrow).new_commits == ()
    assert take_in(memory, writer="run-3", limits=Limits(max_object_bytes=64)).new_commits == ()
    assert take_in(memory, writer="run-4").accepted == 2
    assert queries(memory, 2) == ["a1", "a2", "large", "larger"]
    assert intake.refused(memory, 2) == []


def test_rows_rejected_by_a_limit_are_taken_when_the_limit_is_raised(memory: Store) -> None:
    """The object is read again as a whole: its other rows are not there twice."""
    memory.put("pairs/a.jsonl", lines("short", "q" * 100))
    take_in(memory, writer="run-1", limits=Limits(max_text_chars=50))
    assert queries(memory, 1) == ["short"]
    take_in(memory, writer="run-2")
    assert queries(memory, 2) == ["short", "q" * 100]
    assert intake.counts(memory, 2)["rejected"] == 0


def test_another_version_of_the_parser_looks_again(memory: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """At what was rejected, once; objects that were taken whole are left alone."""
    fill(memory, "a")
    memory.put("pairs/bad.jsonl", b"what is this?")
    take_in(memory, writer="run-1")
    monkeypatch.setattr(intake_listing, "PARSER_VERSION", intake_listing.PARSER_VERSION + 1)
    take_in(memory, writer="run-2")
    assert [source.key for source in commit_log.read(memory, [2])[0].objects] == ["pairs/bad.jsonl"]
    assert take_in(memory, writer="run-3").new_commits == ()


def test_a_log_of_an_older_version_goes_on(memory: Store) -> None:
    """Without what this version notes: what was refused whole is looked at again, once."""
    fill(memory, "a", bad=1)
    memory.put("pairs/bad.jsonl", b"what is this?")
    take_in(memory, writer="run-1")
    entry = orjson.loads(memory.get("log/000000000001.json").body)
    new = ("understood", "reader", "split", "removed")
    memory.put("log/000000000001.json", orjson.dumps({name: entry[name] for name in entry if name not in new}))
    found = take_in(memory, writer="run-2")
    assert [source.key for source in commit_log.read(memory, [2])[0].objects] == ["pairs/bad.jsonl"]
    assert take_in(memory, writer="run-3").new_commits == ()
    assert queries(memory, found.commit) == ["a1", "a2"]


# --- the split and the log -------------------------------------------------------------------------------


def test_a_lost_split_is_put_back_from_the_log(memory: Store) -> None:
    """Byte for byte the same sides; also by a night that only reads."""
    fill(memory, "a")
    take_in(memory, writer="run-1")
    split = load_split(memory)
    memory.delete([SPLIT_KEY])
    assert load_split(memory) == split
    memory.delete([SPLIT_KEY])
    fill(memory, "b")
    take_in(memory, writer="run-2")
    assert load_split(memory) == split
    memory.put(SPLIT_KEY, orjson.dumps({"rule": 1, "salt": "chosen", "dev": 0.05, "test": 0.15}))
    assert load_split(memory) == replace(split, salt="chosen")


def test_a_lost_split_that_an_older_version_used_is_refused(memory: Store) -> None:
    """Its log does not hold the salt: a new one would test on what was trained on. Unused, there is nothing to lose."""
    fill(memory, "a")
    take_in(memory, writer="run-1")
    entry = orjson.loads(memory.get("log/000000000001.json").body)
    del entry["split"]
    memory.put("log/000000000001.json", orjson.dumps(entry))
    memory.delete([SPLIT_KEY])
    memory.put("runs/20260101T033000Z-00000000/checks.json", b"{}")
    for attempt in (load_split, lambda store: take_in(store, writer="run-2")):
        with pytest.raises(SplitError, match=r"split\.json is missing.*restore it"):
            attempt(memory)
    memory.delete(["runs/20260101T033000Z-00000000/checks.json"])
    assert load_split(memory).salt


def test_changes_of_a_log_that_was_started_anew_are_all(memory: Store) -> None:
    """A commit number of the old log says nothing about the new one."""
    fill(memory, "a")
    take_in(memory, writer="run")
    assert intake.changes(memory, 40, 1) == intake.Changes(new_pairs=2, removed=0)
    with pytest.raises(LogError):
        intake.read_rows(memory, 40)


def test_an_object_that_is_emptied_counts_as_a_change(memory: Store) -> None:
    """A correction that leaves no row, or none that is taken, changes the data as a removal does."""
    fill(memory, "a", "b")
    take_in(memory, writer="run-1")
    memory.put("pairs/b.jsonl", b"\n")
    take_in(memory, writer="run-2")
    assert intake.changes(memory, 1, 2) == intake.Changes(new_pairs=0, removed=1)


# --- nights ----------------------------------------------------------------------------------------------


def concluded(store: Store, run: str, taken: Taken) -> None:
    """Write the outcome of a night that took this in and did not train."""
    Run(store, run).put_outcome(
        Outcome(run_id=run, verdict="held", reasons=[], commit=taken.commit, pending=taken.pending)
    )


def test_a_log_that_was_deleted_to_start_anew_is_new(memory: Store) -> None:
    """Whatever its numbers are: one as long as the old one, a shorter one, a longer one."""
    for number, objects in enumerate(("ab", "ab", "a", "abcd")):
        memory.delete([entry.key for entry in memory.entries("pairs/")])
        fill(memory, *objects)
        run = f"2026010{number + 1}T033000Z-00000000"
        last = runs.last_concluded(memory, before=run)
        taken = night.take_in(memory, run, last.commit if last else 0, Limits(max_commit_rows=2))
        assert (taken.new, taken.since, taken.commit) == (2 * len(objects), 0, len(objects))
        concluded(memory, run, taken)
        memory.delete([entry.key for folder in ("log/", "batches/") for entry in memory.entries(folder)])
    taken = night.take_in(memory, "20260105T033000Z-00000000", 4)
    concluded(memory, "20260105T033000Z-00000000", taken)
    assert night.take_in(memory, "20260106T033000Z-00000000", taken.commit).new == 0


def test_rejected_rows_of_a_log_that_was_deleted_give_way(memory: Store) -> None:
    """The file of quarantine has the number of a commit: the old log's is not taken for the new one's."""
    fill(memory, "a", bad=2)
    take_in(memory, writer="run-1")
    memory.delete([entry.key for entry in memory.entries("log/")])
    fill(memory, "a", bad=1)
    take_in(memory, writer="run-2")
    take_in(memory, writer="run-3")
    assert len(memory.get("quarantine/000000000001.jsonl").body.splitlines()) == 1


def test_nights_count_how_often_an_object_could_not_be_read() -> None:
    """In a row: once it was read, it begins again; a failed night in between does not count."""
    store = unreadable("AccessDenied", 403, "b.jsonl")
    client: Any = store._client
    seen = []
    for number in range(1, 6):
        run = f"2026010{number}T033000Z-00000000"
        if number == 4:
            client.left.clear()
        if number == 5:
            store.put("pairs/b.jsonl", lines("another"))
            client.left["b.jsonl"] = 10**9
        taken = night.take_in(store, run, 0)
        seen.append([(unread.key, unread.nights, unread.since[:8]) for unread in taken.pending])
        concluded(store, run, taken)
    first = [("pairs/b.jsonl", nights, "20260101") for nights in (1, 2, 3)]
    assert seen == [[first[0]], [first[1]], [first[2]], [], [("pairs/b.jsonl", 1, "20260105")]]
