"""Production and the ledger: one write per change, under races, crashes, kill -9, lost replies and tampering."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tasks.registry import (
    Change,
    LedgerError,
    Production,
    ProductionChangedError,
    RefusedError,
    RegistryError,
    VersionError,
    dates,
    held,
    history,
    promote,
    publish,
    pull_production,
    read_production,
    release,
    rollback,
    served_on,
    serving_since,
    settle,
)
from tasks.storage import Store
from tests.faults import Crash, faulty
from tests.models import DESCRIPTION, model_folder, published

LEDGER_1 = "promotions/000000000001.json"


def let_serve(store: Store, version: str, run_id: str | None = None, *, scored: Production | None = None) -> Change:
    """Promote over what serves now, or over what was scored."""
    scored = scored or read_production(store)
    return promote(
        store,
        version,
        scored.etag if scored else None,
        run_id=run_id or f"run-{uuid.uuid4().hex}",
        who="a test",
        reason="better",
        scores={"mrr": 0.5},
    )


def back(store: Store, to_version: str | None = None, run_id: str = "undo") -> Change:
    """Roll back."""
    return rollback(store, to_version, run_id=run_id, who="a person", reason="it was worse")


def assert_consistent(store: Store) -> list[Change]:
    """The ledger has every number once, its last entry is the pointer byte for byte, and each names its predecessor."""
    production = settle(store)
    keys = sorted(entry.key for entry in store.entries("promotions/"))
    changes = history(store)
    assert keys == [f"promotions/{number:012d}.json" for number in range(1, len(changes) + 1)]
    assert (production is None) == (changes == [])
    if production is not None:
        assert store.get(keys[-1]).body == store.get("production.json").body
    assert [change.promotion for change in changes] == list(range(1, len(changes) + 1))
    assert [change.previous for change in changes] == [None, *(change.version for change in changes)][:-1][
        : len(changes)
    ]
    return changes


def changes_after(store: Store, number: int) -> list[Change]:
    """The ledger's entries after a number, once what was interrupted is settled."""
    settle(store)
    found = []
    while (blob := store.find(f"promotions/{number + len(found) + 1:012d}.json")) is not None:
        found.append(Change.model_validate_json(blob.body))
    return found


@pytest.fixture
def two(store: Store, tmp_path: Path) -> tuple[str, str]:
    """Two published versions, of which none serves."""
    return published(store, tmp_path / "one", b"one"), published(store, tmp_path / "two", b"two")


# --- what is written -----------------------------------------------------------------------------------------


def test_the_first_promotion_says_all_that_a_search_index_must_know(store: Store, two: tuple[str, str]) -> None:
    """The pointer's fields, their values, and its copy in the ledger."""
    assert read_production(store) is None
    promote(store, two[0], None, run_id="night-1", who="night", reason="better", scores={"mrr": 0.5})
    pointer = json.loads(store.get("production.json").body)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(pointer.pop("at"))).total_seconds()) < 60
    weights = pointer["fingerprint"].pop("weights")
    assert weights == json.loads(store.get(f"models/{two[0]}/manifest.json").body)["weights"]
    assert pointer == {
        "version": two[0],
        "promotion": 1,
        "previous": None,
        "action": "promotion",
        "run_id": "night-1",
        "who": "night",
        "reason": "better",
        "scores": {"mrr": 0.5},
        "fingerprint": {
            "dimension": 384,
            "normalisation": "l2",
            "prompts": {"query": "query: "},
            "max_length": 256,
            "similarity": "cosine",
            "requires": {},
            "matryoshka_dims": [128, 32],
            "documents": None,
            "rebuild_index": True,
            "index": "moves",
        },
        "index": "moves",
    }
    assert store.get(LEDGER_1).body == store.get("production.json").body


def test_a_second_promotion_names_the_first(store: Store, two: tuple[str, str]) -> None:
    """Number 2, previous version, and an index that must be rebuilt since the weights differ."""
    let_serve(store, two[0])
    change = let_serve(store, two[1])
    assert (change.promotion, change.previous, change.fingerprint.rebuild_index) == (2, two[0], True)
    assert [c.version for c in assert_consistent(store)] == list(two)


def test_an_index_survives_a_change_of_the_model_card_alone(store: Store, tmp_path: Path) -> None:
    """The same weights and settings under another version: vectors are the same."""
    folder = model_folder(tmp_path / "model")
    let_serve(store, publish(store, folder, DESCRIPTION))
    (folder / "README.md").write_text("a better card")
    assert not let_serve(store, publish(store, folder, DESCRIPTION)).fingerprint.rebuild_index


# --- refusals ------------------------------------------------------------------------------------------------


def test_production_that_changed_since_it_was_scored_is_not_replaced(
    store: Store, two: tuple[str, str], tmp_path: Path
) -> None:
    """Scored against nothing, or against the first version, while the second serves by now."""
    three = published(store, tmp_path / "three", b"three")
    let_serve(store, two[0])
    scored = read_production(store)
    let_serve(store, two[1])
    before = store.get("production.json").body
    with pytest.raises(ProductionChangedError, match="changed since it was scored"):
        let_serve(store, three, scored=scored)
    with pytest.raises(ProductionChangedError, match=f"version {two[1]}"):
        promote(store, three, None, run_id="r", who="w", reason="r", scores={})
    assert store.get("production.json").body == before
    assert len(assert_consistent(store)) == 2


def test_the_same_version_is_not_promoted_over_itself(store: Store, two: tuple[str, str]) -> None:
    """A promotion that changes nothing is not one."""
    let_serve(store, two[0])
    with pytest.raises(RefusedError, match="serves already"):
        let_serve(store, two[0])
    assert len(assert_consistent(store)) == 1


@pytest.mark.parametrize("damage", ["no manifest", "changed manifest", "file missing", "file cut", "unknown"])
def test_a_version_that_is_not_whole_is_not_promoted(store: Store, two: tuple[str, str], damage: str) -> None:
    """Nothing is written, and what serves goes on serving."""
    let_serve(store, two[0])
    manifest, weights = f"models/{two[1]}/manifest.json", f"models/{two[1]}/model.safetensors"
    if damage == "no manifest":
        store.delete([manifest])
    elif damage == "changed manifest":
        store.put(manifest, store.get(manifest).body + b" ")
    elif damage == "file missing":
        store.delete([weights])
    elif damage == "file cut":
        store.put(weights, b"tw")
    version = "0123456789abcdef" if damage == "unknown" else two[1]
    with pytest.raises(VersionError):
        let_serve(store, version)
    assert [change.version for change in assert_consistent(store)] == [two[0]]


@pytest.mark.parametrize("condition", ["IfMatch", "IfNoneMatch"])
def test_a_store_that_ignores_conditions_gets_no_promotion(store: Store, two: tuple[str, str], condition: str) -> None:
    """Such a server would let two nights overwrite each other: neither promotion nor rollback."""
    let_serve(store, two[0])
    before = store.get("production.json").body
    client: Any = Unconditional(store._client, condition)
    with pytest.raises(RefusedError, match="not to be trusted with production"):
        let_serve(Store(store.url, client), two[1])
    assert store.get("production.json").body == before


class Unconditional:
    """An S3 client behind something that drops one of the two conditions of a write."""

    def __init__(self, client: Any, condition: str) -> None:
        self._client, self._condition = client, condition

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **arguments: Any) -> Any:
        """Write, one condition short."""
        arguments.pop(self._condition, None)
        return self._client.put_object(**arguments)


@pytest.mark.parametrize("scores", [{"mrr": float("nan")}, {"mrr": float("inf")}])
def test_scores_that_are_no_numbers_are_not_recorded(
    store: Store, two: tuple[str, str], scores: dict[str, float]
) -> None:
    """The ledger is JSON, and NaN is not."""
    with pytest.raises(RefusedError, match="cannot be recorded"):
        promote(store, two[0], None, run_id="r", who="w", reason="r", scores=scores)
    assert read_production(store) is None


@pytest.mark.parametrize("field", ["run_id", "who", "reason"])
def test_a_change_without_who_or_why_is_refused(store: Store, two: tuple[str, str], field: str) -> None:
    """The ledger answers these questions or it is not worth keeping."""
    words = {"run_id": "r", "who": "w", "reason": "r"} | {field: ""}
    with pytest.raises(RefusedError, match=field):
        promote(store, two[0], None, scores={}, **words)
    assert read_production(store) is None


# --- damage: fail closed, loudly -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"null", b"[]", b"not json", b"\xff", b'{"version": "0123456789abcdef"}', b"[" * 100_000],
)
def test_a_pointer_that_cannot_be_read_is_an_error_and_never_none(
    store: Store, two: tuple[str, str], body: bytes
) -> None:
    """A night that took damage for "nothing in production" would compare with the base model and overwrite."""
    store.put("production.json", body)
    for act in (read_production, settle, history, back):
        with pytest.raises(LedgerError, match=r"production\.json is not valid"):
            act(store)
    with pytest.raises(LedgerError):
        promote(store, two[0], None, run_id="r", who="w", reason="r", scores={})
    assert store.get("production.json").body == body


@pytest.mark.parametrize(
    "change",
    [{"promotion": 0}, {"version": "../x"}, {"at": "2026-01-01T00:00:00"}, {"extra": 1}, {"fingerprint": {}}],
)
def test_a_pointer_with_one_bad_field_is_an_error(store: Store, two: tuple[str, str], change: dict[str, Any]) -> None:
    """Numbers from 1, names of versions, times with a zone, no field that is not known, the whole fingerprint."""
    let_serve(store, two[0])
    store.put("production.json", json.dumps(json.loads(store.get("production.json").body) | change).encode())
    with pytest.raises(LedgerError, match=next(iter(change))):
        read_production(store)


def test_a_pointer_deleted_by_hand_is_an_error_that_says_how_to_restore_it(store: Store, two: tuple[str, str]) -> None:
    """The ledger remembers: not "nothing was ever promoted". Copying the last entry back heals it."""
    let_serve(store, two[0])
    let_serve(store, two[1])
    store.delete(["production.json"])
    for act in (read_production, settle, history, back):
        with pytest.raises(LedgerError, match=r"missing, but the ledger continues to .*000000000002\.json"):
            act(store)
    with pytest.raises(LedgerError):
        promote(store, two[0], None, run_id="r", who="w", reason="r", scores={})
    store.put("production.json", store.get("promotions/000000000002.json").body)
    assert len(assert_consistent(store)) == 2


def test_an_old_pointer_put_back_by_hand_is_noticed(store: Store, two: tuple[str, str], tmp_path: Path) -> None:
    """The ABA case: bytes and ETag are those of the first promotion again, but the ledger goes on."""
    let_serve(store, two[0])
    scored = read_production(store)
    old = store.get("production.json").body
    let_serve(store, two[1])
    store.put("production.json", old)
    assert scored is not None
    assert store.get("production.json").etag == scored.etag
    three = published(store, tmp_path / "three", b"three")
    for act in (lambda: let_serve(store, three, scored=scored), lambda: settle(store), lambda: back(store, two[1])):
        with pytest.raises(LedgerError, match="put back by hand"):
            act()
    assert store.get("production.json").body == old


@pytest.mark.parametrize("number", [1, 2])
def test_a_ledger_entry_with_other_bytes_stops_everything(store: Store, two: tuple[str, str], number: int) -> None:
    """Neither the copy of the pointer nor the next number may be somebody else's."""
    let_serve(store, two[0])
    before = store.get("production.json").body
    store.put(f"promotions/{number:012d}.json", b"{}")
    with pytest.raises(LedgerError):
        let_serve(store, two[1])
    with pytest.raises(LedgerError):
        settle(store)
    assert store.get("production.json").body == before


def test_history_names_a_gap_and_a_swap(store: Store, two: tuple[str, str]) -> None:
    """An entry that is missing, or has another number than its key."""
    let_serve(store, two[0])
    let_serve(store, two[1])
    back(store)
    second = store.get("promotions/000000000002.json").body
    store.put(LEDGER_1, second)
    with pytest.raises(LedgerError, match="says it is change 2"):
        history(store)
    store.delete([LEDGER_1])
    with pytest.raises(LedgerError, match="gap"):
        history(store)
    store.put("promotions/notes.txt", b"")
    with pytest.raises(LedgerError, match=r"notes\.txt is not a ledger entry"):
        settle(store)


# --- rollback and history ------------------------------------------------------------------------------------


def test_rollback_goes_to_the_version_that_served_before(store: Store, two: tuple[str, str]) -> None:
    """With the scores it had, a reason, and the change recorded like any other; twice is there and back."""
    promote(store, two[0], None, run_id="n1", who="w", reason="r", scores={"mrr": 0.25})
    let_serve(store, two[1])
    change = back(store, run_id="undo-1")
    assert (change.version, change.previous, change.promotion, change.action) == (two[0], two[1], 3, "rollback")
    assert (change.scores, change.reason, change.who) == ({"mrr": 0.25}, "it was worse", "a person")
    assert back(store, run_id="undo-2").version == two[1]
    assert [c.action for c in assert_consistent(store)] == ["promotion", "promotion", "rollback", "rollback"]


def test_rollback_to_a_named_version_and_its_refusals(store: Store, two: tuple[str, str], tmp_path: Path) -> None:
    """Any that ever served; not one that never did (no gate let it through), nor what serves, nor nothing."""
    with pytest.raises(RefusedError, match="nothing is in production"):
        back(store)
    three = published(store, tmp_path / "three", b"three")
    let_serve(store, two[0])
    let_serve(store, two[1])
    with pytest.raises(RefusedError, match="serves already"):
        back(store, two[1])
    for never in (three, "0123456789abcdef", "../evil"):
        with pytest.raises(RefusedError, match="never served"):
            back(store, never)
    let_serve(store, three)
    assert back(store, two[0]).version == two[0]
    assert len(assert_consistent(store)) == 4


def test_rollback_checks_every_hash_first(store: Store, two: tuple[str, str]) -> None:
    """Bytes of the right size but another content are not put back into production."""
    let_serve(store, two[0])
    let_serve(store, two[1])
    store.put(f"models/{two[0]}/model.safetensors", b"eno")
    with pytest.raises(VersionError, match="another sha256"):
        back(store)
    assert len(assert_consistent(store)) == 2


def test_rollback_away_from_a_damaged_version_works(store: Store, two: tuple[str, str]) -> None:
    """The damage is why somebody rolls back; nobody can tell whether an index survives, so it must be rebuilt."""
    let_serve(store, two[0])
    let_serve(store, two[1])
    store.put(f"models/{two[1]}/manifest.json", b"damaged")
    assert back(store).fingerprint.rebuild_index


def test_the_same_rollback_twice_is_one(store: Store, two: tuple[str, str]) -> None:
    """A run that is repeated after a lost reply does not roll back its own rollback."""
    let_serve(store, two[0])
    let_serve(store, two[1])
    assert back(store, run_id="once").promotion == back(store, run_id="once").promotion == 3
    assert len(assert_consistent(store)) == 3


def test_what_served_on_a_day() -> None:
    """What was in force at midnight (UTC), then the changes of the day; before the first change, nothing."""

    def at(number: int, time: str) -> Change:
        fingerprint = {**DESCRIPTION.model_dump(), "weights": "0" * 64, "rebuild_index": True}
        record = {"version": f"{number:016x}", "promotion": number, "previous": None, "action": "promotion"}
        words = {"run_id": "r", "who": "w", "reason": "r"}
        return Change.model_validate({**record, **words, "at": time, "fingerprint": fingerprint})

    changes = [
        at(1, "2026-03-01T10:00:00Z"),
        at(2, "2026-03-03T09:00:00Z"),
        at(3, "2026-03-04T00:30:00+01:00"),  # 23:30 UTC on the third
        at(4, "2026-03-05T00:00:00Z"),
    ]

    def on(day: int) -> list[int]:
        return [change.promotion for change in served_on(changes, date(2026, 3, day))]

    assert [on(day) for day in (1, 2, 3, 4, 5, 6)] == [[1], [1], [1, 2, 3], [3], [3, 4], [4]]
    assert served_on(changes, date(2026, 2, 28)) == []


def date_pointer(store: Store, at: datetime) -> None:
    """Make the first change of production one that a machine with another clock dated."""
    record = json.loads(store.get("production.json").body) | {"at": at.isoformat()}
    for key in ("production.json", LEDGER_1):
        store.put(key, json.dumps(record).encode())


def test_times_in_the_ledger_do_not_go_back_for_a_small_skew(store: Store, two: tuple[str, str]) -> None:
    """The clock of another machine is a few minutes ahead: the next change is not recorded before it."""
    let_serve(store, two[0])
    ahead = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=10)
    date_pointer(store, ahead)
    assert let_serve(store, two[1]).at == ahead


def test_a_clock_that_is_400_days_ahead_dates_only_its_own_change(store: Store, two: tuple[str, str]) -> None:
    """Later changes have the store's time; what served on a day, and since when, is told rightly all the same."""
    let_serve(store, two[0])
    date_pointer(store, datetime.now(UTC) + timedelta(days=400))
    production = read_production(store)
    assert production is not None
    assert abs(serving_since(store, production) - datetime.now(UTC)) < timedelta(minutes=5)
    second = let_serve(store, two[1])
    assert abs(second.at - datetime.now(UTC)) < timedelta(minutes=5)
    changes = assert_consistent(store)
    assert dates(changes) == [second.at, second.at]
    assert [change.promotion for change in served_on(changes, second.at.date())] == [1, 2]
    assert [change.promotion for change in served_on(changes, second.at.date() + timedelta(days=1))] == [2]


def test_a_change_is_dated_by_the_stores_clock(
    store: Store, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the machine that promotes believes."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Ahead:
            return cls.fromtimestamp(datetime.now(tz).timestamp() + 400 * 86_400, tz)

    for name in [name for name in sys.modules if name.startswith("tasks.registry")]:
        if hasattr(sys.modules[name], "datetime"):
            monkeypatch.setattr(f"{name}.datetime", Ahead)
    assert let_serve(store, two[0]).at < datetime.now(UTC) + timedelta(days=1)


def test_pull_production_takes_an_address_or_a_store(store: Store, two: tuple[str, str], tmp_path: Path) -> None:
    """The files of what serves; and nothing, said so, when nothing serves."""
    with pytest.raises(RegistryError, match="nothing is in production"):
        pull_production(store, tmp_path / "out")
    let_serve(store, two[0])
    assert pull_production(store.url, str(tmp_path / "out")) == tmp_path / "out"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"one"
    let_serve(store, two[1])
    pull_production(store, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"two"


def test_weights_that_production_does_not_name_are_not_pulled(
    store: Store, two: tuple[str, str], tmp_path: Path
) -> None:
    """The pointer was edited to another version, whole and published, and its fingerprint was not."""
    let_serve(store, two[0])
    pointer = json.loads(store.get("production.json").body)
    store.put("production.json", json.dumps({**pointer, "version": two[1]}).encode())
    with pytest.raises(RegistryError, match="has other weights than"):
        pull_production(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- crashes, lost replies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_a_crash_at_any_write_leaves_a_promotion_undone_or_done(
    store: Store, two: tuple[str, str], first: bool
) -> None:
    """And the run that is repeated completes it, once; so does any other run that comes after."""
    serving, candidate = two
    if not first:
        let_serve(store, serving)
    outcomes = []
    for at, when in itertools.product(range(1, 40), ("before", "after")):
        scored = read_production(store)
        etag, number = (scored.etag, scored.promotion + 1) if scored else (None, 1)
        words = {"run_id": f"night-{at}-{when}", "who": "w", "reason": "r"}
        dying = faulty(store, at, when)
        died = False
        try:
            promote(dying, candidate, etag, scores={}, **words)
        except Crash:
            died = True
        changes = changes_after(store, number - 1)
        outcomes.append((died, bool(changes)))
        again = promote(store, candidate, etag, scores={}, **words)
        assert (again.version, again.promotion) == (candidate, number)
        assert not changes or changes == [again]
        assert changes_after(store, number - 1) == [again]
        if not died:
            break
        if first:
            store.delete(["production.json", LEDGER_1])
        else:
            serving, candidate = candidate, serving
    assert_consistent(store)
    # undone up to the write of the pointer, done from it on: the copy in the ledger, at the latest, is made later
    assert outcomes == sorted(outcomes, key=lambda outcome: (not outcome[0], outcome[1]))
    assert set(outcomes) == {(True, False), (True, True), (False, True)}


def test_a_crash_between_pointer_and_ledger_is_completed_by_the_next_promotion(
    store: Store, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without anybody settling in between: entry 1 is written before the pointer moves to 2."""
    real = Store.put_if_absent

    def dying(self: Store, key: str, body: bytes) -> str | None:
        if key == LEDGER_1:
            raise Crash
        return real(self, key, body)

    monkeypatch.setattr(Store, "put_if_absent", dying)
    with pytest.raises(Crash):
        let_serve(store, two[0])
    monkeypatch.setattr(Store, "put_if_absent", real)
    assert store.find(LEDGER_1) is None
    assert [change.version for change in history(store)] == [two[0]]  # readers know it already
    let_serve(store, two[1])
    assert [change.version for change in assert_consistent(store)] == list(two)


class LostReply:
    """An S3 client whose write of the pointer succeeds, but is answered 412, as botocore's own repetition is.

    `meanwhile` happens between the write and the answer.
    """

    def __init__(self, client: Any, meanwhile: Any) -> None:
        self._client, self._meanwhile = client, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **arguments: Any) -> Any:
        """Write; and for the pointer, say that it was not written."""
        reply = self._client.put_object(**arguments)
        if arguments["Key"].endswith("production.json"):
            self._meanwhile()
            raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 412}}, "PutObject")
        return reply


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("followed", [True, False], ids=["followed", "alone"])
def test_a_lost_reply_is_no_lost_race(store: Store, tmp_path: Path, first: bool, followed: bool) -> None:
    """Our write succeeded although we were told 412; even when another change has replaced it by the time we look."""
    one, two, three = (published(store, tmp_path / name, name.encode()) for name in ("one", "two", "three"))
    if not first:
        let_serve(store, one)

    def meanwhile() -> None:
        if followed:
            let_serve(store, three)

    client: Any = LostReply(store._client, meanwhile)
    number = 1 if first else 2
    assert let_serve(Store(store.url, client), two).promotion == number
    versions = [change.version for change in assert_consistent(store)]
    assert versions == [one, two, three][first : 3 if followed else 2]


# --- races ---------------------------------------------------------------------------------------------------


def test_four_nights_race_twenty_times(store: Store, tmp_path: Path) -> None:
    """All four scored the same production: one is promoted, three are told that it changed, in each of 20 rounds."""
    versions = [published(store, tmp_path / f"{i}", b"%d" % i) for i in range(5)]
    for round_ in range(20):
        scored = read_production(store)
        serving = scored.version if scored else None
        candidates = [version for version in versions if version != serving][:4]

        def night(version: str, etag: str | None = scored.etag if scored else None, round_: int = round_) -> bool:
            try:
                promote(store, version, etag, run_id=f"{round_}-{version}", who="w", reason="r", scores={})
            except ProductionChangedError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(night, candidates)) == [False, False, False, True]
    assert len(assert_consistent(store)) == 20


def test_twins_of_one_run_make_one_change(store: Store, two: tuple[str, str]) -> None:
    """A scheduler that starts a run twice: both are told of the same promotion."""
    with ThreadPoolExecutor(4) as pool:
        changes = list(
            pool.map(lambda _: promote(store, two[0], None, run_id="twin", who="w", reason="r", scores={}), range(4))
        )
    assert {change.body() for change in changes} == {store.get("production.json").body}
    assert len(assert_consistent(store)) == 1


def test_promotions_and_rollbacks_race(store: Store, tmp_path: Path) -> None:
    """Two nights and two people, each over what they saw: every change that succeeded is in the ledger, once."""
    versions = [published(store, tmp_path / f"{i}", b"%d" % i) for i in range(4)]
    for version in versions[:2]:
        let_serve(store, version)
    done = 0
    for round_ in range(5):

        def act(who: int, round_: int = round_) -> bool:
            try:
                if who < 2:
                    let_serve(store, versions[2 + who], f"{round_}-{who}")
                else:
                    back(store, run_id=f"{round_}-{who}")
            except (ProductionChangedError, RefusedError):
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            done += sum(pool.map(act, range(4)))
    assert done >= 5
    assert len(assert_consistent(store)) == 2 + done


# --- kill -9 -------------------------------------------------------------------------------------------------

_RACERS = """
import json, os, sys
from tasks.registry import promote, rollback
from tasks.storage import Store
from tests.faults import faulty, kill
store = Store.open(sys.argv[1])
for line in sys.stdin:
    case = json.loads(line)
    child = os.fork()
    if child == 0:
        dying = faulty(store, case["at"], case["when"], kill)
        words = {"run_id": case["run_id"], "who": "w", "reason": "r"}
        try:
            if case["action"] == "promote":
                promote(dying, case["version"], case["etag"], scores={}, **words)
            else:
                rollback(dying, **words)
        except Exception:
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Changes production as it is told on stdin, each time in a process of its own, which is killed at one write."""


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_kill_9_at_each_write(store: Store, tmp_path: Path, action: str) -> None:
    """While another night races, or comes later: the killed change is done or undone, and never in the way."""
    versions = [published(store, tmp_path / f"{i}", b"%d" % i) for i in range(4)]
    for version in versions[:2]:
        let_serve(store, version)
    command = [sys.executable, "-c", _RACERS, store.url]
    root = Path(__file__).parents[1]
    survived, outcomes = set(), set()
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as racers:
        assert racers.stdin is not None
        assert racers.stdout is not None
        for at, (when, racing) in itertools.product(
            range(1, 40), [("before", True), ("before", False), ("after", True), ("after", False)]
        ):
            scored = read_production(store)
            assert scored is not None
            for one in held(store):  # what earlier rollbacks left: here it is promoted again
                release(store, one.version, who="w", reason="r")
            killed, survivor = (version for version in versions if version not in {scored.version, scored.previous})
            case = {"at": at, "when": when, "action": action, "version": killed, "etag": scored.etag}
            run_id = f"{at}-{when}-{racing}"
            racers.stdin.write(json.dumps({**case, "run_id": f"killed-{run_id}"}) + "\n")
            racers.stdin.flush()
            status = None if racing else int(racers.stdout.readline())
            with contextlib.suppress(ProductionChangedError):
                let_serve(store, survivor, f"survivor-{run_id}", scored=scored)
                survived.add(run_id)
            status = int(racers.stdout.readline()) if status is None else status
            done = any(change.run_id == f"killed-{run_id}" for change in changes_after(store, scored.promotion))
            assert done or run_id in survived or status == -signal.SIGKILL
            outcomes.add((status == -signal.SIGKILL, done))
            if status == 0 and not racing:
                break  # it made all its writes: there is no further one to be killed at
        racers.stdin.close()
    runs = [change.run_id for change in assert_consistent(store)]
    assert len(runs) == len(set(runs))
    assert {run_id.removeprefix("survivor-") for run_id in runs if run_id.startswith("survivor-")} == survived
    assert {(True, False), (True, True), (False, True)} <= outcomes
