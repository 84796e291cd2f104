"""Was a promotion right? Numbers that a person can check, and how often chance is taken for a loss."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.watch.confirmation import Comparison, Confirmation, compare, confirm


def _window(queries: int, won: int, lost: int) -> Comparison:
    """So many queries, some of which only one of the two finds, on both metrics."""
    sums, squares = dict.fromkeys(("recall_at_10", "mrr"), 1.0 * won - lost), {}
    squares = dict.fromkeys(sums, 1.0 * won + lost)
    return Comparison(version="before", queries=queries, sums=sums, squares=squares)


def _confirm(*windows: Comparison) -> Confirmation | None:
    return confirm(list(enumerate(windows, 5)))


def test_the_sums_of_a_window() -> None:
    """Differences of 0.5, 0 and -1: their sum is -0.5, that of their squares 1.25."""
    serving, before = np.array([1.0, 0.5, 0.0]), np.array([0.5, 0.5, 1.0])
    found = compare({"recall_at_10": serving, "mrr": before}, {"recall_at_10": before, "mrr": before}, None)
    assert found.model_dump() == {
        "version": None,
        "queries": 3,
        "sums": {"recall_at_10": -0.5, "mrr": 0.0},
        "squares": {"recall_at_10": 1.25, "mrr": 0.0},
        "clustered": None,
    }
    with pytest.raises(ValueError, match="not finite"):
        compare({"recall_at_10": serving, "mrr": serving * np.nan}, {"recall_at_10": before, "mrr": before}, None)


def test_a_loss_of_more_than_three_standard_errors_is_wrong() -> None:
    """Of 100 queries nine lost: -0.09 / 0.02876 = -3.13 standard errors. Eight: -0.08 / 0.02727 = -2.93."""
    wrong, fine = _confirm(_window(100, 0, 9)), _confirm(_window(100, 0, 8))
    assert wrong is not None
    assert fine is not None
    assert wrong.wrong == ["recall_at_10", "mrr"]
    assert (wrong.queries, wrong.gains["mrr"], wrong.version, wrong.first) == (100, -0.09, "before", 5)
    assert fine.wrong == []


def test_queries_for_one_document_count_together() -> None:
    """Of 100 queries ten lost: -0.1 / 0.03015 = -3.3 standard errors, if they ask for different documents.

    All ten for one of ten documents: its sum is -10, so the variance of the sum is
    (81 + 9) * 10 / 9 = 100, and -0.1 is one standard error of sqrt(100) / 100.
    """
    lost = np.array([1.0] * 10 + [0.0] * 90)
    scores = {"recall_at_10": np.ones(100), "mrr": np.ones(100)}
    fallen = {name: values - lost for name, values in scores.items()}

    def wrong(clusters: np.ndarray | None) -> bool:
        found = _confirm(compare(fallen, scores, None, clusters))
        assert found is not None
        return bool(found.wrong)

    assert wrong(None)
    assert wrong(np.arange(100))
    assert wrong(np.arange(100) % 10), "one lost of each"
    assert not wrong(np.arange(100) // 10)
    assert not wrong(np.zeros(100, dtype=np.int64)), "one document says nothing about others"
    together = compare(fallen, scores, None, np.arange(100) // 10).clustered
    assert together is not None
    assert (together.clusters, together.sizes, together.squares["mrr"], together.products["mrr"]) == (
        10,
        1000,
        100,
        -100,
    )


def test_either_metric_is_enough() -> None:
    """MRR lost on every query by the same: nothing is left to chance."""
    window = _window(100, 0, 0).model_copy(update={"sums": {"recall_at_10": 0.0, "mrr": -1.0},
                                                   "squares": {"recall_at_10": 0.0, "mrr": 0.01}})  # fmt: skip
    found = _confirm(window)
    assert found is not None
    assert found.wrong == ["mrr"]


def test_there_are_four_looks() -> None:
    """At 100, 200, 400 and 800 queries, added up over windows; nothing is looked at in between, or afterwards."""
    assert _confirm() is None
    assert _confirm(_window(99, 0, 50)) is None
    assert _confirm(_window(60, 0, 0), _window(60, 0, 1)).queries == 120  # type: ignore[union-attr]
    looks = [_confirm(*[_window(50, 1, 1)] * count) for count in range(1, 21)]
    assert [look.queries if look else 0 for look in looks] == [0] + 2 * [100] + 4 * [200] + 8 * [400] + 5 * [800]
    late = [_window(100, 1, 1)] * 8 + [_window(100, 0, 100)]
    assert _confirm(*late).wrong == []  # type: ignore[union-attr]


def test_a_promotion_that_was_wrong_stays_wrong() -> None:
    """The first look that says so is told, whatever comes after."""
    found = _confirm(_window(100, 0, 0), _window(100, 0, 40), _window(300, 200, 0))
    assert found is not None
    assert (found.first, found.queries) == (6, 200)


def test_a_promotion_that_changed_nothing_is_hardly_ever_wrong() -> None:
    """About 1% over all looks and two metrics (.95% of 40,000 simulated); a loss of 5 points is seen by 400 queries."""
    rng = np.random.default_rng(1)

    def share(loss: float, upto: int, promotions: int) -> float:
        wrong = 0
        for _ in range(promotions):
            windows = []
            for _ in range(upto // 100):
                one = rng.normal(-loss, 0.2, (100, 2))
                sums = dict(zip(("recall_at_10", "mrr"), one.sum(0).tolist(), strict=True))
                squares = dict(zip(("recall_at_10", "mrr"), (one**2).sum(0).tolist(), strict=True))
                windows.append(Comparison(version=None, queries=100, sums=sums, squares=squares))
            found = _confirm(*windows)
            wrong += found is not None and bool(found.wrong)
        return wrong / promotions

    assert share(0.0, 800, 2_000) <= 0.0145
    assert share(0.05, 400, 300) >= 0.93
