"""Where a fine-tuning starts: decided by what served and what earlier runs did, the same at every attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from tasks import dataset, encoding, intake, night, registry, splits
from tasks.config import Training
from tasks.storage import Store
from tasks.training.plan import BASE, Plan, choose, rows
from tests import tiny_models
from tests.test_training import PAIRS, settings

ON = Training(start_from="production", full_retrain_every=4, replay_share=0.5, batch_size=2)
TRAIN = pa.table({"commit": [1, 1, 1, 1, 1, 2, 2, 3, 3, 3], "place": list(range(10))})


def ran(store: Store, night: int, started_from: str, commit: int = 1, base: str = "b") -> None:
    """A run of one night that trained version v<night>."""
    found = {"version": f"v{night}", "started_from": started_from, "base": base, "commit": commit}
    store.put(f"runs/2026110{night}T000000Z-00000000/train.json", orjson.dumps(found))


def chosen(store: Store, production: str | None, **changes: Any) -> Plan:
    """The plan of the night of the 9th."""
    return choose(store, "20261109T000000Z-00000000", production, "b", TRAIN, ON.model_copy(update=changes))


def test_base_is_the_default(store: Store) -> None:
    """Nothing is looked up; all rows are trained on."""
    assert Training().start_from == "base"
    ran(store, 1, BASE)
    plan = chosen(store, "v1", start_from="base")
    assert plan.start == BASE
    assert rows(TRAIN, plan, ON) is TRAIN


def test_nothing_in_production_starts_from_base_and_says_so(store: Store) -> None:
    """The first night."""
    plan = chosen(store, None)
    assert (plan.start, plan.why) == (BASE, "Nothing was in production: started from the base model.")


def test_production_is_gone_on_from_with_what_it_had_seen(store: Store) -> None:
    """It was trained on commit 2, so only rows of commit 3 are new to it, whatever ran since."""
    ran(store, 1, BASE, commit=2)
    ran(store, 2, "v1", commit=3)
    assert chosen(store, "v1") == Plan("v1", 2, "Went on from version v1, which knew commit 2.")


@pytest.mark.parametrize(
    ("production", "base", "why"),
    [("v7", "b", "No run says how version v7 was trained"), ("v1", "other", "came from another base model")],
)
def test_unknown_origins_start_from_base(store: Store, production: str, base: str, why: str) -> None:
    """A version of no known run, or of another base model, is not gone on from."""
    ran(store, 1, BASE, commit=2, base=base)
    plan = chosen(store, production)
    assert plan.start == BASE
    assert why in plan.why


def test_nothing_new_starts_from_base(store: Store) -> None:
    """Production has seen every row already (a forced night): there is nothing to go on with."""
    ran(store, 1, BASE, commit=3)
    assert "No row is new" in chosen(store, "v1").why


def test_every_fourth_training_starts_from_base(store: Store) -> None:
    """After three that went on, promoted or not, a full one; runs after this one do not count."""
    ran(store, 1, BASE)
    for night_ in (2, 3):
        ran(store, night_, "v1")
    assert chosen(store, "v1").start == "v1"
    ran(store, 4, "v1")
    store.put("runs/20261110T000000Z-00000000/train.json", store.get("runs/20261101T000000Z-00000000/train.json").body)
    plan = chosen(store, "v1")
    assert (plan.start, plan.since) == (BASE, 0)
    assert "full retrain was due after 3" in plan.why
    ran(store, 5, BASE)
    assert chosen(store, "v1").start == "v1"


def test_new_rows_and_their_share_of_old_ones() -> None:
    """Three new rows: at a half three old ones, in the order of arrival, the same each time; at zero none."""
    plan = Plan("v1", 2, "")
    kept = rows(TRAIN, plan, ON)["place"].to_pylist()
    assert kept == sorted(kept) == rows(TRAIN, plan, ON)["place"].to_pylist()
    assert len(kept) == 6
    assert kept[-3:] == [7, 8, 9]
    assert rows(TRAIN, plan, ON.model_copy(update={"replay_share": 0.0}))["place"].to_pylist() == [7, 8, 9]
    assert rows(TRAIN, plan, ON.model_copy(update={"replay_share": 0.95})).num_rows == 10  # all old ones are seven


def test_few_new_rows_are_filled_up_to_a_batch() -> None:
    """Three new rows and batches of eight: five old ones, though a share of zero asks for none."""
    full = ON.model_copy(update={"replay_share": 0.0, "batch_size": 8})
    assert rows(TRAIN, Plan("v1", 2, ""), full).num_rows == 8


def of_the_query_side(store: Store, night: int, started_from: str = BASE) -> None:
    """A run of one night that trained queries alone."""
    found = {"version": f"v{night}", "started_from": started_from, "base": "b", "commit": night, "side": "query"}
    store.put(f"runs/2026110{night}T000000Z-00000000/train.json", orjson.dumps(found))


def test_queries_are_trained_against_what_serves_and_on_all_rows(store: Store) -> None:
    """By default anew, from the encoder of the documents; the base model's where nothing serves."""
    plan = chosen(store, None, side="query", start_from="base")
    assert (plan.start, plan.since, plan.side) == (BASE, 0, "query")
    assert "the documents of the base model" in plan.why
    ran(store, 1, BASE, base="of another base model")
    plan = chosen(store, "v1", side="query", start_from="base")
    assert (plan.start, plan.since, plan.side) == (BASE, 0, "query")
    assert "against the documents of version v1" in plan.why


def test_queries_go_on_from_those_that_serve(store: Store) -> None:
    """On what is new to them; anew where nothing is."""
    ran(store, 1, BASE)
    of_the_query_side(store, 2)
    assert chosen(store, "v2", side="query").start == "v2"
    assert chosen(store, "v2", side="query").since == 2
    of_the_query_side(store, 3)
    plan = chosen(store, "v3", side="query")
    assert (plan.start, plan.side) == (BASE, "query")
    assert "No row is new to version v3" in plan.why


def test_after_three_of_the_query_side_a_full_one_is_due(store: Store) -> None:
    """Whether they began anew or went on; it trains both sides, from base, on all rows, and then queries go on."""
    ran(store, 1, BASE)
    for night_ in (2, 3, 4):
        assert chosen(store, "v1", side="query", start_from="base").side == "query"
        of_the_query_side(store, night_)
    plan = chosen(store, "v4", side="query", start_from="base")
    assert (plan.start, plan.since, plan.side) == (BASE, 0, "both")
    assert plan.why == "A full retrain was due after 3 that were of the query side alone."
    ran(store, 5, BASE)
    assert chosen(store, "v5", side="query").side == "query"


def test_both_sides_do_not_go_on_from_two_encoders(store: Store) -> None:
    """What serves has one for queries and one for documents: from base."""
    ran(store, 1, BASE)
    of_the_query_side(store, 2)
    plan = chosen(store, "v2")
    assert (plan.start, plan.side) == (BASE, "both")
    assert "has a query encoder of its own" in plan.why


def upload(store: Store, name: str, pairs: list[tuple[str, str]]) -> int:
    """Put pairs into the store and take them in; returns the commit."""
    store.put(f"pairs/{name}.jsonl", b"".join(orjson.dumps({"query": q, "document": d}) + b"\n" for q, d in pairs))
    return intake.take_in(store, writer="test").commit


def test_a_night_goes_on_from_production(store: Store, tmp_path: Path) -> None:
    """From base, promoted, then from that version: its weights are loaded, test is not trained on, and a rerun agrees.

    The second night's loss begins lower than the first's did, its rows are the new ones and as many old ones, and
    another attempt without its result decides the same although production has changed meanwhile.
    """
    split = {"rule": splits.RULE, "salt": "salt", "dev": 0.05, "test": 0.15}  # a random one may leave too little
    store.put(splits.SPLIT_KEY, orjson.dumps(split))
    training = settings(str(tiny_models.save(tmp_path / "base")), start_from="production", batch_size=4)
    half = len(PAIRS) // 2
    first = night.train(store, "20261101T000000Z-00000000", upload(store, "a", PAIRS[:half]), training, tmp_path)
    assert (first.started_from, first.started_why[:7]) == (BASE, "Nothing")
    registry.promote(store, first.version, None, run_id="r", who="w", reason="r", scores={})
    commit, run = upload(store, "b", PAIRS[half:]), "20261102T000000Z-00000000"
    second = night.train(store, run, commit, training, tmp_path, production=first.version)
    assert second.started_from == first.version
    assert second.losses[0] < first.losses[0]
    data = dataset.build(intake.read_rows(store, commit), splits.load_split(store))
    new = sum(number == commit for number in data.train["commit"].to_pylist())
    assert sum(second.rows.values()) == min(2 * new, data.train.num_rows)
    assert second.distance_from_base > 0
    assert second.base == encoding.fingerprint(Path(training.base_model))
    store.delete([f"runs/{run}/train.json"])
    assert night.train(store, run, commit, training, tmp_path).version == second.version
