"""From rows to sets: small tables worked out by hand, then properties over arbitrary ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import dataset
from tasks.dataset import Dataset, EvaluationSet, build, encode_texts, flat_negatives, index_documents
from tasks.splits import Side, Split, document_key, query_key
from tests.rows import table

SPLIT = Split("salt")


def asked(side: Side, which: int = 0) -> str:
    """A query that the split puts on a side."""
    return [query for query in (f"repair pump {i}" for i in range(1_000)) if SPLIT.side(query) == side][which]


TRAIN, DEV, TEST = asked("train"), asked("dev"), asked("test")


def made(*rows: dict[str, Any]) -> Dataset:
    """The sets that rows make."""
    return build(table(list(rows)), SPLIT)


def relevant_texts(data: Dataset, part: EvaluationSet) -> dict[str, list[str]]:
    """Each query with the texts of its relevant documents."""
    return {q: [data.documents[i] for i in found] for q, found in zip(part.queries, part.relevant, strict=True)}


def test_each_query_goes_to_its_side() -> None:
    """One pair for each side: one row to train on, one query to develop on, one to test on, three documents."""
    data = made({"query": TRAIN, "document": "A"}, {"query": DEV, "document": "B"}, {"query": TEST, "document": "C"})
    assert data.train["query"].to_pylist() == [TRAIN]
    assert relevant_texts(data, data.dev) == {DEV: ["B"]}
    assert relevant_texts(data, data.test) == {TEST: ["C"]}
    assert data.documents == ["A", "B", "C"]
    assert data.counts == {"train": 1, "dev": 1, "test": 1, "corpus": 3}


def test_no_rows_make_empty_sets() -> None:
    """A store without rows is no error here: the data checks say what to do."""
    data = made()
    assert data.counts == {"train": 0, "dev": 0, "test": 0, "corpus": 0}
    assert data.test.excluded == 0


def test_documents_arrive_in_order_and_the_first_spelling_wins() -> None:
    """Documents, then that row's negatives, row by row, and further documents too."""
    data = made(
        {"query": TRAIN, "document": "Close the valve.", "negatives": ["Z", "Y"]},
        {"document": "close  the VALVE. ", "kind": "corpus"},
        {"query": TEST, "document": "X", "negatives": ["z", "W"]},
        {"document": "V", "kind": "corpus"},
    )
    assert data.documents == ["Close the valve.", "Z", "Y", "X", "W", "V"]


def test_golden_queries_are_tested_on_and_never_trained_on() -> None:
    """Also when pairs hold a rewording of one that the split would train on: it is tested on instead."""
    reworded = f"{TRAIN.upper()}, please!"
    data = made(
        {"query": reworded, "document": "A"},
        {"query": TRAIN, "document": "B", "kind": "golden"},
        {"query": asked("train", 1), "document": "C"},
    )
    assert data.train["document"].to_pylist() == ["C"]
    assert relevant_texts(data, data.test) == {reworded: ["A", "B"], TRAIN: ["A", "B"]}
    assert data.test.golden.tolist() == [False, True]
    assert len(data.dev) == 0


def test_rewordings_are_queries_of_their_own_and_share_their_labels() -> None:
    """Both spellings are asked; what is right for one is no miss for the other."""
    reworded = " ".join(reversed(TEST.split())) + "?"
    data = made(
        {"query": TEST, "document": "A"},
        {"query": reworded, "document": "B"},
        {"query": f" {TEST.upper()}", "document": "C"},
    )
    assert relevant_texts(data, data.test) == {TEST: ["A", "B", "C"], reworded: ["A", "B", "C"]}


@pytest.mark.parametrize(("score", "relevant"), [(None, True), (1.0, True), (0.5, True), (0.49, False), (0.0, False)])
def test_a_scored_row_is_relevant_from_the_threshold(score: float | None, relevant: bool) -> None:
    """A query whose documents are all under it has nothing to find: it is excluded, and counted."""
    data = made({"query": TEST, "document": "A", "score": score})
    assert (len(data.test), data.test.excluded) == ((1, 0) if relevant else (0, 1))
    assert data.documents == ["A"]


def test_training_rows_are_distinct_with_all_their_negatives() -> None:
    """Three spellings of one pair: the first row stays, with the negatives of all, each once."""
    data = made(
        {"query": TRAIN, "document": "A", "negatives": ["X"]},
        {"query": TRAIN.upper(), "document": " a ", "negatives": ["Y", "x"]},
        {"query": TRAIN, "document": "B"},
        {"query": TRAIN, "document": "A"},
    )
    assert data.train.select(["query", "document", "negatives", "line"]).to_pylist() == [
        {"query": TRAIN, "document": "A", "negatives": ["X", "Y"], "line": 1},
        {"query": TRAIN, "document": "B", "negatives": [], "line": 3},
    ]


def test_repeated_scores_are_averaged_and_unscored_rows_stay_apart() -> None:
    """0.2 and 0.6 for one pair are 0.4; the same pair without a score is another row."""
    data = made(
        {"query": TRAIN, "document": "A", "score": 0.2},
        {"query": TRAIN, "document": "A"},
        {"query": TRAIN, "document": "A", "score": 0.6},
        {"query": TRAIN, "document": "B", "score": 1.0},
    )
    assert data.train["score"].to_pylist() == [pytest.approx(0.4), None, 1.0]


def test_negatives_that_are_right_elsewhere_are_dropped() -> None:
    """A text that any row calls right for a rewording of the query, or the row's own document, is no negative."""
    data = made(
        {"query": TRAIN, "document": "A", "negatives": ["B", "a", "C", "D"]},
        {"query": f"{TRAIN}?", "document": "b"},
        {"query": asked("train", 1), "document": "C"},
        {"query": TRAIN, "document": "D", "score": 0.1},
    )
    assert data.train["negatives"].to_pylist()[0] == ["C", "D"]


def test_known_positives_can_be_read_off_the_training_rows() -> None:
    """Rewordings share a `query_id`, and `document_id` points into the documents."""
    data = made(
        {"query": TRAIN, "document": "A"},
        {"query": f"{TRAIN}?", "document": "B"},
        {"query": asked("train", 1), "document": "a"},
    )
    first, second, other = data.train["query_id"].to_pylist()
    assert first == second != other
    assert [data.documents[i] for i in data.train["document_id"].to_pylist()] == ["A", "B", "A"]


def test_slices_are_the_first_that_a_query_names() -> None:
    """Null until a row says otherwise; later rows do not change it."""
    data = made(
        {"query": TEST, "document": "A"},
        {"query": TEST, "document": "B", "slice": "pumps"},
        {"query": TEST, "document": "C", "slice": "valves"},
        {"query": asked("test", 1), "document": "D"},
    )
    assert data.test.slices == ["pumps", None]


def test_sources_are_kept_beside_slices() -> None:
    """Both columns break metrics down: a query may be of a slice, and its labels of a source."""
    data = made(
        {"query": TEST, "document": "A", "slice": "pumps"},
        {"query": TEST, "document": "B", "source": "clicks"},
        {"query": asked("test", 1), "document": "D", "source": "experts"},
    )
    assert (data.test.slices, data.test.sources) == (["pumps", None], ["clicks", "experts"])


TEXTS = st.sampled_from(["a", "A", " a", "b", "B c", "c b", "c  B", "d?", "D", "the d", "e", "\uff45", ""])
ROW = st.fixed_dictionaries(
    {
        "query": TEXTS.map(lambda text: f"pump {text}"),
        "document": TEXTS,
        "negatives": st.lists(TEXTS, max_size=3),
        "score": st.none() | st.sampled_from([0.0, 0.5, 1.0]),
        "kind": st.sampled_from(["pair", "pair", "pair", "golden", "corpus"]),
        "slice": st.none() | st.sampled_from(["x", "y"]),
    }
).map(lambda row: row | {"query": None, "negatives": []} if row["kind"] == "corpus" else row)


def plainly(rows: list[dict[str, Any]], split: Split) -> dict[str, Any]:
    """The sets as dictionaries of keys, by the definition and nothing else."""
    golden = {query_key(row["query"]) for row in rows if row["kind"] == "golden"}
    right: dict[str, set[str]] = {}
    sides: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    for row in rows:
        if row["kind"] != "corpus":
            key = query_key(row["query"])
            sides["test" if key in golden else split.side(row["query"])].add(document_key(row["query"]))
            if row["score"] is None or row["score"] >= 0.5:
                right.setdefault(key, set()).add(document_key(row["document"]))
    return {
        "documents": {document_key(text) for row in rows for text in (row["document"], *row["negatives"])},
        "train": {
            (document_key(row["query"]), document_key(row["document"]), row["score"] is not None)
            for row in rows
            if row["kind"] != "corpus" and document_key(row["query"]) in sides["train"]
        },
        **{side: {q: right[query_key(q)] for q in sides[side] if query_key(q) in right} for side in ("dev", "test")},
    }


@settings(max_examples=200, deadline=None)
@given(st.lists(ROW, max_size=25), st.sampled_from([Split("a"), Split("b", 0.3, 0.3)]), st.integers(1, 6))
def test_sets_agree_with_their_definition(rows: list[dict[str, Any]], split: Split, chunk: int) -> None:
    """Against a plain reading of the rules, however the rows lie in memory; nothing trained on is tested on."""
    whole = table(rows)
    data = build(pa.concat_tables([whole.slice(i, chunk) for i in range(0, len(rows), chunk)] or [whole]), split)
    assert dataset.sizes(whole, split) == data.counts
    wanted = plainly(rows, split)
    keys = [document_key(text) for text in data.documents]
    assert len(keys) == len(set(keys))
    assert set(keys) == wanted["documents"]
    trained = list(
        zip(
            map(document_key, data.train["query"].to_pylist()),
            map(document_key, data.train["document"].to_pylist()),
            [score is not None for score in data.train["score"].to_pylist()],
            strict=True,
        )
    )
    assert len(trained) == len(set(trained))
    assert set(trained) == wanted["train"]
    for side, part in (("dev", data.dev), ("test", data.test)):
        assert len(set(map(document_key, part.queries))) == len(part)
        found = {document_key(q): {keys[i] for i in r} for q, r in zip(part.queries, part.relevant, strict=True)}
        assert found == wanted[side]
        assert all(np.all(np.diff(r) > 0) for r in part.relevant)
        assert not {query_key(q) for q in part.queries} & {query_key(q) for q, _, _ in trained}


@settings(max_examples=50, deadline=None)
@given(st.lists(ROW, max_size=25), st.data())
def test_the_order_of_arrival_changes_no_set(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    """Shuffled rows are the same documents, queries and labels."""
    first = build(table(rows), SPLIT)
    second = build(table(data.draw(st.permutations(rows))), SPLIT)
    assert set(map(document_key, first.documents)) == set(map(document_key, second.documents))
    for one, other in ((first.dev, second.dev), (first.test, second.test)):
        assert set(map(document_key, one.queries)) == set(map(document_key, other.queries))
        assert one.excluded == other.excluded
    assert first.train.num_rows == second.train.num_rows


@given(st.lists(st.lists(TEXTS | st.none(), max_size=6), max_size=5), st.sampled_from([document_key, query_key, str]))
def test_texts_are_numbered_by_key(chunks: list[list[str | None]], key: Callable[[str], str]) -> None:
    """Equal numbers for equal keys and for no others, in order of appearance, whatever the chunks."""
    texts = [text or "" for chunk in chunks for text in chunk]
    found = encode_texts(pa.chunked_array(chunks, pa.string()), key)
    first = list(dict.fromkeys(map(key, texts)))
    assert found.codes.tolist() == [first.index(key(text)) for text in texts]
    assert [key(texts[i]) for i in found.first] == first


def test_negatives_know_their_rows_in_slices_too() -> None:
    """A table cut out of a larger one, in chunks: row numbers count from its own start."""
    rows = table([{"query": "q", "document": "d", "negatives": [f"{i}", "x"][: i % 3]} for i in range(9)])
    cut = pa.concat_tables([rows.slice(1, 3), rows.slice(6, 3)])  # rows 1, 2, 3 and 6, 7, 8
    texts, places = flat_negatives(cut)
    assert texts.to_pylist() == ["1", "2", "x", "7", "8", "x"]
    assert places.tolist() == [0, 1, 1, 4, 5, 5]
    assert index_documents(cut).negative_row.tolist() == places.tolist()


def test_many_texts_are_numbered_in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distinct texts are taken into Python a few at a time: the numbers do not depend on how many."""
    texts = pa.chunked_array([[f"text {i % 37}" for i in range(200)]])
    whole = encode_texts(texts, document_key)
    monkeypatch.setattr(dataset, "_CHUNK", 5)
    assert encode_texts(texts, document_key).codes.tolist() == whole.codes.tolist()
