"""Clicks to pairs: places are allowed for, little evidence says nothing, and no verdict can rest on the result."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deployments import cli
from tasks.config import Limits
from tasks.dataset import build, sizes
from tasks.parsing import parse, ubi, ubi_files
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
    events += [_event(number, "impression", "a", 1) for number in range(10)]
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
        "the action purchase": 1,
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


_EXPECTED = [
    {"query": "reset pump", "document": "Text B.", "source": "clicks", "train_only": True, "negative": ["Text C."]}
]


def _pairs(*arguments: Any, **changed: Any) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in ubi.convert(*arguments, **changed).body.splitlines()]


def test_places_count_from_0_or_from_1() -> None:
    """The same search, its events with or without a place, counted from 0 or from 1, as number, text or object."""
    searches, events = _hundred()
    for first in (0, 1):
        for shape in (int, str, float, lambda place: {"index": place}):
            placed = [
                _event(int(one["query_id"][1:]), one["action_name"], document, shape("abc".index(document) + first))
                for one in events
                for document in [one["event_attributes"]["object"]["object_id"]]
            ]
            assert _pairs(searches, placed, TEXTS) == _EXPECTED
            blind = [{**search, "query_response_hit_ids": None} for search in searches]
            assert _pairs(blind, placed, TEXTS) == _EXPECTED
        # the clicks have a place, and what was shown has none: both must count from the same number
        mixed = [a if a["action_name"] == "impression" else b for a, b in zip(events, placed, strict=True)]
        assert ubi.convert(searches, mixed, TEXTS).rates == pytest.approx({1: 2 / 3, 2: 40 / 300, 3: 10 / 300})


def test_hits_are_what_was_shown_where_no_event_says_so() -> None:
    """No event of an impression at all, or one for the page without a document: the hits of every search count."""
    searches, events = _hundred()
    clicks = [event for event in events if event["action_name"] == "click"]
    pages = [{"action_name": "impression", "query_id": f"q{i}", "event_attributes": {}} for i in range(300)]
    for given in (clicks, [*pages, *clicks]):
        assert _pairs(searches, given, TEXTS) == _EXPECTED
        assert ubi.convert(searches, given, TEXTS).from_hits == 300
    blind = [{**search, "query_response_hit_ids": []} for search in searches]
    with pytest.raises(ConvertError, match="no click belongs to a search"):
        ubi.convert(blind, clicks, TEXTS)
    placed = [{**event, "event_attributes.position.ordinal": 2} for event in clicks]
    with pytest.raises(ConvertError, match="export impressions or query_response_hit_ids"):
        ubi.convert(blind, placed, TEXTS)


def test_a_click_is_what_the_export_calls_one() -> None:
    """In any case; other names have to be said, and the message lists those that are there."""
    searches, events = _hundred()
    loud = [{**event, "action_name": event["action_name"].upper()} for event in events]
    assert _pairs(searches, loud, TEXTS) == _EXPECTED
    named = [{**event, "action_name": event["action_name"].replace("click", "item_click")} for event in events]
    with pytest.raises(ConvertError, match=r"--relevant\)\? 250 left out: the action item_click"):
        ubi.convert(searches, named, TEXTS)
    assert _pairs(searches, named, TEXTS, clicks=("item_click",)) == _EXPECTED


def test_a_robot_makes_no_document_relevant() -> None:
    """One client searches 500 times and clicks c each time: of it ten searches count, and one voice."""
    searches, events = _hundred()
    people = [{**search, "client_id": f"person {search['query_id']}"} for search in searches]
    robot = [{**_search(i), "client_id": "robot"} for i in range(1000, 1500)]
    events += [_event(i, action, "c") for i in range(1000, 1500) for action in ("impression", "click")]
    found = ubi.convert([*people, *robot], events, TEXTS)
    assert [orjson.loads(line)["document"] for line in found.body.splitlines()] == ["Text B."]
    assert found.left_out == {"one client's further searches for the same": 490}
    one_client = [{**search, "client_id": "the shop's own server"} for search in searches]
    assert _pairs(one_client, _hundred()[1], TEXTS) == _EXPECTED


def test_a_search_that_is_there_twice_counts_once() -> None:
    """Logged by the browser and by the server; one query_id for two queries is none, and for two pages has no hits."""
    searches, events = _hundred()
    browser = [{**search, "query_response_hit_ids": []} for search in searches]
    assert _pairs([*browser, *searches, *browser], [*events, *events], TEXTS) == _EXPECTED
    found = ubi.convert([*searches, {**_search(299), "user_query": "quite another one"}], events, TEXTS)
    assert found.left_out == {"a query_id of several queries": 1, "no such search in ubi_queries": 4}
    found = ubi.convert([*searches, _search(299, "other 299", ("z", "y"))], events, TEXTS)
    assert found.left_out == {"no position, and not among the hits of its search": 4}


def test_queries_of_all_languages_are_put_together() -> None:
    """Wide forms of letters, composed and decomposed accents, case."""
    searches, events = _hundred()
    words = [
        "\uff43\uff41\uff46\u00e9 m\u00fcller",
        "Caf\u00e9 M\u00fcller",
        "cafe\u0301  mu\u0308ller",
        "Caf\u00e9 M\u00fcller",
    ]
    for number in range(100):
        searches[number]["user_query"] = words[number % 4]
    assert _pairs(searches, events, TEXTS) == [{**_EXPECTED[0], "query": words[1]}]


def _write(folder: Path, form: str, name: str, records: list[dict[str, Any]]) -> None:
    """One index as a file of this form, or as several."""
    wrapped = [{"_index": name, "_id": str(i), "_source": one} for i, one in enumerate(records)]
    answer = {"took": 1, "hits": {"total": {"value": len(records), "relation": "eq"}, "hits": wrapped}}
    bulk = [line for one in wrapped for line in ({"index": {"_index": name, "_id": one["_id"]}}, one["_source"])]
    lines = "\n".join(map(json.dumps, records)).encode()
    match form:
        case "parquet":
            pq.write_table(pa.Table.from_pylist(records), folder / f"{name}.parquet")
        case "several":
            (folder / name).mkdir()
            (folder / name / "_SUCCESS").touch()
            for part in range(3):
                text = "\n".join(map(json.dumps, records[part::3]))
                (folder / name / f"part-{part}.json.gz").write_bytes(gzip.compress(text.encode()))
        case "pages":
            for page in range(2):
                half = {**answer["hits"], "hits": wrapped[page::2]}  # type: ignore[dict-item]
                (folder / f"{name}-{page}.json").write_text(json.dumps({"took": 1, "hits": half}))
        case "csv":
            pd.json_normalize(records).to_csv(folder / f"{name}.csv", index=False)
        case "csv with objects":
            pd.DataFrame(records).to_csv(folder / f"{name}.csv", index=False, sep=";")
        case _:
            body = {
                "lines": lines,
                "array": json.dumps(records).encode(),
                "search": json.dumps(answer).encode(),
                "elasticdump": "\n".join(map(json.dumps, wrapped)).encode(),
                "bulk": "\n".join(map(json.dumps, bulk)).encode(),
                "utf-16": lines.decode().encode("utf-16"),
            }[form]
            (folder / f"{name}.json").write_bytes(body)
            (folder / f"{name}_mapping.json").write_text(json.dumps({name: {"mappings": {}}}))


def _convert(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """`ratchet convert` of the folder, with its documents; the exit status."""
    documents = folder / "documents.jsonl"
    documents.write_text("\n".join(json.dumps({"_id": key, "_source": {"text": text}}) for key, text in TEXTS.items()))
    arguments = ["convert", str(folder), str(folder / "pairs.jsonl"), "--documents", str(documents), *options]
    monkeypatch.setattr(sys, "argv", ["ratchet", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    "form",
    [
        "lines",
        "array",
        "search",
        "parquet",
        "elasticdump",
        "bulk",
        "several",
        "pages",
        "csv",
        "csv with objects",
        "utf-16",
    ],
)
def test_every_form_of_an_export_is_read(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, with the same pairs from each."""
    searches, events = _hundred()
    _write(tmp_path, form, "ubi_queries", searches)
    _write(tmp_path, form, "ubi_events", [*events, {"action_name": "login", "query_id": None}])
    assert _convert(tmp_path, monkeypatch) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "1 pairs in" in out
    assert "1 left out: the action login" in out
    body = (tmp_path / "pairs.jsonl").read_bytes()
    assert [orjson.loads(line) for line in body.splitlines()] == _EXPECTED
    (row,) = [row for chunk in parse("pairs/clicks.jsonl", body, Limits()) for row in chunk.rows.to_pylist()]
    assert (row["query"], row["source"], row["train_only"]) == ("reset pump", "clicks", True)


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        (
            "ubi_events.json",
            b'{"hits": {"total": {"value": 9999, "relation": "gte"}, "hits": [{"query_id": "q1"}]}}',
            "1 of the 9,999",
        ),
        ("ubi_events.json", b'{"query_id": "q1"}\n{"query_id": "q', "is not JSON, CSV or Parquet, or is damaged"),
        ("ubi_events.json.gz", gzip.compress(b'{"query_id": "q1"}', mtime=0)[:-9], "damaged"),
        ("ubi_events.csv", b"query_id,action_name\nq1,click,a\n", "another number of cells"),
        ("ubi_events.json", b'["q1", "click"]', "something that is not an object"),
    ],
)
def test_an_export_that_is_not_whole_is_refused(
    name: str,
    body: bytes,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A part of the events would change what is expected at each place; no file is written."""
    searches, events = _hundred()
    _write(tmp_path, "lines", "ubi_queries", searches)
    (tmp_path / "ubi_events-1.json").write_text("\n".join(map(json.dumps, events)))
    (tmp_path / name).write_bytes(body)
    assert _convert(tmp_path, monkeypatch) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "pairs.jsonl").exists()


def test_documents_need_a_text_and_one_only(tmp_path: Path) -> None:
    """Numbers are ids as well; two texts of one id would be a guess."""
    path = tmp_path / "documents.csv"
    path.write_text("id,title,text\n7,Pump,Reset.\n8,,Drain.\n7,Pump,Reset.\n")
    assert ubi_files.texts(path) == {"7": "Pump Reset.", "8": "Drain."}
    for more, said in (("7,Pump,Other.\n", "has the id '7' of another one"), (",a,b\n", "has no id or no text")):
        path.write_text("id,title,text\n7,Pump,Reset.\n" + more)
        with pytest.raises(ConvertError, match=said):
            ubi_files.texts(path)


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
