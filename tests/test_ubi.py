"""Clicks to pairs: places are allowed for, little evidence says nothing, and no verdict can rest on the result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deployments import cli
from tasks.config import Limits
from tasks.dataset import build, sizes
from tasks.parsing import parse, ubi
from tasks.parsing.exports import ConvertError
from tasks.splits import Split
from tests import rows

TEXTS = {"a": "Text A.", "b": "Text B.", "c": "Text C."}


def _search(number: int, query: str = "reset pump", hits: tuple[str, ...] = ("a", "b", "c")) -> dict[str, Any]:
    return {"query_id": f"q{number}", "user_query": query, "query_response_hit_ids": list(hits)}


def _event(number: int, action: str, document: str, place: int | None = None) -> dict[str, Any]:
    attributes: dict[str, Any] = {"object": {"object_id": document, "object_id_field": "id"}}
    if place is not None:
        attributes["position"] = {"ordinal": place}
    return {"action_name": action, "query_id": f"q{number}", "event_attributes": attributes}


def _hundred() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """100 searches that show a, b, c; a and b are clicked 40 times, c never; other queries click place 2 rarely."""
    searches = [_search(i) for i in range(100)] + [_search(i, f"other {i}") for i in range(100, 300)]
    events = [_event(i, "impression", document) for i in range(300) for document in "abc"]
    events += [_event(i, "click", "a") for i in range(40)] + [_event(i, "click", "a") for i in range(100, 260)]
    events += [_event(i, "click", "b") for i in range(60, 100)] + [_event(i, "click", "c") for i in range(290, 300)]
    return searches, events


def test_clicks_are_compared_with_what_their_place_gets() -> None:
    """Place 1 is clicked in 200 of 300 searches, place 2 in 40, place 3 in 10.

    So of 100 impressions a should have 66.7 clicks and has 40 (0.6 of them): not relevant. b has 40 of 13.3 (3 times):
    relevant. c has 0 of 3.3: a negative.
    """
    searches, events = _hundred()
    found = ubi.convert(iter(searches), iter(events), TEXTS)
    assert found.rates == pytest.approx({1: 2 / 3, 2: 40 / 300, 3: 10 / 300})
    assert [orjson.loads(line) for line in found.body.splitlines()] == [
        {"query": "reset pump", "document": "Text B.", "source": "clicks", "train_only": True, "negative": ["Text C."]}
    ]
    assert (found.pairs, found.negatives, found.clicks, found.impressions) == (1, 1, 250, 900)


def _others(first: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """90 searches, each of its own query, that show one document and get no click."""
    numbers = range(first, first + 90)
    searches = [_search(i, f"other query {i}", ("c",)) for i in numbers]
    return searches, [_event(i, "impression", "c") for i in numbers]


def test_little_evidence_says_nothing() -> None:
    """Shown nine times and clicked each time: too seldom. Two clicks of 10: too few, though a tenth is expected."""
    others, background = _others(100)
    searches = [*others, *(_search(i, hits=("a",)) for i in range(10))]
    shown = [_event(i, "impression", "a") for i in range(9)]
    events = [*background, *shown, *(_event(i, "click", "a") for i in range(9))]
    with pytest.raises(ConvertError, match="no document was shown 10 times"):
        ubi.convert(iter(searches), iter(events), TEXTS)
    assert ubi.convert(iter(searches), iter(events), TEXTS, least=9).pairs == 1
    events = [*background, *shown, _event(9, "impression", "a"), _event(0, "click", "a"), _event(1, "click", "a")]
    with pytest.raises(ConvertError, match="no document was shown"):
        ubi.convert(iter(searches), iter(events), TEXTS)


def test_a_search_counts_once_and_its_place_is_the_best_one() -> None:
    """Ten clicks of one document in one search are one click and one impression, at the best of its places."""
    others, background = _others(100)
    events = [_event(0, "click", "a", place) for place in (3, 1, 2)] * 10
    events += [_event(number, "click", "a", 1) for number in range(1, 10)]
    found = ubi.convert(iter([*others, *map(_search, range(10))]), iter([*background, *events]), TEXTS)
    assert (found.impressions, found.clicks, dict(found.rates)) == (100, 10, {1: 0.1})


def test_what_cannot_be_used_is_counted() -> None:
    """Unknown searches, events without an object, documents at no known place, and those without a text."""
    searches, events = _hundred()
    events += [_event(999, "click", "a"), {"action_name": "click", "query_id": "q1"}, _event(1, "click", "z")]
    events += [{"action_name": "purchase", "query_id": "q1"}]
    found = ubi.convert(iter(searches), iter(events), {"b": "Text B."})
    assert found.left_out == {
        "no such search in ubi_queries": 1,
        "no object_id": 1,
        "no position, and not among the hits of its search": 1,
    }
    assert found.without_text == 2
    assert found.negatives == 0
    for queries, clicks, said in (([], events, "no search"), (searches, [], "no click")):
        with pytest.raises(ConvertError, match=said):
            ubi.convert(iter(queries), iter(clicks), TEXTS)


def test_a_relevant_document_is_found_below_an_irrelevant_one() -> None:
    """People look at place 1 always, at place 5 one time in five; of what they look at they click what fits.

    2,000 searches of 40 queries, each document shown 50 times.
    """
    rng = np.random.default_rng(0)
    look = np.array([1.0, 0.6, 0.4, 0.3, 0.2])
    searches, events, right = [], [], {}
    for number in range(2_000):
        query = number % 40
        hits = [f"d{query}-{place}" for place in range(5)]
        fits = np.full(5, 0.15)
        fits[query % 5] = 0.8
        right[f"query number {query}"] = hits[query % 5]
        searches.append(_search(number, f"query number {query}", tuple(hits)))
        events += [_event(number, "impression", hit) for hit in hits]
        events += [_event(number, "click", hit) for hit in np.array(hits)[rng.random(5) < look * fits].tolist()]
    texts = {f"d{query}-{place}": f"d{query}-{place}" for query in range(40) for place in range(5)}
    found = [orjson.loads(line) for line in ubi.convert(iter(searches), iter(events), texts).body.splitlines()]
    correct = [right[row["query"]] == row["document"] for row in found]
    assert sum(correct) >= 36
    assert np.mean(correct) >= 0.9


@pytest.mark.parametrize("form", ["lines", "array", "search", "parquet", "elasticdump"])
def test_every_form_of_an_export_is_read(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command: JSON lines, an array, the answer of a search, Parquet, documents in `_source`."""
    searches, events = _hundred()

    def write(name: str, records: list[dict[str, Any]]) -> None:
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(records), tmp_path / f"{name}.parquet")
            return
        wrapped = [{"_id": str(i), "_source": one} for i, one in enumerate(records)]
        body = {
            "lines": "\n".join(map(json.dumps, records)),
            "array": json.dumps(records),
            "search": json.dumps({"took": 1, "hits": {"total": {"value": 1}, "hits": wrapped}}),
            "elasticdump": "\n".join(map(json.dumps, wrapped)),
        }[form]
        (tmp_path / f"{name}.json").write_text(body)

    write("ubi_queries", searches)
    write("ubi_events", events)
    documents = tmp_path / "documents.jsonl"
    documents.write_text("\n".join(json.dumps({"id": key, "text": text}) for key, text in TEXTS.items()))
    out = tmp_path / "pairs.jsonl"
    monkeypatch.setattr(sys, "argv", ["ratchet", "convert", str(tmp_path), str(out), "--documents", str(documents)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, capsys.readouterr().err
    assert "1 pairs in" in capsys.readouterr().out
    (row,) = [
        row for chunk in parse("pairs/clicks.jsonl", out.read_bytes(), Limits()) for row in chunk.rows.to_pylist()
    ]
    assert (row["query"], row["source"], row["train_only"]) == ("reset pump", "clicks", True)


def test_clicks_without_texts_are_an_error_of_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which option is missing."""
    (tmp_path / "ubi_queries.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["ratchet", "convert", str(tmp_path), str(tmp_path / "out.jsonl")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--documents" in capsys.readouterr().err


ALL_TEST, ALL_TRAIN = Split("s", dev=0.0, test=1 - 1e-12), Split("s", dev=0.0, test=1e-12)
_ROWS = [
    {"query": "reset pump", "document": "Expert's.", "source": "experts"},
    {"query": "pump reset", "document": "Clicked.", "source": "clicks", "train_only": True},
    {"query": "drain pump", "document": "Clicked too.", "source": "clicks", "train_only": True},
]


def test_rows_for_training_only_are_never_tested_on() -> None:
    """On the test side they ask nothing, say nothing relevant, name no source, and train nothing; both are counted."""
    table = rows.table(_ROWS)
    data = build(table, ALL_TEST)
    assert (data.test.queries, data.test.sources) == (["reset pump"], ["experts"])
    assert [[data.documents[i] for i in found] for found in data.test.relevant] == [["Expert's."]]
    assert data.train.num_rows == 0
    assert (sizes(table, ALL_TEST)["train_only"], sizes(table, ALL_TEST)["train_only_left_out"]) == (2, 2)
    assert sizes(table, ALL_TEST)["test"] == len(data.test)
    trained = build(table, ALL_TRAIN).train
    assert trained["document"].to_pylist() == ["Expert's.", "Clicked.", "Clicked too."]
    assert sizes(table, ALL_TRAIN)["train_only_left_out"] == 0


def test_a_golden_query_keeps_clicks_on_it_out_of_training() -> None:
    """Otherwise the golden test would leak by the way of the clicks."""
    data = build(rows.table([{**_ROWS[0], "kind": "golden"}, *_ROWS[1:]]), ALL_TRAIN)
    assert data.train["document"].to_pylist() == ["Clicked too."]


@pytest.mark.parametrize(
    ("key", "flag", "reason"),
    [
        ("pairs/a.jsonl", "perhaps", "train_only is neither true nor false"),
        ("golden/a.jsonl", True, "for training only, but in golden/"),
    ],
)
def test_a_mark_that_is_not_understood_costs_its_row(key: str, flag: object, reason: str) -> None:
    """Guessing would let clicks into the test."""
    lines = [{"query": "q", "document": "d", "train_only": flag}, {"query": "r", "document": "e", "train_only": False}]
    body = b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)
    chunks = list(parse(key, body, Limits()))
    assert [row.reason for chunk in chunks for row in chunk.rejected] == [reason]
    assert [one for chunk in chunks for one in chunk.rows["train_only"].to_pylist()] == [False]


def test_the_mark_is_read_from_csv_and_parquet(tmp_path: Path) -> None:
    """True, false and nothing; as words, numbers and Booleans."""
    table = pa.table({"query": ["q", "r", "s"], "document": ["d", "e", "f"], "train_only": [True, False, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    bodies = {"pairs/a.parquet": (tmp_path / "a.parquet").read_bytes()}
    bodies["pairs/a.csv"] = b"query,document,train_only\nq,d,True\nr,e,0\ns,f,\n"
    for key, body in bodies.items():
        flags = [one for chunk in parse(key, body, Limits()) for one in chunk.rows["train_only"].to_pylist()]
        assert flags == [True, False, None], key
