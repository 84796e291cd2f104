"""The gate: what it promotes, and everything that it must not.

Each `check_...` is a function of the gate's module, so that the mutation tests can run all of them on a gate with a
planted fault.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks import gate as real_gate
from tasks.config import Gate

Floats = NDArray[np.float64]

RULE = Gate(resamples=1_000)


def column(queries: int, wins: int, losses: int = 0) -> tuple[Floats, Floats]:
    """Candidate and production, of 0s and 1s.

    The first `wins` queries only the candidate answers, the next `losses` only production, half of the rest both.
    """
    both = (np.arange(queries) % 2).astype(np.float64)
    candidate, production = both.copy(), both.copy()
    candidate[:wins], production[:wins] = 1, 0
    candidate[wins : wins + losses], production[wins : wins + losses] = 0, 1
    return candidate, production


def judge(
    gate: ModuleType,
    recall: tuple[Floats, Floats],
    mrr: tuple[Floats, Floats] | None = None,
    *,
    rule: Gate = RULE,
    vetoes: Sequence[str] = (),
    candidate: Mapping[str, Any] | None = None,
    production: Mapping[str, Any] | None = None,
    **more: Any,
) -> Any:
    """Decide on (candidate, production) columns; MRR's are Recall@10's unless given.

    `more` holds fields that both sides share (`slices`, `clusters`, `near_duplicates`), and columns of further metrics.
    `candidate` and `production` replace fields of that side's scores.
    """
    shared = {name: more.pop(name) for name in ("slices", "clusters", "near_duplicates") if name in more}
    columns = {"recall_at_10": recall, "mrr": mrr or recall, **more}
    queries = tuple(f"query {i}" for i in range(len(recall[0])))
    sides = [
        gate.Scores(model, queries, {name: pair[i] for name, pair in columns.items()}, **shared)
        for i, model in enumerate(("fingerprint of the candidate", "fingerprint of production"))
    ]
    sides[0] = dataclasses.replace(sides[0], **(candidate or {}))
    sides[1] = dataclasses.replace(sides[1], **(production or {}))
    try:
        return gate.decide(*sides, rule, vetoes=vetoes)
    except (KeyError, IndexError, ValueError, ArithmeticError) as error:
        raise AssertionError(f"decide must give a verdict on any scores, but raised {error!r}") from error


def first(count: int, queries: int) -> NDArray[np.bool_]:
    """A mask of the first `count` queries."""
    return np.arange(queries) < count


CLEAR = column(400, wins=60)
"""A gain of 15 points that nobody would call chance."""


# --- verdicts ---------------------------------------------------------------------------------------------------


def check_a_clear_gain_is_promoted(gate: ModuleType) -> None:
    """15 points on 400 queries, on both metrics; the reasons name both, with the means."""
    decision = judge(gate, CLEAR)
    assert decision.verdict == "promoted"
    assert decision.deltas["recall_at_10"].value == 0.15
    assert "Recall@10 rose by 15.00 points (0.4250 to 0.5750)" in decision.reasons[0]
    assert "MRR rose by 15.00 points" in decision.reasons[1]


def check_a_clear_loss_is_regressed(gate: ModuleType) -> None:
    """The same with the sides swapped."""
    decision = judge(gate, column(400, wins=0, losses=60))
    assert decision.verdict == "regressed"
    assert decision.deltas["mrr"].value == -0.15
    assert "Recall@10 fell by 15.00 points (0.5750 to 0.4250)" in decision.reasons[0]


def check_equal_scores_are_held(gate: ModuleType) -> None:
    """Not one query differs: neither better nor worse, and no number of queries would tell."""
    decision = judge(gate, column(400, wins=0))
    assert decision.verdict == "held"
    assert (decision.deltas["mrr"].low, decision.deltas["mrr"].high) == (0, 0)
    assert decision.needed_queries == {}
    assert decision.mde == {}


def check_wins_and_losses_that_cancel_are_held(gate: ModuleType) -> None:
    """Forty queries won and forty lost are a gain of zero, also where the differences are thirds."""
    decision = judge(gate, tuple(side / 3 for side in column(400, wins=40, losses=40)))
    assert decision.verdict == "held"
    assert decision.deltas["recall_at_10"].value == 0


def check_a_small_gain_is_held_with_what_it_would_take(gate: ModuleType) -> None:
    """Twelve won and eight lost of 400 may be chance; what one, two and three points would take is said."""
    decision = judge(gate, column(400, wins=12, losses=8))
    assert decision.verdict == "held"
    assert decision.deltas["mrr"].value == 0.01
    assert decision.deltas["mrr"].low < 0 < decision.deltas["mrr"].high
    assert decision.needed_queries == {"1": 6400, "2": 1600, "3": 712}, "((2.3263 + 1.2505) * 0.223663 / 0.01) squared"
    assert any("may be chance" in reason for reason in decision.reasons)
    assert any("6,400 for 1 point, 1,600 for 2 points, 712 for 3 points" in reason for reason in decision.reasons)


def check_a_small_loss_is_held(gate: ModuleType) -> None:
    """Eight won and twelve lost may be chance too: no alarm."""
    assert judge(gate, column(400, wins=8, losses=12)).verdict == "held"


def check_a_fall_within_the_margin_is_held(gate: ModuleType) -> None:
    """Every query lower by 1.5 points is a regression, by one point or less is not, however sure that is."""

    def lower(by: float, **changes: float) -> str:
        pair = np.full(400, 0.6 - by), np.full(400, 0.6)
        return str(judge(gate, pair, CLEAR, rule=Gate(resamples=1_000, **changes)).verdict)

    assert lower(0.015) == "regressed"
    assert [lower(0.01), lower(0.005)] == ["held", "held"]
    assert [lower(0.015, max_regression=0.02), lower(0.005, max_regression=0)] == ["held", "regressed"]


def check_a_regression_needs_half_the_error(gate: ModuleType) -> None:
    """Six won and 23 lost of 400: 2.44 standard errors below -1 point, more than 99% (2.34) and less than 99.5% (2.59).

    Either metric may say that a candidate regressed, so each gets half of the error.
    """
    held = judge(gate, column(400, wins=6, losses=23))
    assert held.verdict == "held"
    regressed = judge(gate, column(400, wins=6, losses=25))
    assert regressed.verdict == "regressed"
    assert "99.5% confidence the true change is at most -1." in regressed.reasons[0]


def check_both_metrics_must_gain(gate: ModuleType) -> None:
    """A clear gain on one with nothing, or chance, on the other is held, whichever it is."""
    for other in (column(400, wins=0), column(400, wins=12, losses=8)):
        assert judge(gate, CLEAR, other).verdict == "held"
        assert judge(gate, other, CLEAR).verdict == "held"


def check_a_win_on_one_metric_does_not_buy_a_loss_on_the_other(gate: ModuleType) -> None:
    """A clear loss on either is a regression."""
    loss = column(400, wins=0, losses=60)
    assert judge(gate, CLEAR, loss).verdict == "regressed"
    assert judge(gate, loss, CLEAR).verdict == "regressed"


def check_no_other_metric_may_get_worse(gate: ModuleType) -> None:
    """NDCG@10 clearly below production holds a candidate that wins on both decisive ones; a chance fall does not."""
    worse = judge(gate, CLEAR, ndcg_at_10=column(400, wins=0, losses=60))
    assert worse.verdict == "held"
    assert any("NDCG@10 fell" in reason and "No metric may get worse" in reason for reason in worse.reasons)
    assert judge(gate, CLEAR, ndcg_at_10=column(400, wins=8, losses=12)).verdict == "promoted"


def check_the_gain_must_exceed_min_gain(gate: ModuleType) -> None:
    """15 points are more than 14.9, and not more than 15."""
    assert judge(gate, CLEAR, rule=Gate(resamples=1_000, min_gain=0.149)).verdict == "promoted"
    held = judge(gate, CLEAR, rule=Gate(resamples=1_000, min_gain=0.15))
    assert held.verdict == "held"
    assert any("more than 15.00 points" in reason for reason in held.reasons)


def check_the_confidence_is_the_rules(gate: ModuleType) -> None:
    """Eighteen won and eight lost: above zero with 95% confidence (z = 1.98), not with 99%."""
    pair = column(400, wins=18, losses=8)
    sure, unsure = (judge(gate, pair, rule=Gate(resamples=4_000, confidence=c)) for c in (0.95, 0.99))
    assert (sure.verdict, unsure.verdict) == ("promoted", "held")
    assert unsure.deltas["mrr"].low < sure.deltas["mrr"].low
    assert unsure.deltas["mrr"].high > sure.deltas["mrr"].high
    assert (sure.deltas["mrr"].confidence, unsure.deltas["mrr"].confidence) == (0.95, 0.99)
    flipped = column(400, wins=6, losses=23)
    verdicts = [judge(gate, flipped, rule=Gate(resamples=4_000, confidence=c)).verdict for c in (0.95, 0.99)]
    assert verdicts == ["regressed", "held"]


def check_too_few_test_queries_never_promote(gate: ModuleType) -> None:
    """49 queries, all of them won, are held; with 50 it is promoted."""
    held = judge(gate, column(49, wins=49))
    assert held.verdict == "held"
    assert any("49 test queries are too few" in reason and "50" in reason for reason in held.reasons)
    assert judge(gate, column(50, wins=50)).verdict == "promoted"


def check_a_handful_of_queries_proves_nothing(gate: ModuleType) -> None:
    """Six queries, or six differing ones of 400, agree by chance once in 64; seven once in 128, which is rare enough.

    The bootstrap alone would be sure from the first query on.
    """
    rule = Gate(resamples=1_000, min_test_queries=1)
    for queries in (1, 2, 6, 400):
        few = min(queries, 6)
        assert judge(gate, column(queries, wins=few), rule=rule).verdict == "held", queries
        assert judge(gate, column(queries, wins=0, losses=few), rule=rule).verdict == "held", queries
    assert judge(gate, column(7, wins=7), rule=rule).verdict == "promoted"
    assert judge(gate, column(7, wins=0, losses=7), rule=rule).verdict == "regressed"


def check_a_veto_holds_what_would_be_promoted(gate: ModuleType) -> None:
    """With its reason; it changes no other verdict, and is told there as well."""
    veto = "It serves other vectors than were scored."
    assert judge(gate, CLEAR).verdict == "promoted"
    held = judge(gate, CLEAR, vetoes=[veto, "And it is slow."])
    assert held.verdict == "held"
    assert held.reasons[1:] == (veto, "And it is slow.")
    assert "must not serve" in held.reasons[0]
    assert held.deltas == judge(gate, CLEAR).deltas
    for pair, verdict in ((CLEAR[::-1], "regressed"), (column(400, wins=12, losses=8), "held")):
        decision = judge(gate, pair, vetoes=[veto])
        assert decision.verdict == verdict
        assert veto in decision.reasons
    assert veto in judge(gate, CLEAR, candidate={"model": ""}, vetoes=[veto]).reasons


# --- the bootstrap ----------------------------------------------------------------------------------------------


def check_bounds_are_where_statistics_puts_them(gate: ModuleType) -> None:
    """80 won of 400: 0.2 with a standard error of 0.02, so 0.2 -+ 2.326 * 0.02 = 0.153 and 0.247."""
    delta = judge(gate, column(400, wins=80), rule=Gate(resamples=20_000)).deltas["recall_at_10"]
    assert delta.value == 0.2
    assert abs(delta.low - 0.153) < 0.003
    assert abs(delta.high - 0.247) < 0.003


def check_the_bootstrap_is_paired(gate: ModuleType) -> None:
    """Queries differ widely, the candidate is better by two points on nearly each: only paired differences show it."""
    rng = np.random.default_rng(0)
    production = rng.uniform(0, 0.9, 300)
    candidate = production + rng.normal(0.02, 0.03, 300).clip(-0.05, 0.1).clip(-production, 1 - production)
    decision = judge(gate, (candidate, production))
    assert decision.verdict == "promoted"
    assert decision.deltas["mrr"].high - decision.deltas["mrr"].low < 0.01


def check_every_query_is_drawn(gate: ModuleType) -> None:
    """Each of eight queries makes an eighth of the resamples on average, never nothing and never all."""
    shares = gate.bootstrap_means(np.eye(8), 2_000, 0)  # (2000, 8): how often each query is in each resample
    assert np.all(np.abs(shares.mean(axis=0) - 1 / 8) < 0.01)
    assert np.all(shares.std(axis=0) > 0.1), "sqrt(7 / 8 / 8 / 8) = 0.117"
    assert np.array_equal(shares, gate.bootstrap_means(np.eye(8), 2_000, 0)), "the same seed, the same resamples"


def check_metrics_share_their_resamples(gate: ModuleType) -> None:
    """The same differences have the same bounds under every name."""
    decision = judge(gate, column(400, wins=12, losses=8), ndcg_at_10=column(400, wins=12, losses=8))
    bounds = {(delta.value, delta.low, delta.high) for delta in decision.deltas.values()}
    assert len(bounds) == 1
    assert len(decision.deltas) == 3


def check_swapping_the_sides_mirrors_the_bounds(gate: ModuleType) -> None:
    """Candidate minus production, not the other way round."""
    there, back = judge(gate, column(400, wins=30, losses=8)), judge(gate, column(400, wins=8, losses=30))
    a, b = there.deltas["mrr"], back.deltas["mrr"]
    assert a.value == -b.value == 0.055
    assert abs(a.low + b.high) < 0.006
    assert abs(a.high + b.low) < 0.006
    assert a.low < a.value < a.high


def check_the_seed_fixes_the_bounds(gate: ModuleType) -> None:
    """The same seed gives the same decision, another seed other resamples."""
    pair = column(400, wins=30, losses=8)
    same, again, other = (judge(gate, pair, rule=Gate(resamples=1_000, seed=seed)) for seed in (1, 1, 2))
    assert same == again
    many = [judge(gate, pair, rule=Gate(resamples=1_000, seed=seed)).deltas["mrr"].low for seed in range(5)]
    assert len(set(many)) > 1
    assert other.verdict == same.verdict


def check_resamples_in_several_blocks_are_all_filled(gate: ModuleType) -> None:
    """Enough queries that the resamples do not fit one block: the bounds stay where they belong."""
    delta = judge(gate, column(3_000, wins=600), rule=Gate(resamples=2_000)).deltas["mrr"]
    assert abs(delta.low - (0.2 - 2.326 * 0.0073)) < 0.003
    assert abs(delta.high - (0.2 + 2.326 * 0.0073)) < 0.003


def check_detectable_and_needed_follow_the_formula(gate: ModuleType) -> None:
    """99% and 8 of 10 nights for both metrics, so 89% for each: 2.3263 + 1.2505 standard errors."""
    decision = judge(gate, column(400, wins=12, losses=8))
    assert set(decision.mde) == {"recall_at_10", "mrr"}
    assert abs(decision.mde["mrr"] - 0.04013) < 1e-5, "3.5882 * 0.223663 / sqrt(400), with 399 degrees of freedom"
    assert gate.queries_for(0.01, [0.01, 0.02], 100, 3.0) == 3600, "(3 * 0.02 / 0.01) squared, times 100"
    assert gate.queries_for(0.01, [0.01, 0.0], 100, 3.0) is None
    clustered = judge(gate, column(400, wins=12, losses=8), clusters=np.arange(400) // 10)
    assert clustered.mde["mrr"] > 1.5 * decision.mde["mrr"]
    assert clustered.needed_queries["1"] > 2 * decision.needed_queries["1"]


def check_few_documents_detect_little(gate: ModuleType) -> None:
    """400 queries for one document show nothing, and it is said; those for four are four witnesses.

    Four clusters, each with five won: an error of sd / sqrt(400), and 4.5407 + 1.5792 with 3 degrees of freedom.
    """
    pair = column(400, wins=20)
    one = judge(gate, pair, clusters=np.zeros(400, dtype=int))
    assert one.verdict == "held"
    assert (one.mde, one.needed_queries) == ({}, {})
    assert any("ask for one document" in reason for reason in one.reasons)
    four = judge(gate, pair, clusters=np.arange(400) % 4)
    assert abs(four.mde["mrr"] - 6.1199 * 0.21822 / 20) < 1e-3
    assert four.needed_queries
    assert not any("ask for one document" in reason for reason in four.reasons)
    assert not any("ask for one document" in reason for reason in judge(gate, column(1, wins=1)).reasons)


def check_needed_queries_are_those_of_the_harder_metric(gate: ModuleType) -> None:
    """Whichever that is: the one whose differences vary more."""
    harder, easier = column(400, wins=12, losses=8), column(400, wins=6, losses=4)
    needed = {"1": 6400, "2": 1600, "3": 712}
    assert judge(gate, harder, easier).needed_queries == judge(gate, easier, harder).needed_queries == needed


# --- clusters ---------------------------------------------------------------------------------------------------


def check_the_clustered_error_is_the_jackknifes(gate: ModuleType) -> None:
    """Three clusters of two with sums 1, 0 and 0.4: without each the mean is 0.1, 0.35, 0.25 beside 0.2333.

    (2/3 * (0.1333^2 + 0.1167^2 + 0.0167^2)) ** 0.5 = 0.1453; independent queries would have 0.0955.
    """
    differences = np.array([0.5, 0.5, 0.0, 0.0, 0.1, 0.3])
    error, effective = gate.clustered_error(differences, np.array([7, 7, 3, 3, 5, 5]))
    assert abs(error - 0.145297) < 1e-6
    assert effective == 3
    assert gate.clustered_error(differences, np.array([1, 1, 1, 1, 2, 3]))[1] == 2, "36 / (16 + 1 + 1)"
    independent = gate.clustered_error(differences, None)
    assert abs(independent[0] - 0.095452) < 1e-6
    assert independent[1] == 6
    assert gate.clustered_error(differences, np.arange(6)) == independent
    alternating = np.array([0.5, -0.5, 0.5, -0.5, 0.5, -0.5])
    error, _ = gate.clustered_error(alternating, np.array([0, 0, 1, 1, 2, 2]))
    assert abs(error - 0.223607) < 1e-6, "clusters that cancel out are no more sure than independent queries"


def check_clustered_bounds_are_students(gate: ModuleType) -> None:
    """t(0.99, 2) = 6.9646: 0.2333 - 6.9646 * 0.1453 = -0.7786; above 1 there is nothing; one cluster knows nothing."""
    differences = np.array([0.5, 0.5, 0.0, 0.0, 0.1, 0.3])
    found = gate.t_interval(differences, np.array([7, 7, 3, 3, 5, 5]), 0.99)
    assert abs(found.low + 0.778603) < 1e-5
    assert found.high == 1
    found = gate.t_interval(differences, np.zeros(6, dtype=int), 0.99)
    assert (found.value, found.low, found.high) == (0.233333333333, -1, 1)


def check_queries_for_one_document_count_together(gate: ModuleType) -> None:
    """Sixty of 400 won are clear; where they are all queries for three of twenty documents, they are three witnesses.

    Nor is the same the other way round a regression. Spread over all documents they are as clear as before.
    """
    together, spread = np.arange(400) // 20, np.arange(400) % 20
    assert judge(gate, CLEAR, clusters=np.arange(400)).verdict == "promoted"
    assert judge(gate, CLEAR, clusters=spread).verdict == "promoted"
    held = judge(gate, CLEAR, clusters=together)
    assert held.verdict == "held"
    assert held.deltas["mrr"].low < 0 < judge(gate, CLEAR).deltas["mrr"].low
    assert judge(gate, CLEAR[::-1], clusters=together).verdict == "held"
    assert judge(gate, CLEAR[::-1], clusters=spread).verdict == "regressed"
    assert judge(gate, CLEAR, clusters=np.zeros(400, dtype=int)).verdict == "held"


def check_bounds_are_the_wider_of_two(gate: ModuleType) -> None:
    """Clusters that cancel out leave the bootstrap's bounds, which are then no narrower than without clusters."""
    plain, clustered = judge(gate, CLEAR), judge(gate, CLEAR, clusters=np.arange(400) % 2)
    assert clustered.deltas["mrr"].low <= plain.deltas["mrr"].low
    few = column(60, wins=10)
    assert judge(gate, few).deltas["mrr"].high >= gate.t_interval(few[0] - few[1], None, 0.99).high
    assert judge(gate, few).deltas["mrr"].low <= gate.t_interval(few[0] - few[1], None, 0.99).low
    lost = (few[1], few[0])
    assert judge(gate, lost).deltas["mrr"].low <= gate.t_interval(lost[0] - lost[1], None, 0.99).low
    skewed = column(400, wins=8)
    assert judge(gate, skewed).deltas["mrr"].high >= 0.0375 - 1e-9, "the bootstrap's 99% of 8 in 400: 15 or more"


def check_clusters_that_differ_are_refused(gate: ModuleType) -> None:
    """Other numbers, a number too few, fractions, or clusters on one side alone."""
    clusters = np.arange(400)
    for other in (clusters[::-1], clusters[:-1], clusters / 2, None):
        refused(judge(gate, CLEAR, clusters=clusters, production={"clusters": other}), "clusters", "400 test queries")
    for wrong in (clusters[:-1], clusters / 2):
        refused(judge(gate, CLEAR, clusters=wrong), "clusters")


# --- near duplicates of training queries ------------------------------------------------------------------------


def check_near_duplicates_do_not_decide(gate: ModuleType) -> None:
    """A gain on queries that were trained on, all but word for word, is memory; both figures are said."""
    memory = first(60, 400)
    held = judge(gate, CLEAR, near_duplicates=memory)
    assert held.verdict == "held"
    assert (held.queries, held.near_duplicates) == (340, 60)
    assert held.deltas["mrr"].value == 0
    assert held.with_near_duplicates == {"recall_at_10": 0.15, "mrr": 0.15}
    assert any("60 more nearly repeat" in reason and "MRR +15.00 points" in reason for reason in held.reasons)
    promoted = judge(gate, CLEAR, near_duplicates=~first(380, 400))
    assert promoted.verdict == "promoted"
    assert "Both were measured on 380 test queries." in promoted.reasons
    assert any("20 more nearly repeat" in reason for reason in promoted.reasons)
    assert abs(promoted.deltas["mrr"].value - 60 / 380) < 1e-9
    assert not any("nearly repeat" in reason for reason in judge(gate, CLEAR, near_duplicates=first(0, 400)).reasons)


def check_near_duplicates_are_no_test_queries(gate: ModuleType) -> None:
    """Fifty of 99 left out are 49 too few; all of them left out are nothing; a slice is without them too."""
    few = judge(gate, column(99, wins=99), near_duplicates=first(50, 99))
    assert few.verdict == "held"
    assert any("49 test queries are too few" in reason for reason in few.reasons)
    refused(judge(gate, CLEAR, near_duplicates=first(400, 400)), "nearly repeats")
    part = judge(gate, CLEAR, near_duplicates=first(10, 400), slices={"fr": first(40, 400)}).slices["fr"]
    assert part.queries == 30


def check_near_duplicates_that_differ_are_refused(gate: ModuleType) -> None:
    """Other queries on the other side, numbers, a mask too short, or one side alone."""
    mask = first(50, 400)
    for other in (mask[::-1], mask[:-1], mask.astype(int), None):
        refused(judge(gate, CLEAR, near_duplicates=mask, production={"near_duplicates": other}), "near duplicates")
    refused(judge(gate, CLEAR, near_duplicates=mask.astype(int)), "near duplicates")


# --- near the ceiling -------------------------------------------------------------------------------------------


def check_near_the_ceiling_recall_need_not_rise(gate: ModuleType) -> None:
    """Where it is opted in and production's Recall@10 (0.95) is above: MRR must rise, Recall@10 hardly fall."""
    found = (np.arange(400) >= 20).astype(np.float64)  # 0.95

    def verdict(lost: int, mrr: tuple[Floats, Floats] = CLEAR, above: float | None = 0.9) -> str:
        candidate = found.copy()
        candidate[400 - lost :] = 0
        rule = Gate(resamples=1_000, recall_non_inferior_above=above)
        return str(judge(gate, (candidate, found), mrr, rule=rule).verdict)

    assert verdict(0, above=None) == "held"
    assert verdict(0) == "promoted"
    assert verdict(0, above=0.95) == "held", "above, not at"
    assert verdict(1) == "promoted", "-0.25 - 1.65 * 0.25 points"
    assert verdict(2) == "held", "-0.50 - 1.65 * 0.35 points"
    assert verdict(0, mrr=column(400, wins=12, losses=8)) == "held"
    assert verdict(0, mrr=(found, found)) == "held"


# --- slices -----------------------------------------------------------------------------------------------------


def lost_at_the_end(lost: int) -> tuple[Floats, Floats]:
    """A clear gain, but the last queries are lost."""
    candidate, production = CLEAR[0].copy(), CLEAR[1].copy()
    candidate[400 - lost :], production[400 - lost :] = 0, 1
    return candidate, production


def last(count: int) -> NDArray[np.bool_]:
    """A mask of the last of 400 queries."""
    return first(count, 400)[::-1]


def check_a_large_slice_may_not_fall(gate: ModuleType) -> None:
    """Three of 30 queries lost (10 points; t = -1.80, p = 0.042) hold a clear gain; two (p = 0.080) may be chance.

    The reason names slice, size, metric and fall.
    """
    slices = {"fr": last(30)}
    decision = judge(gate, lost_at_the_end(3), slices=slices)
    assert decision.verdict == "held"
    assert any("'fr' (30 queries) falls in Recall@10 by 10.00 points" in reason for reason in decision.reasons)
    assert any("p = 0.042" in reason for reason in decision.reasons)
    assert decision.slices["fr"].judged
    assert decision.slices["fr"].queries == 30
    assert judge(gate, CLEAR, lost_at_the_end(3), slices=slices).verdict == "held", "a fall in MRR alone counts"
    assert judge(gate, lost_at_the_end(3), CLEAR, slices=slices).verdict == "held", "and one in Recall@10 alone"
    assert judge(gate, lost_at_the_end(2), slices=slices).verdict == "promoted"


def check_many_slices_share_the_error(gate: ModuleType) -> None:
    """The chance 0.042 is below 0.10 / 2 for one slice, not below 0.10 / 4 for two; only judged ones count."""
    slices = {"fr": last(30), "en": first(30, 400)}
    assert judge(gate, lost_at_the_end(3), slices=slices).verdict == "promoted"
    assert judge(gate, lost_at_the_end(4), slices=slices).verdict == "held", "p = 0.022"
    for other in ("small", "golden", "new documents"):
        shown = {"fr": last(30), other: first(29, 400) if other == "small" else first(60, 400)}
        assert judge(gate, lost_at_the_end(3), slices=shown).verdict == "held", other


def check_the_chance_of_a_fall_is_students(gate: ModuleType) -> None:
    """Three of 30 lost: -0.1 / (0.30513 / sqrt(30)) = -1.795, p = 0.0416 with 29 degrees of freedom."""
    assert abs(gate.chance_of_fall(np.array([-1.0] * 3 + [0.0] * 27)) - 0.04156) < 1e-4
    assert abs(gate.chance_of_fall(np.array([1.0] * 3 + [0.0] * 27)) - 0.95844) < 1e-4
    assert gate.chance_of_fall(np.array([-0.1] * 30)) == 0
    assert gate.chance_of_fall(np.zeros(30)) == 1
    assert gate.chance_of_fall(np.array([-1.0])) == 0, "one query cannot be tested, which is no excuse"


def check_a_small_slice_is_shown_and_not_judged(gate: ModuleType) -> None:
    """Three queries lost among 29: promoted, and the fall is in the decision."""
    decision = judge(gate, lost_at_the_end(3), slices={"fr": last(29), "none": first(0, 400)})
    assert decision.verdict == "promoted"
    assert not decision.slices["fr"].judged
    assert abs(decision.slices["fr"].values["mrr"] + 3 / 29) < 1e-9
    assert "none" not in decision.slices


def check_a_slice_may_fall_by_as_much_as_the_rule_allows(gate: ModuleType) -> None:
    """Five of 100 lost are five points: allowed, though hardly chance (p = 0.012); six are not."""
    slices = {"fr": last(100)}
    assert judge(gate, lost_at_the_end(5), slices=slices).verdict == "promoted"
    assert judge(gate, lost_at_the_end(6), slices=slices).verdict == "held"


def check_a_few_golden_queries_must_all_stay_found(gate: ModuleType) -> None:
    """One of five, or of 99, that production finds in the first 10 and the candidate does not holds a clear gain."""
    for golden in (5, 99):
        decision = judge(gate, lost_at_the_end(1), slices={"golden": last(golden)})
        assert decision.verdict == "held"
        assert decision.slices["golden"].judged
        assert any(f"1 of {golden} golden queries drop out" in reason for reason in decision.reasons)
    assert judge(gate, lost_at_the_end(1), slices={"golden": last(100)}).verdict == "promoted", "that may be chance"
    assert judge(gate, CLEAR, slices={"golden": last(5)}).verdict == "promoted"
    assert judge(gate, CLEAR, slices={"golden": first(0, 400)}).verdict == "promoted"
    memory = judge(gate, lost_at_the_end(1), slices={"golden": last(5)}, near_duplicates=last(5))
    assert memory.verdict == "held", "golden queries that nearly repeat a training query must stay found too"


def check_a_golden_query_drops_out_when_nothing_of_it_is_found(gate: ModuleType) -> None:
    """Of several relevant documents one may go; of a query that production does not find nothing can."""
    candidate, production = CLEAR[0].copy(), CLEAR[1].copy()
    candidate[-1], production[-1] = 0.5, 1
    assert judge(gate, (candidate, production), CLEAR, slices={"golden": last(5)}).verdict == "promoted"
    candidate[-1], production[-1] = 0, 0.5
    assert judge(gate, (candidate, production), CLEAR, slices={"golden": last(5)}).verdict == "held"
    candidate[-1], production[-1] = 0, 0
    assert judge(gate, (candidate, production), CLEAR, slices={"golden": last(5)}).verdict == "promoted"


def check_new_documents_must_not_get_worse(gate: ModuleType) -> None:
    """From 50 queries on, a fall beyond chance holds; below, the verdict says that it says nothing about them."""
    candidate, production = CLEAR[0].copy(), CLEAR[1].copy()
    candidate[-50:], production[-50:] = 0.50, 0.52
    for pairs in (((candidate, production), CLEAR), (CLEAR, (candidate, production))):
        held = judge(gate, *pairs, slices={"new documents": last(50)})
        assert held.verdict == "held"
        assert any(
            "neither model was trained on (50 queries)" in reason and "2.00" in reason for reason in held.reasons
        )
        few = judge(gate, *pairs, slices={"new documents": last(49)})
        assert few.verdict == "promoted"
        assert "nothing about new documents: 49 test queries" in few.reasons[-1]
    assert "nothing about new documents: 0 " in judge(gate, CLEAR, slices={"new documents": last(0)}).reasons[-1]
    good = judge(gate, CLEAR, slices={"new documents": first(100, 400)})
    assert good.verdict == "promoted"
    assert "neither model was trained on (100 queries): Recall@10 +60.00 points" in good.reasons[-1]
    assert judge(gate, lost_at_the_end(3), slices={"new documents": last(50)}).verdict == "promoted", "may be chance"
    assert not any("new documents" in reason for reason in judge(gate, CLEAR).reasons)
    assert not judge(gate, CLEAR, slices={"new documents": last(49)}).slices["new documents"].judged


def check_the_golden_slice_may_not_fall_for_sure_even_a_little(gate: ModuleType) -> None:
    """Every one of 100 golden queries a little worse on one metric: less than a slice may fall, and no chance."""
    candidate, production = CLEAR[0].copy(), CLEAR[1].copy()
    candidate[-100:], production[-100:] = 0.50, 0.52
    for pairs in (((candidate, production), CLEAR), (CLEAR, (candidate, production))):
        decision = judge(gate, *pairs, slices={"golden": last(100)})
        assert decision.verdict == "held"
        assert any("golden queries fall" in reason and "2.00 points" in reason for reason in decision.reasons)
        assert judge(gate, *pairs, slices={"fr": last(100)}).verdict == "promoted"


# --- guard sets --------------------------------------------------------------------------------------------------


def guard(
    gate: ModuleType,
    recall: tuple[Floats, Floats],
    mrr: tuple[Floats, Floats] | None = None,
    *,
    rule: Gate = RULE,
    **more: Any,
) -> Any:
    """What a guard set of (candidate, production) columns says."""
    queries = tuple(f"query {i}" for i in range(len(recall[0])))
    sides = [
        gate.Scores(f"model {i}", queries, {"recall_at_10": recall[i], "mrr": (mrr or recall)[i]}, **more)
        for i in range(2)
    ]
    try:
        return gate.guard("general", *sides, rule)
    except (KeyError, IndexError, ValueError, ArithmeticError) as error:
        raise AssertionError(f"guard must say something of any scores, but raised {error!r}") from error


def holds(found: Any, *words: str) -> bool:
    """Whether a guard set holds the candidate, with a reason that has these words."""
    assert all("'general'" in reason for reason in found.reasons)
    if found.reasons:
        assert any(all(word in reason for word in words) for reason in found.reasons), found.reasons
    return bool(found.reasons)


def check_a_guard_set_that_falls_holds(gate: ModuleType) -> None:
    """Ten of 100 lost: 10 points with a standard error of 3.015, so not chance; on either metric, and on both."""
    fallen, same = column(100, wins=0, losses=10), column(100, wins=0)
    assert holds(guard(gate, fallen), "(100 queries)", "Recall@10 by 10.00 points", "beyond chance", "2.00 points")
    assert holds(guard(gate, fallen, same), "Recall@10")
    assert holds(guard(gate, same, fallen), "MRR")
    assert not holds(guard(gate, same))
    assert not holds(guard(gate, fallen[::-1])), "a rise is not a fall"
    found = guard(gate, fallen)
    assert found.judged
    assert found.deltas["mrr"].value == -0.1
    assert abs(found.deltas["mrr"].low - (-0.1 - 2.3646 * 0.030151)) < 1e-4, "99% of Student's t with 99 degrees"
    assert abs(found.deltas["mrr"].high - (-0.1 + 2.3646 * 0.030151)) < 1e-4


def check_a_guard_set_may_fall_by_as_much_as_the_rule_allows(gate: ModuleType) -> None:
    """Every query lower by 2 points is allowed, however sure that is; by 2.1 it is not; the rule says how much."""

    def lower(by: float, **changes: float) -> bool:
        pair = np.full(100, 0.6 - by), np.full(100, 0.6)
        return holds(guard(gate, pair, rule=Gate(resamples=1_000, **changes)))

    assert [lower(0.02), lower(0.021)] == [False, True]
    assert [lower(0.021, max_guard_drop=0.03), lower(0.001, max_guard_drop=0)] == [False, True]


def check_a_guard_set_may_fall_by_chance(gate: ModuleType) -> None:
    """Five of 50 lost: -0.1 + 2.405 * 0.3030 / sqrt(50) = 0.003; six are not chance. Nor are five with 95%."""
    five, six = column(50, wins=0, losses=5), column(50, wins=0, losses=6)
    assert [holds(guard(gate, five)), holds(guard(gate, six))] == [False, True]
    assert holds(guard(gate, five, rule=Gate(resamples=1_000, confidence=0.95)))
    assert not holds(guard(gate, column(400, wins=8, losses=17))), "2.25 points, and 8 were won"


def check_a_tiny_guard_set_has_no_excuse(gate: ModuleType) -> None:
    """Six queries agree by chance once in 64, which is no proof with 99%: then a mean below -2 points holds."""
    assert not holds(guard(gate, column(7, wins=0, losses=1))), "seven could agree once in 128"
    for queries in (1, 2, 6):
        one = np.ones(queries), np.ones(queries)
        assert not holds(guard(gate, one))
        one[0][0] = 0.5
        assert holds(guard(gate, one), "too few queries"), queries
    assert holds(guard(gate, column(7, wins=0, losses=1), rule=Gate(resamples=1_000, confidence=0.995)))


def check_a_guard_set_counts_queries_for_one_document_together(gate: ModuleType) -> None:
    """Ten of 100 lost are chance where they ask for one document of ten; of one cluster chance cannot be told."""
    fallen = column(100, wins=0, losses=10)
    assert holds(guard(gate, fallen, clusters=np.arange(100)))
    assert not holds(guard(gate, fallen, clusters=np.arange(100) // 10))
    assert holds(guard(gate, fallen, clusters=np.zeros(100, dtype=int)), "too few queries")
    assert holds(guard(gate, fallen, clusters=np.arange(100) // 17), "too few queries"), "5.9 documents"


def check_a_guard_set_that_cannot_be_judged_holds(gate: ModuleType) -> None:
    """NaN, no query, a metric that is missing; and a set of which production finds nothing."""
    good = column(100, wins=10)
    for pair in ((np.full(100, np.nan), good[1]), (np.array([]), np.array([]))):
        found = guard(gate, pair)
        assert holds(found, "cannot be judged")
        assert not found.judged
    empty = guard(gate, (good[0], np.zeros(100)), good)
    assert holds(empty, "Production finds nothing")
    assert not empty.judged
    alone = gate.Scores("a", ("q",), {"mrr": np.ones(1)})
    assert gate.guard("general", alone, dataclasses.replace(alone, model="b"), RULE).reasons


# --- closed unless opened ---------------------------------------------------------------------------------------


def refused(decision: Any, *words: str) -> None:
    """Held, with nothing compared, and a reason that has these words."""
    assert decision.verdict == "held"
    assert decision.deltas == {}
    assert any(all(word in reason for word in words) for reason in decision.reasons), decision.reasons


def check_the_same_model_twice_is_refused(gate: ModuleType) -> None:
    """Whatever the scores say."""
    refused(judge(gate, CLEAR, production={"model": "fingerprint of the candidate"}), "same model")


def check_a_model_without_fingerprint_is_refused(gate: ModuleType) -> None:
    """Then nobody knows what was scored."""
    refused(judge(gate, CLEAR, candidate={"model": ""}), "no fingerprint")
    refused(judge(gate, CLEAR, production={"model": ""}), "no fingerprint")


def check_missing_metrics_are_refused(gate: ModuleType) -> None:
    """Either decisive metric, on either side or on both, and any metric that only one side has."""
    for side, index in (("candidate", 0), ("production", 1)):
        for name, label in (("recall_at_10", "Recall@10"), ("mrr", "MRR")):
            values = {other: CLEAR[index] for other in ("recall_at_10", "mrr") if other != name}
            refused(judge(gate, CLEAR, **{side: {"per_query": values}}), f"The {side} has no {label}")
        values = {"recall_at_10": CLEAR[index], "mrr": CLEAR[index], "ndcg_at_10": CLEAR[index]}
        refused(judge(gate, CLEAR, **{side: {"per_query": values}}), "has no NDCG@10")
        refused(judge(gate, CLEAR, **{side: {"per_query": {}}}), f"The {side} has no MRR")
    only_recall = [{"per_query": {"recall_at_10": values}} for values in CLEAR]
    refused(judge(gate, CLEAR, candidate=only_recall[0], production=only_recall[1]), "has no MRR")


def check_values_that_are_no_shares_are_refused(gate: ModuleType) -> None:
    """NaN, infinite, negative, above one: one query is enough, in any metric, on either side, and it is named."""
    for bad in (np.nan, np.inf, -np.inf, -0.1, 1.5):
        for side in (0, 1):
            spoilt = (CLEAR[0].copy(), CLEAR[1].copy())
            spoilt[side][7] = bad
            words = ("candidate", "production")[side], "1 of 400", "query 7"
            refused(judge(gate, spoilt, CLEAR), "Recall@10", *words)
            refused(judge(gate, CLEAR, spoilt), "MRR", *words)
            refused(judge(gate, CLEAR, ndcg_at_10=spoilt), "NDCG@10", *words)


def check_lengths_that_differ_are_refused(gate: ModuleType) -> None:
    """A value too few, a column instead of a row, words instead of numbers: on either side."""
    for index, side in enumerate(("candidate", "production")):
        for values in (CLEAR[index][:-1], CLEAR[index][:, None], np.array(["1"] * 400), np.array(0.5), None):
            per_query = {"recall_at_10": CLEAR[index], "mrr": values}
            refused(judge(gate, CLEAR, **{side: {"per_query": per_query}}), f"The {side}'s MRR", "400 queries")


def check_different_queries_are_refused(gate: ModuleType) -> None:
    """Other queries, the same in another order, fewer: nothing is paired then."""
    queries = tuple(f"query {i}" for i in range(400))
    for other in ((*queries[:-1], "another"), queries[::-1], queries[:-1], (*queries, "one more"), ()):
        refused(judge(gate, CLEAR, production={"queries": other}), "different queries")
        refused(judge(gate, CLEAR, candidate={"queries": other}), "different queries")


def check_repeated_queries_are_refused(gate: ModuleType) -> None:
    """A query that occurs twice would count as two independent ones."""
    queries = (*(f"query {i}" for i in range(399)), "query 0")
    decision = judge(gate, CLEAR, candidate={"queries": queries}, production={"queries": queries})
    refused(decision, "1 test queries", "twice")


def check_no_queries_are_refused(gate: ModuleType) -> None:
    """An empty test set proves nothing."""
    refused(judge(gate, (np.array([]), np.array([]))), "no test queries")


def check_slices_that_differ_are_refused(gate: ModuleType) -> None:
    """Other names, other queries, a mask of another length, or no mask."""
    mask = first(50, 400)
    for other in ({}, {"en": mask}, {"fr": mask[::-1]}, {"fr": mask[:-1]}, {"fr": mask.astype(int)}):
        refused(judge(gate, CLEAR, slices={"fr": mask}, production={"slices": other}), "lice")
    for wrong in (mask[:-1], mask.astype(int), np.flatnonzero(mask)):
        refused(judge(gate, CLEAR, slices={"fr": wrong}), "'fr'", "400 test queries")


def check_all_problems_are_named_at_once(gate: ModuleType) -> None:
    """Two faults are two reasons, and that nothing was compared is said."""
    spoilt = (CLEAR[0], np.full(400, np.nan))
    decision = judge(gate, spoilt, CLEAR, production={"model": ""})
    assert len(decision.reasons) == 3
    assert "Nothing was compared" in decision.reasons[-1]


def check_arguments_are_left_as_they_are(gate: ModuleType) -> None:
    """A pure function: the same arrays afterwards, float32 or not."""
    pair = tuple(side.astype(np.float32) for side in CLEAR)
    before = [side.copy() for side in pair]
    for side in pair:
        side.flags.writeable = False
    assert judge(gate, pair, slices={"golden": first(100, 400)}).verdict == "promoted"
    assert all(np.array_equal(a, b) for a, b in zip(before, pair, strict=True))


def check_reasons_are_sentences(gate: ModuleType) -> None:
    """Every verdict comes with reasons, and each is a sentence that stands for itself."""
    for pair in (CLEAR, CLEAR[::-1], column(400, wins=12, losses=8), column(3, wins=1), column(400, wins=0)):
        reasons = judge(gate, pair).reasons
        assert reasons
        assert all(reason[0].isupper() or reason[0].isdigit() for reason in reasons)
        assert all(reason.endswith(".") and "nan" not in reason for reason in reasons)


CHECKS: list[Callable[[ModuleType], None]] = [
    value for name, value in list(globals().items()) if name.startswith("check_")
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_gate(check: Callable[[ModuleType], None]) -> None:
    """What the check's own docstring says."""
    check(real_gate)


# --- in general -------------------------------------------------------------------------------------------------

values = st.one_of(st.floats(0, 1), st.floats(), st.sampled_from([0.0, 0.5, 1.0]))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_scores_give_a_verdict_with_reasons(data: st.DataObject) -> None:
    """Whatever the numbers: no exception, a reason, and no promotion unless every rule holds on plain means."""
    queries = data.draw(st.integers(0, 80))
    columns = st.lists(values, min_size=queries, max_size=queries).map(np.array)
    recall, mrr = (data.draw(columns), data.draw(columns)), (data.draw(columns), data.draw(columns))
    decision = judge(real_gate, recall, mrr)
    assert decision.reasons
    if decision.verdict == "promoted":
        assert queries >= 50
        assert all(np.mean(pair[0]) > np.mean(pair[1]) for pair in (recall, mrr))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 300))
def test_a_model_is_never_better_than_itself(seed: int, queries: int) -> None:
    """`decide(x, x)` never promotes, nor regresses, even under two names."""
    scores = np.random.default_rng(seed).random(queries)
    assert judge(real_gate, (scores, scores.copy())).verdict == "held"


def nights(count: int, queries: int, gain: float, seed: int) -> list[str]:
    """Verdicts of simulated nights; the differences vary by .19 (Recall@10) and .20 (MRR), and go together."""
    rng = np.random.default_rng(seed)
    verdicts = []
    for _ in range(count):
        changed = rng.random(queries) < 0.0361  # of Recall@10, by one whole document: sd of the difference .19
        up = changed & (rng.random(queries) < 0.5 + gain / (2 * 0.0361))
        down = changed & ~up
        production = np.where(up, 0.0, np.where(down, 1.0, rng.random(queries) < 0.75)).astype(np.float64)
        candidate = np.where(up, 1.0, np.where(down, 0.0, production))
        shift = rng.normal(gain / 2, 0.18, queries) + (candidate - production) / 2
        base = np.full(queries, 0.5)
        verdicts.append(judge(real_gate, (candidate, production), (np.clip(base + shift, 0, 1), base)).verdict)
    return verdicts


@pytest.mark.parametrize("queries", [50, 300])
def test_nights_without_a_difference_are_hardly_ever_promoted(queries: int) -> None:
    """At most 1% of nights on which both models are equally good."""
    verdicts = nights(300, queries, gain=0.0, seed=queries)
    assert verdicts.count("promoted") <= 3
    assert verdicts.count("regressed") <= 12, "two metrics, each with 1%, and the luck of 300 nights"


def test_nights_with_a_gain_of_three_points_are_promoted() -> None:
    """At least 95% of nights with 1,000 test queries."""
    assert nights(100, 1_000, gain=0.03, seed=0).count("promoted") >= 95
