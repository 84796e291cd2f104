"""Near duplicates of training queries: by hand, against the plain definition, and the same for every model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_checks import leaks
from data_checks.leaks import near_duplicates, nearest_training_query
from tasks.splits import query_key

TRAINED = ["How do I reset my password?", "cancel an order", "error 4012 on login"]


def test_similarity_by_hand() -> None:
    """The keys "password reset" and "passwords reset" share 14 of 14 and 15 characters: 28 / 29."""
    asked = ["reset passwords", "Cancel the order!", "pssword reset", "where are the invoices"]
    nearest = nearest_training_query(asked, TRAINED)
    assert nearest.tolist()[:3] == pytest.approx([28 / 29, 1.0, 26 / 27], abs=1e-4)
    assert near_duplicates(nearest).tolist() == [True, True, True, False]


def test_a_long_query_with_another_number_is_a_near_duplicate() -> None:
    """A short one is not: there the number is most of what is asked."""
    long = "how do I reset the password of my account when I have forgotten it, says customer {}"
    nearest = nearest_training_query([long.format(7), "part 17"], [long.format(8), "part 18"])
    assert near_duplicates(nearest).tolist() == [True, False]


def test_the_threshold_belongs_to_it() -> None:
    """Keys of ten characters that share nine are 0.9 similar: near enough; of eight that share seven not."""
    assert near_duplicates(nearest_training_query(["abcdefghix"], ["abcdefghij"])).tolist() == [True]
    assert near_duplicates(nearest_training_query(["abcdefgx"], ["abcdefgh"])).tolist() == [False]


def test_nothing_on_either_side() -> None:
    """No training query is near; no test query has nothing to be near to."""
    assert nearest_training_query(["a query"], []).tolist() == [0.0]
    assert nearest_training_query([], ["a query"]).shape == (0,)


def _indel(a: str, b: str) -> float:
    """2 * the longest common subsequence / both lengths, by the textbook's table."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row[:]
        for j, y in enumerate(b, 1):
            row[j] = before[j - 1] + 1 if x == y else max(before[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b)) if a or b else 1.0


words = st.lists(st.sampled_from(["reset", "resets", "card", "cards", "pin", "order 7", "order 8"]), min_size=1)
queries = st.lists(words.map(" ".join), max_size=6)


@given(queries, queries, st.integers(1, 20))
def test_any_queries_are_compared_by_the_definition(test: list[str], trained: list[str], cells: int) -> None:
    """In blocks of any size, each with each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaks, "_CELLS", cells)
        nearest = nearest_training_query(test, trained)
    plain = [max((_indel(query_key(q), query_key(other)) for other in trained), default=0.0) for q in test]
    assert nearest.tolist() == pytest.approx(plain, abs=1e-4)
