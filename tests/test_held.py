"""What a person rolled back stays back until it is released; the base model can be gone back to; retries do no more."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from tasks.registry import (
    Change,
    LedgerError,
    ProductionChangedError,
    RefusedError,
    RegistryError,
    find_held,
    held,
    history,
    promote,
    publish,
    pull_production,
    read_manifest,
    read_production,
    release,
    rollback,
    settle,
)
from tasks.registry.ledger import entry_key
from tasks.storage import Store
from tests.faults import Crash, faulty
from tests.models import DESCRIPTION, model_folder, published


@pytest.fixture
def three(store: Store, tmp_path: Path) -> list[str]:
    """Three published versions, of which none serves yet."""
    return [published(store, tmp_path / f"{i}", b"weights %d" % i) for i in range(3)]


def night(store: Store, version: str) -> Change:
    """Promote over what serves now."""
    now = read_production(store)
    etag = now.etag if now else None
    return promote(store, version, etag, run_id=f"night-{uuid.uuid4().hex}", who="night", reason="better", scores={})


def back(store: Store, to_version: str | None = None, run_id: str | None = None, leaving: int | None = None) -> Change:
    """Roll back as a person does."""
    run_id = run_id or f"undo-{uuid.uuid4().hex}"
    return rollback(store, to_version, run_id=run_id, who="Ann", reason="odd results", leaving=leaving)


def free(store: Store, version: str) -> None:
    """Release a version."""
    release(store, version, who="Ann", reason="it was the index")


def test_a_version_that_was_rolled_back_is_not_promoted_until_it_is_released(store: Store, three: list[str]) -> None:
    """The refusal says who rolled back, why, and what to do; afterwards it is a version like any other."""
    night(store, three[0])
    night(store, three[1])
    back(store)
    with pytest.raises(RefusedError, match=f"rolled back by Ann .*odd results.*`ratchet release {three[1]}`"):
        night(store, three[1])
    assert [one.version for one in held(store)] == [three[1]]
    free(store, three[1])
    assert held(store) == []
    assert night(store, three[1]).promotion == 4
    back(store)
    with pytest.raises(RefusedError, match="was rolled back"):  # the release was of the first rollback
        night(store, three[1])


def test_the_same_weights_under_another_name_are_held_as_well(store: Store, three: list[str], tmp_path: Path) -> None:
    """Only the model card differs: the next night would bring back what a person has sent away."""
    night(store, three[0])
    night(store, three[1])
    back(store)
    folder = model_folder(tmp_path / "again", b"weights 1")
    (folder / "README.md").write_text("# Another night")
    again = publish(store, folder, DESCRIPTION)
    assert again != three[1]
    with pytest.raises(RefusedError, match="was rolled back"):
        night(store, again)
    assert find_held(store, again, read_manifest(store, again).weights) == held(store)[0]
    assert night(store, three[2]).version == three[2]


def test_every_version_that_a_rollback_leaves_is_held(store: Store, three: list[str]) -> None:
    """Back from the third to the first: neither the third nor the second comes again by itself."""
    for version in three:
        night(store, version)
    back(store, three[0])
    assert {one.version for one in held(store)} == set(three[1:])
    free(store, three[2])
    assert [one.version for one in held(store)] == [three[1]]


def test_a_version_that_a_person_puts_back_is_no_longer_held(store: Store, three: list[str]) -> None:
    """There and back: now the other one was left."""
    night(store, three[0])
    night(store, three[1])
    back(store)
    back(store)
    assert [one.version for one in held(store)] == [three[0]]
    assert night(store, three[2]).promotion == 5


def test_releasing_what_is_not_held_says_what_is(store: Store, three: list[str]) -> None:
    """A typing error is not taken for a release."""
    night(store, three[0])
    night(store, three[1])
    back(store)
    with pytest.raises(RegistryError, match=f"is not held; held versions: {three[1]}"):
        free(store, three[0])


def test_the_first_change_can_be_left_for_the_base_model(store: Store, three: list[str], tmp_path: Path) -> None:
    """By no name, since the base model served before it; what was left is held, and another version can come."""
    night(store, three[0])
    change = back(store)
    assert (change.version, change.previous, change.promotion, change.fingerprint) == (None, three[0], 2, None)
    assert change.rebuild_index
    pointer = json.loads(store.get("production.json").body)
    assert (pointer["version"], pointer["action"]) == (None, "rollback")
    assert store.get(entry_key(2)).body == store.get("production.json").body
    with pytest.raises(RegistryError, match="the base model serves"):
        pull_production(store, tmp_path / "out")
    with pytest.raises(RefusedError, match="was rolled back"):
        night(store, three[0])
    after = night(store, three[1])
    assert (after.previous, after.rebuild_index, after.promotion) == (None, True, 3)
    assert [change.version for change in history(store)] == [three[0], None, three[1]]


def test_the_base_model_has_a_name_and_can_be_left_again(store: Store, three: list[str]) -> None:
    """`--to base` from anywhere; the version before it comes back like any other."""
    night(store, three[0])
    night(store, three[1])
    assert back(store, "base").version is None
    with pytest.raises(RefusedError, match="the base model serves already"):
        back(store, "base")
    assert {one.version for one in held(store)} == set(three[:2])
    assert back(store).version == three[1]
    assert [one.version for one in held(store)] == [three[0]]


def test_a_retried_rollback_is_one_rollback_though_a_promotion_came_between(store: Store, three: list[str]) -> None:
    """The first attempt moved production and died; the night after it promoted; the second attempt changes nothing."""
    night(store, three[0])
    night(store, three[1])
    done = back(store, run_id="undo")
    night(store, three[2])
    assert back(store, run_id="undo") == done
    production = read_production(store)
    assert production is not None
    assert production.version == three[2]


def test_a_rollback_does_not_leave_what_came_after_it_was_asked_for(store: Store, three: list[str]) -> None:
    """Asked for when the second served; a night promoted the third before the first attempt had written anything."""
    night(store, three[0])
    asked = night(store, three[1]).promotion
    night(store, three[2])
    with pytest.raises(ProductionChangedError, match="ask again"):
        back(store, leaving=asked)
    assert len(history(store)) == 3


def test_a_damaged_old_entry_does_not_stand_in_the_way_of_a_rollback(store: Store, three: list[str]) -> None:
    """Somebody who rolls back at night has no time for the year before."""
    for version in three:
        night(store, version)
    store.put(entry_key(1), b"damaged")
    assert back(store).version == three[1]
    with pytest.raises(LedgerError):
        held(store)


@pytest.mark.parametrize("action", ["promote", "roll back"])
def test_a_change_whose_process_died_is_announced_by_the_one_that_settles_it(
    store: Store, three: list[str], action: str
) -> None:
    """At whichever write it dies: what production is was announced, at the latest by the next `settle`."""
    night(store, three[0])
    night(store, three[1])
    told: list[int] = []
    for at in range(1, 30):
        before = read_production(store)
        assert before is not None
        for one in held(store):
            free(store, one.version)
        dying = faulty(store, at, "after")
        words = {"run_id": f"run-{at}", "who": "w", "reason": "r"}
        try:
            if action == "promote":
                target = next(version for version in three if version != before.version)
                promote(dying, target, before.etag, scores={}, announce=lambda c: told.append(c.promotion), **words)
            else:
                rollback(dying, announce=lambda c: told.append(c.promotion), **words)
        except Crash:
            settle(store, lambda change: told.append(change.promotion))
        else:
            break
    last = history(store)[-1].promotion
    assert sorted(set(told)) == list(range(3, last + 1))
    assert last > 3


def test_a_change_is_announced_before_the_ledger_says_so(store: Store, three: list[str]) -> None:
    """An announcement that fails is made again by the next run; one that was made is not."""

    def fails(_: Change) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        promote(store, three[0], None, run_id="r", who="w", reason="r", scores={}, announce=fails)
    assert store.find(entry_key(1)) is None
    told: list[str | None] = []
    for _ in range(2):
        settle(store, lambda change: told.append(change.version))
    assert told == [three[0]]
