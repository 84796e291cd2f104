"""The split: pure, for ever, blind to case, order and punctuation, and of the promised sizes."""

from __future__ import annotations

import json
import string
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.splits import RULE, SPLIT_KEY, STOP_WORDS, Split, SplitError, document_key, load_split, query_key
from tasks.storage import Store

WORDS = st.text(st.characters(categories=["Lu", "Ll", "Lo", "Nd"]), min_size=1, max_size=12)
QUERIES = st.lists(WORDS, min_size=1, max_size=8)
SPLIT = Split("salt")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("How do I reset my password?", "password reset"),
        ("Reset PASSWORD", "password reset"),
        ("password... reset, password!", "password reset"),
        ("Don\u2019t panic", "dont panic"),
        ("don't panic", "dont panic"),
        ("\uff52\uff45\uff53\uff45\uff54", "reset"),  # full-width letters
        ("pass\u00adword", "password"),  # soft hyphen
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("\ufb01le", "file"),  # the ligature fi
        ("पासवर्ड कैसे", "कैसे पासवर्ड"),  # vowel signs are marks: they stay
        ("without ssl", "ssl without"),
        ("Who are you?", "are who you"),
        ("???", "???"),
        (" ! \n ! ", "! !"),
        ("", ""),
    ],
)
def test_query_key(text: str, key: str) -> None:
    """The key of known queries, worked out by hand from the rule."""
    assert query_key(text) == key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("  Close\tthe\n\nValve. ", "close the valve."),
        ("\uff21\uff22\uff23 \u2460", "abc 1"),
        ("e\u0301", "\u00e9"),
        ("a\u00a0b\u3000c", "a b c"),
        (" \n", ""),
    ],
)
def test_document_key(text: str, key: str) -> None:
    """NFKC, casefold, white space collapsed, and nothing else: punctuation and order tell documents apart."""
    assert document_key(text) == key


PINNED = {
    "How do I repair pump 0?": "test",
    "How do I repair pump 1?": "train",
    "How do I repair pump 2?": "train",
    "How do I repair pump 3?": "dev",
    "How do I repair pump 13?": "test",
    "How do I repair pump 15?": "test",
    "How do I repair pump 19?": "dev",
    "Straße nach Köln": "train",
    "как сбросить пароль": "train",
    "如何重置密码": "train",
    "???": "train",
    "Who are you?": "train",
}


def test_sides_of_known_queries_never_change() -> None:
    """Pinned: if this fails, queries of every store there is would change sides."""
    sides = {query: Split("0123456789abcdef").side(query) for query in PINNED}
    assert sides == PINNED
    assert (RULE, len(STOP_WORDS)) == (1, 78)


@given(QUERIES, st.data())
def test_rewordings_stay_together(words: list[str], data: st.DataObject) -> None:
    """Case, order, repetition, punctuation between words and stop words do not move a query."""
    reworded = data.draw(st.permutations([*words, data.draw(st.sampled_from(words))]))
    marks = data.draw(st.lists(st.sampled_from(string.punctuation.replace("'", "")), max_size=3))
    text = f" {''.join(marks)} ".join(word.casefold() for word in reworded) + "?"
    if not {query_key(word) for word in words} <= STOP_WORDS:
        text = f"How is the {text}"
    assert query_key(text) == query_key(" ".join(words))
    assert SPLIT.side(text) == SPLIT.side(" ".join(words))


@given(st.text(st.characters(exclude_categories=[])))
def test_keys_are_total_and_settled(text: str) -> None:
    """Every text has a key and a side; keys of keys are the same; one document is one query."""
    assert document_key(document_key(text)) == document_key(text)
    assert query_key(document_key(text)) == query_key(text)
    assert SPLIT.side(text) in {"train", "dev", "test"}
    assert bool(query_key(text)) == bool(document_key(text))


@given(st.lists(st.text(), unique_by=query_key), st.data())
def test_order_of_arrival_does_not_matter(queries: list[str], data: st.DataObject) -> None:
    """A query's side depends on nothing but itself and the salt."""
    alone = {query: Split("salt").side(query) for query in queries}
    together = Split("salt")
    assert {query: together.side(query) for query in data.draw(st.permutations(queries))} == alone


@pytest.mark.parametrize("salt", ["a", "b", "c"])
def test_shares_are_close_to_what_was_asked(salt: str) -> None:
    """20,000 queries: each share within 4 standard errors (0.62 and 1.01 points)."""
    split = Split(salt)
    sides = [split.side(f"repair pump {i}") for i in range(20_000)]
    assert sides.count("dev") / 20_000 == pytest.approx(0.05, abs=0.0062)
    assert sides.count("test") / 20_000 == pytest.approx(0.15, abs=0.0101)


def test_salts_are_independent() -> None:
    """Another store tests on other queries: the two test sides meet in 0.15 * 0.15 of all queries."""
    sides = [(Split("a").side(f"pump {i}"), Split("b").side(f"pump {i}")) for i in range(20_000)]
    assert sides.count(("test", "test")) / 20_000 == pytest.approx(0.0225, abs=0.0042)


@pytest.mark.parametrize(
    ("salt", "dev", "test"),
    [("", 0.05, 0.15), ("s", -0.1, 0.15), ("s", 0.5, 0.5), ("s", 0.05, 0.0), ("s", float("nan"), 0.15)],
)
def test_a_split_without_sense_is_refused(salt: str, dev: float, test: float) -> None:
    """No salt, negative shares, nothing to train on, nothing to test on."""
    with pytest.raises(SplitError):
        Split(salt, dev, test)


def test_a_store_keeps_its_split(store: Store) -> None:
    """Made on first use, the same ever after, and its own."""
    first = load_split(store)
    assert load_split(store) == first
    assert len(first.salt) == 32
    assert (first.dev, first.test) == (0.05, 0.15)


def test_racing_first_uses_agree(store: Store) -> None:
    """Eight processes that meet an empty store get one split."""
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: load_split(store), range(8)))) == 1


def test_shares_are_the_stores_not_the_codes(store: Store) -> None:
    """A store made with other shares keeps them."""
    store.put(SPLIT_KEY, json.dumps({"rule": 1, "salt": "s", "dev": 0.1, "test": 0.2}).encode())
    assert load_split(store) == Split("s", 0.1, 0.2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"rule": 1, "salt": null, "dev": 0.05, "test": 0.15}',
        b'{"rule": 1, "salt": "s", "dev": "x", "test": 0.15}',
        b'{"rule": 1, "salt": "s", "dev": 0.05, "test": NaN}',
        b'{"rule": 2, "salt": "s", "dev": 0.05, "test": 0.15}',
        b"\xff",
    ],
)
def test_a_split_that_cannot_be_used_is_an_error(store: Store, body: bytes) -> None:
    """Never a new salt: that would move test queries into training."""
    store.put(SPLIT_KEY, body)
    with pytest.raises(SplitError, match=r"split\.json"):
        load_split(store)
    assert store.get(SPLIT_KEY).body == body
