"""The guidance: which action at which number of pairs, and which advice beside it."""

from __future__ import annotations

import pytest

from data_checks.guidance import ANY_LANGUAGE, Guidance, foreign_languages, guide
from tasks.config import Checks

ENGLISH = frozenset({"en"})


def advice(pairs: int = 2_000, **changes: object) -> Guidance:
    """Guidance for plain English data and an English model, save for what is changed."""
    given = {"baseline_recall": 0.5, "languages": {"en": 1.0}, "supported": ENGLISH, "rule": Checks()} | changes
    return guide(pairs, **given)  # type: ignore[arg-type]  # a dictionary of several types


@pytest.mark.parametrize(
    ("pairs", "action", "says"),
    [
        (0, "skip", "off the shelf"),
        (99, "skip", "99 distinct pairs are fewer than 100"),
        (100, "fine-tune-with-warning", "fewer than 1,000"),
        (999, "fine-tune-with-warning", "the gain may be small"),
        (1_000, "fine-tune", "1,000 distinct pairs: usually enough"),
        (10_000, "fine-tune", "10,000 distinct pairs"),
    ],
)
def test_the_number_of_pairs_decides(pairs: int, action: str, says: str) -> None:
    """Under 100 off the shelf, 100 to 1,000 with a warning, from 1,000 fine-tune."""
    found = advice(pairs)
    assert found.action == action
    assert says in found.text


def test_the_bounds_are_the_rules() -> None:
    """Other bounds, other actions."""
    rule = Checks(min_pairs=10, warn_pairs=20)
    assert [advice(n, rule=rule).action for n in (9, 10, 20)] == ["skip", "fine-tune-with-warning", "fine-tune"]


@pytest.mark.parametrize(
    ("recall", "told"), [(None, False), (0.0, False), (0.899, False), (0.90, True), (0.95, True), (float("nan"), False)]
)
def test_recall_at_the_target_may_not_pay(recall: float | None, told: bool) -> None:
    """Said from the target on, and nothing else changes: the gate has the last word, not a rule of thumb."""
    found = advice(baseline_recall=recall)
    assert ("may not pay" in found.text) is told
    assert found.action == "fine-tune"


@pytest.mark.parametrize(
    ("languages", "supported", "told"),
    [
        ({"en": 0.85, "de": 0.15}, ENGLISH, True),
        ({"de": 1.0}, ENGLISH, True),
        ({"en": 0.9, "de": 0.06, "fr": 0.04}, ENGLISH, False),
        ({"en": 0.8, "de": 0.1, "fr": 0.1}, ENGLISH, True),
        ({"en": 0.85, "de": 0.15}, frozenset({"en", "de"}), False),
        ({"en": 0.85, "de": 0.15}, frozenset({ANY_LANGUAGE}), False),
        ({"en": 0.5, "und": 0.5}, ENGLISH, False),
        ({}, ENGLISH, False),
    ],
)
def test_foreign_languages_want_a_multilingual_model(
    languages: dict[str, float], supported: frozenset[str], told: bool
) -> None:
    """Advised when more than a tenth of the texts is in languages that the base model is not made for."""
    found = advice(languages=languages, supported=supported)
    assert ("start from a multilingual model" in found.text) is told
    assert found.action == "fine-tune"


def test_unknown_support_is_said_where_it_matters() -> None:
    """Only data that is not all English makes it worth a word, and it is no advice to change the model."""
    assert "unknown" in advice(languages={"en": 0.9, "de": 0.1}, supported=None).text
    assert "unknown" not in advice(languages={"en": 1.0}, supported=None).text


def test_foreign_languages_come_largest_first() -> None:
    """Ties by code, so that two runs say the same."""
    shares = {"en": 0.4, "fr": 0.1, "de": 0.1, "it": 0.3, "und": 0.1}
    assert list(foreign_languages(shares, ENGLISH).items()) == [("it", 0.3), ("de", 0.1), ("fr", 0.1)]
