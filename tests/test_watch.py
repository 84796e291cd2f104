"""When production counts as drifted, and when it stands still: numbers that a person can check."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import Watch
from tasks.watch import Window, drift_began, measure, standstill

RULE = Watch(max_drop=0.05, windows=3, windows_below=2)


def _window(place: int, below: bool) -> Window:
    metrics = {"recall_at_10": 0.9, "mrr": 0.7}
    return Window(
        version="v", first=place + 1, last=place + 1, queries=50, scores=metrics, at_most=metrics, promoted=metrics,
        below=["mrr"] if below else [], run_id="r", at="2026-11-23T03:30:00Z",
    )  # fmt: skip


def _began(*below: bool, rule: Watch = RULE) -> int | None:
    return drift_began([_window(place, one) for place, one in enumerate(below)], rule)


@pytest.mark.parametrize(
    ("below", "began"),
    [
        ((), None),
        ((True,), None),
        ((True, True), 1),
        ((True, False, True), 2),
        ((True, False, False, True), None),
        ((False, True, True, False), 2),  # still two of the last three
        ((False, True, True, False, False), None),  # over
        ((True, True, True, True), 1),  # one drift, from where it began
        ((True, True, False, False, True, True), 5),  # over, and begun again
    ],
)
def test_two_of_the_last_three_windows(below: tuple[bool, ...], began: int | None) -> None:
    """One odd window never counts as drift; two of three do, from the second of them on."""
    assert _began(*below) == began


@given(st.lists(st.booleans(), max_size=12))
def test_drift_means_enough_of_the_latest_windows(below: list[bool]) -> None:
    """By the definition, whatever came before."""
    assert (_began(*below) is not None) == (sum(below[-3:]) >= 2)


def test_a_window_is_below_only_when_that_is_sure() -> None:
    """Promoted at 0.9 with 0.05 tolerated: 100 queries of which 60 are found are below; with 83 it may be chance."""
    promoted = {"recall_at_10": 0.9, "mrr": 0.5}

    def below(found: int) -> list[str]:
        recall = np.array([1.0] * found + [0.0] * (100 - found))
        return measure({"recall_at_10": recall, "mrr": np.full(100, 0.5)}, promoted, RULE).below

    assert below(60) == ["recall_at_10"]
    assert below(83) == []  # 0.83 is under 0.85, but not significantly
    assert below(95) == []


def test_the_figures_of_a_window() -> None:
    """All queries alike: the mean is certain, so the bound is the mean; exactly the tolerated drop is not below."""
    found = {"recall_at_10": np.full(40, 0.75), "mrr": np.full(40, 0.25)}
    measured = measure(found, {"recall_at_10": 0.8, "mrr": 0.5}, Watch(max_drop=0.25))
    assert measured.scores == measured.at_most == {"recall_at_10": 0.75, "mrr": 0.25}
    assert measured.below == []


@pytest.mark.parametrize(
    ("values", "promoted"),
    [
        (np.array([]), 0.5),
        (np.array([np.nan, 1.0]), 0.5),
        (np.array([1.0]), float("nan")),
    ],
)
def test_what_cannot_be_compared_is_an_error(values: np.ndarray, promoted: float) -> None:
    """Neither a quiet pass nor a false alarm."""
    with pytest.raises(ValueError, match=r"queries|finite"):
        measure({"recall_at_10": values, "mrr": values}, {"recall_at_10": promoted, "mrr": promoted}, RULE)
    with pytest.raises(ValueError, match="missing: \\['mrr'\\]"):
        measure({"recall_at_10": np.ones(3)}, {"recall_at_10": 1.0, "mrr": 1.0}, RULE)


def test_standing_still() -> None:
    """14 nights and 30 days are the limits; 0 switches one off; twice the limit is another time."""
    rule = Watch(max_nights=14, max_days=30)
    assert standstill(13, 29.9, rule) == []
    assert [(one.what, one.times) for one in standstill(14, 61.0, rule)] == [("nights", 1), ("days", 2)]
    assert standstill(99, 999.0, Watch(max_nights=0, max_days=0)) == []
    assert standstill(0, None, rule) == []
