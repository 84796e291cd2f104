"""Retention: what is kept, and a deletion that a crash or a promotion in between cannot spoil."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.registry import LedgerError, promote, read_production
from tasks.registry.retention import retire
from tasks.registry.versions import RETIRED, VersionError, hold, publish, pull, verify
from tasks.storage import Blob, Store, StoreError
from tests.faults import Crash, faulty
from tests.models import DESCRIPTION, published

LATER = datetime.now(UTC) + timedelta(days=2)
"""A day on which everything that these tests write is old enough to go."""


def let_serve(store: Store, version: str) -> None:
    """Promote over whatever serves."""
    scored = read_production(store)
    promote(store, version, scored.etag if scored else None, run_id=version, who="w", reason="r", scores={})


def stored(store: Store) -> set[str]:
    """Folders under `models/` that hold anything (SeaweedFS goes on listing empty ones)."""
    return {entry.key.split("/")[1] for entry in store.entries("models/")}


def publish_all(store: Store, folder: Path, count: int) -> list[str]:
    """Publish so many versions, oldest first."""
    return [published(store, folder / f"{i}", b"%d" % i) for i in range(count)]


def test_the_latest_versions_and_those_of_the_ledgers_end_are_kept(store: Store, tmp_path: Path) -> None:
    """Of six: the first three served, in turn; the last two entries name all three; keep=1 adds one; two go."""
    versions = publish_all(store, tmp_path, 6)
    for version in versions[:3]:
        let_serve(store, version)
    latest = max(versions, key=lambda v: next(iter(store.entries(f"models/{v}/manifest.json"))).modified)
    gone = retire(store, keep=1, ledger_entries=2, now=LATER)
    assert set(versions[:3]).isdisjoint(gone)
    assert latest not in gone
    assert 2 <= len(gone) <= 3
    assert stored(store) == set(versions) - set(gone)
    assert retire(store, keep=1, ledger_entries=2, now=LATER) == []


def test_what_serves_and_what_served_before_are_kept_whatever_the_counts(store: Store, tmp_path: Path) -> None:
    """The one entry of the ledger that is kept names both; the version before them goes."""
    # the store's times are whole seconds: of two in the same second the greater name is the later one, here as well
    versions = sorted(publish_all(store, tmp_path, 3))
    for version in versions:
        let_serve(store, version)
    assert retire(store, keep=1, ledger_entries=1, now=LATER) == [versions[0]]
    for version in versions[1:]:
        pull(store, version, tmp_path / version)


def test_nothing_that_is_younger_than_a_day_goes(store: Store, tmp_path: Path) -> None:
    """A candidate of a run that is still going on is not in the ledger yet."""
    versions = publish_all(store, tmp_path, 4)
    assert retire(store, keep=1, ledger_entries=1) == []
    for version in versions:
        verify(store, version)


def test_remains_of_an_interrupted_upload_go_and_what_is_no_version_stays(store: Store, tmp_path: Path) -> None:
    """Files without a manifest are no version and never will be; a folder of somebody's is not ours."""
    (version,) = publish_all(store, tmp_path, 1)
    store.put("models/0123456789abcdef/model.safetensors", b"half")
    store.put("models/readme/notes.txt", b"somebody's")
    assert retire(store, keep=1, ledger_entries=1, now=LATER) == ["0123456789abcdef"]
    assert stored(store) == {version, "readme"}


def test_a_crash_at_any_write_leaves_a_version_whole_or_not_at_all(store: Store, tmp_path: Path) -> None:
    """What still has its manifest can be pulled; the next retirement ends what this one began."""
    folders = {published(store, tmp_path / f"{i}", b"%d" % i): tmp_path / f"{i}" for i in range(2)}
    old, kept = sorted(folders)  # times are whole seconds: of two in the same second, the name decides
    let_serve(store, kept)
    states = set()
    for at in range(1, 20):
        publish(store, folders[old], DESCRIPTION)
        hold(store, kept)
        try:
            gone = retire(faulty(store, at, "after"), keep=1, ledger_entries=1, now=LATER)
        except Crash:
            try:
                pull(store, old, tmp_path / f"pulled-{at}")
                states.add("whole")
            except VersionError:
                states.add("none")
            retire(store, keep=1, ledger_entries=1, now=LATER)
        else:
            assert gone == [old]
            break
        assert stored(store) == {kept}
    assert states == {"whole", "none"}
    assert at == 8  # marker, manifest, four files, marker: seven crashes were survived


def test_a_promotion_that_comes_between_stops_the_deletion(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version was old when it was chosen, and is held just before it is marked: it stays, and is not marked."""
    versions = publish_all(store, tmp_path, 3)
    before = datetime.now(UTC) + timedelta(days=1, seconds=2)
    real = Store.put_if_absent

    def put(self: Store, key: str, body: bytes) -> str | None:
        if key.endswith(RETIRED) and read_production(store) is None:
            let_serve(store, key.split("/")[1])
        return real(self, key, body)

    monkeypatch.setattr(Store, "put_if_absent", put)
    gone = retire(store, keep=1, ledger_entries=1, now=before)
    production = read_production(store)
    assert production is not None
    assert production.version not in gone
    pull(store, production.version, tmp_path / "out")
    assert store.find(f"models/{production.version}/{RETIRED}") is None
    assert len(gone) == 1
    assert set(gone) < set(versions)


def test_a_deletion_that_comes_first_stops_the_promotion(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is marked when somebody wants to promote it: refused, and nothing serves that is half deleted."""
    versions = publish_all(store, tmp_path, 2)
    real = Store.delete
    refused: list[str] = []

    def delete(self: Store, keys: list[str]) -> None:
        version = keys[0].split("/")[1]
        if keys[0].endswith("manifest.json") and not refused:
            with pytest.raises(VersionError, match="being deleted"):
                let_serve(store, version)
            refused.append(version)
        real(self, keys)

    monkeypatch.setattr(Store, "delete", delete)
    gone = retire(store, keep=1, ledger_entries=1, now=LATER)
    assert gone == refused
    assert set(gone) < set(versions)
    assert read_production(store) is None


def test_the_mark_of_an_interrupted_deletion_is_taken_off_a_version_that_is_needed(
    store: Store, tmp_path: Path
) -> None:
    """Otherwise it could never be promoted again."""
    (version,) = publish_all(store, tmp_path, 1)
    store.put(f"models/{version}/{RETIRED}", b"")
    assert retire(store, keep=1, ledger_entries=1) == []  # the other process may still be at work
    with pytest.raises(VersionError, match="being deleted"):
        hold(store, version)
    assert retire(store, keep=1, ledger_entries=1, now=LATER) == []
    hold(store, version)


def test_nothing_is_deleted_when_the_ledger_is_damaged(store: Store, tmp_path: Path) -> None:
    """Who cannot tell what is needed deletes nothing."""
    versions = publish_all(store, tmp_path, 3)
    let_serve(store, versions[0])
    store.put("production.json", b"{}")
    with pytest.raises(LedgerError):
        retire(store, keep=1, ledger_entries=1, now=LATER)
    assert stored(store) == set(versions)


@pytest.mark.parametrize(("keep", "ledger_entries"), [(0, 1), (1, 0), (-1, 5)])
def test_keeping_nothing_is_refused(store: Store, keep: int, ledger_entries: int) -> None:
    """Zero is more likely a slip than a wish."""
    with pytest.raises(ValueError, match="at least one"):
        retire(store, keep=keep, ledger_entries=ledger_entries)


@pytest.mark.parametrize("at", [0, 1, 3, 5])  # manifest, files, marker
def test_a_deletion_that_was_held_up_does_not_go_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Seed 202401 of the simulation: before one of its deletes a call stands still for two days.

    Meanwhile another call ends the deletion, and a night publishes the version again. The first then deletes nothing.
    """
    folders = {published(store, tmp_path / f"{i}", b"%d" % i): tmp_path / f"{i}" for i in range(2)}
    old, kept = sorted(folders)
    let_serve(store, kept)
    real = Store.find
    looked = 0

    def find(self: Store, key: str) -> Blob | None:
        nonlocal looked
        if key == f"models/{old}/{RETIRED}":
            looked += 1
            if looked == at + 1:
                monkeypatch.setattr(Store, "find", real)
                hold(store, kept)
                assert retire(store, keep=1, ledger_entries=1, now=LATER + timedelta(days=2)) == [old]
                publish(store, folders[old], DESCRIPTION)
        return real(self, key)

    monkeypatch.setattr(Store, "find", find)
    with pytest.raises(StoreError, match="held up"):
        retire(store, keep=1, ledger_entries=1, now=LATER)
    pull(store, old, tmp_path / "whole")
    assert store.find(f"models/{old}/{RETIRED}") is None


def test_a_machine_that_slept_does_not_go_on_deleting(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a day after its marker, which is still there, a deletion ends; the next call ends what it began."""
    old, kept = sorted(publish_all(store, tmp_path, 2))
    let_serve(store, kept)
    hours = iter([0, 1, 1, 13])
    monkeypatch.setattr("tasks.registry.retention._seconds", lambda: next(hours) * 3600.0)
    with pytest.raises(StoreError, match="held up"):
        retire(store, keep=1, ledger_entries=1, now=LATER)
    left = {entry.key.removeprefix(f"models/{old}/") for entry in store.entries(f"models/{old}/")}
    assert RETIRED in left
    assert len(left) == 4  # the manifest and one of four files are gone
    monkeypatch.undo()
    assert retire(store, keep=1, ledger_entries=1, now=LATER + timedelta(days=1)) == [old]
    assert stored(store) == {kept}
