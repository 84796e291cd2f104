"""Ranks and metrics: blocks a human can check, properties, and two peers as oracles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks import ranking
from tasks.ranking import metrics, relevant_ranks, summary, truncate

Vectors = NDArray[np.float32]
METRICS = {"recall_at_1", "recall_at_5", "recall_at_10", "recall_at_100", "mrr", "ndcg_at_10", "map"}


def angles(*degrees: float) -> Vectors:
    """Unit vectors in the plane, of shape (n, 2)."""
    radians = np.radians(np.array(degrees))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def case(seed: int, queries: int = 40, documents: int = 300, dim: int = 16) -> tuple[Vectors, Vectors, list[list[int]]]:
    """Random vectors without ties, and one to six relevant documents for each query, near it."""
    rng = np.random.default_rng(seed)
    right = rng.normal(size=(documents, dim)).astype(np.float32)
    relevant = [sorted(rng.choice(documents, size=rng.integers(1, 7), replace=False).tolist()) for _ in range(queries)]
    left = np.stack([right[r].mean(axis=0) for r in relevant]) + rng.normal(size=(queries, dim)) * 0.5
    return left.astype(np.float32), right, relevant


def brute_force(queries: Vectors, documents: Vectors, relevant: list[list[int]]) -> list[list[int]]:
    """The definition of a rank, word for word, in float64 and one query at a time."""
    left = queries.astype(np.float64) / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    right = documents.astype(np.float64) / np.linalg.norm(documents.astype(np.float64), axis=1, keepdims=True)
    found = []
    for query, wanted in zip(left, relevant, strict=True):
        scores = (right * query).sum(axis=1)
        others = np.delete(scores, wanted)
        best_first = sorted((scores[index] for index in wanted), reverse=True)
        found.append([1 + int(np.sum(others >= score)) + place for place, score in enumerate(best_first)])
    return found


# --- ranks a human can check ------------------------------------------------------------------------------------


def test_ranks_of_documents_at_known_angles() -> None:
    """Query at 0 degrees, documents at 10, 20, 30, 40: relevant ones at 20 and 40 are second and fourth."""
    (ranks,) = relevant_ranks(angles(0), angles(30, 20, 10, 40), [[3, 1]])
    assert ranks.tolist() == [2, 4]


def test_cosine_ignores_length() -> None:
    """A long vector is no better a match than a short one."""
    documents = angles(10, 20, 30) * np.array([[0.01], [5], [1000]], dtype=np.float32)
    assert [r.tolist() for r in relevant_ranks(angles(0) * 7, documents, [[1]])] == [[2]]


def test_a_tie_is_lost() -> None:
    """The relevant document's text under another id, before or after it, is placed before it."""
    documents = angles(50, 10, 80, 10, 90)
    assert relevant_ranks(angles(0), documents, [[1]])[0].tolist() == [2]
    assert relevant_ranks(angles(0), documents, [[3]])[0].tolist() == [2]
    assert relevant_ranks(angles(0), documents, [[1, 3]])[0].tolist() == [1, 2], "both are relevant: nothing is lost"


def test_mirror_images_tie() -> None:
    """Equal cosines of different vectors (10 degrees to either side) are a tie, whatever float32 makes of them."""
    assert relevant_ranks(angles(45), angles(35, 55, 90), [[0]])[0].tolist() == [2]
    assert relevant_ranks(angles(45), angles(35, 55, 90), [[1]])[0].tolist() == [2]


def test_a_collapsed_model_gets_the_worst_ranks() -> None:
    """All documents on one vector, in any scale: the two relevant ones of ten are ninth and tenth."""
    scales = np.array([[1], [2], [3], [7], [0.1], [1], [1], [0.3], [9], [1]], dtype=np.float32)
    documents = np.full((10, 48), 0.37, dtype=np.float32) * scales
    queries = np.random.default_rng(0).normal(size=(3, 48)).astype(np.float32)
    assert [r.tolist() for r in relevant_ranks(queries, documents, [[0, 1], [8, 9], [5, 2]])] == [[9, 10]] * 3


def test_a_large_collapsed_model_gets_the_worst_ranks() -> None:
    """The same where so many scores are in doubt that they are computed again as one product."""
    documents = np.full((1500, 33), 0.1, dtype=np.float32)
    queries = np.random.default_rng(0).normal(size=(300, 33)).astype(np.float32)
    assert {r[0] for r in relevant_ranks(queries, documents, [[i] for i in range(300)])} == {1500}


def test_a_zero_vector_ties_with_everything() -> None:
    """A query without a direction finds nothing: every document scores 0."""
    queries = np.concatenate([angles(0), np.zeros((1, 2), dtype=np.float32)])
    assert [r.tolist() for r in relevant_ranks(queries, angles(0, 90, 180), [[0], [0]])] == [[1], [3]]


def test_queries_without_relevant_documents_have_no_ranks() -> None:
    """They keep their place, with an empty array; a document named twice counts once."""
    ranks = relevant_ranks(angles(0, 0, 90), angles(0, 45, 90), [[], [1, 1], [0]])
    assert [r.tolist() for r in ranks] == [[], [2], [3]]
    assert [r.tolist() for r in relevant_ranks(angles(0), angles(0), [[]])] == [[]]


def test_a_difference_that_float32_cannot_see_still_counts() -> None:
    """Two documents whose cosines differ by 1e-9: the nearer one is first, in either order, alone of the two."""
    query = np.array([[1.0, 0.0]])
    near, far = [1.0, 1e-3], [1.0, 1e-3 + 1e-6]
    assert np.float32(1 / np.hypot(*near)) == np.float32(1 / np.hypot(*far))
    for documents, nearer in ((np.array([near, far]), 0), (np.array([far, near]), 1)):
        assert relevant_ranks(query, documents, [[nearer]])[0].tolist() == [1]
        assert relevant_ranks(query, documents, [[1 - nearer]])[0].tolist() == [2]


# --- ranks in general -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_the_definition(seed: int) -> None:
    """Blocked float32 with a float64 second opinion gives what the definition gives, with several relevant each."""
    queries, documents, relevant = case(seed, queries=300, documents=2500)
    assert [r.tolist() for r in relevant_ranks(queries, documents, relevant)] == brute_force(
        queries, documents, relevant
    )


def test_ranks_equal_the_definition_with_many_ties() -> None:
    """Vectors of small whole numbers, so that equal scores are everywhere."""
    rng = np.random.default_rng(5)
    documents = rng.integers(-1, 2, size=(400, 3)).astype(np.float32) + np.float32(0.001)
    queries = rng.integers(-1, 2, size=(50, 3)).astype(np.float32) + np.float32(0.002)
    relevant = [rng.choice(400, size=5, replace=False).tolist() for _ in range(50)]
    ranks = relevant_ranks(queries, documents, relevant)
    left = queries.astype(np.float64) / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    right = documents.astype(np.float64) / np.linalg.norm(documents.astype(np.float64), axis=1, keepdims=True)
    scores = np.round(left @ right.T, 10)
    for query, wanted in enumerate(relevant):
        others = np.delete(scores[query], wanted)
        best_first = np.sort(scores[query][wanted])[::-1]
        assert ranks[query].tolist() == [1 + np.sum(others >= s) + place for place, s in enumerate(best_first)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), query_block=st.integers(1, 50), document_block=st.integers(1, 400))
def test_block_sizes_do_not_change_ranks(seed: int, query_block: int, document_block: int) -> None:
    """Not even by one, although the product sums in another order."""
    queries, documents, relevant = case(seed, queries=20, documents=150)
    documents[70:] = documents[:80]  # every one of these now has a twin in another block
    whole = relevant_ranks(queries, documents, relevant)
    blocked = relevant_ranks(queries, documents, relevant, query_block=query_block, document_block=document_block)
    assert [r.tolist() for r in blocked] == [r.tolist() for r in whole]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_queries_and_documents_does_not_change_ranks(seed: int) -> None:
    """Documents and queries shuffled, relevant indices with them: the same ranks."""
    queries, documents, relevant = case(seed, queries=15, documents=90)
    rng = np.random.default_rng(seed)
    of_documents, of_queries = rng.permutation(90), rng.permutation(15)
    now_at = np.argsort(of_documents)
    shuffled = relevant_ranks(
        queries[of_queries], documents[of_documents], [now_at[relevant[query]] for query in of_queries]
    )
    whole = relevant_ranks(queries, documents, relevant)
    assert [r.tolist() for r in shuffled] == [whole[query].tolist() for query in of_queries]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_ranks_are_distinct_places_of_the_corpus(seed: int) -> None:
    """One rank for each relevant document, ascending from 1 to the number of documents at most."""
    queries, documents, relevant = case(seed, queries=15, documents=40, dim=2)
    for ranks, wanted in zip(relevant_ranks(queries, documents, relevant), relevant, strict=True):
        assert len(ranks) == len(wanted)
        assert np.all(np.diff(ranks) > 0)
        assert 1 <= ranks[0] <= ranks[-1] <= 40


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_type_is_ranked(dtype: Any) -> None:
    """float16 is widened before it is multiplied, float64 keeps its precision in the second opinion."""
    queries, documents, relevant = case(3)
    queries, documents = queries.astype(dtype), documents.astype(dtype)
    assert [r.tolist() for r in relevant_ranks(queries, documents, relevant)] == brute_force(
        queries, documents, relevant
    )


def test_documents_may_be_memory_mapped(tmp_path: Any) -> None:
    """A file of vectors is read in blocks and gives the same ranks, and is not written to."""
    queries, documents, relevant = case(4)
    np.save(tmp_path / "documents.npy", documents)
    mapped = np.load(tmp_path / "documents.npy", mmap_mode="r")
    assert [r.tolist() for r in relevant_ranks(queries, mapped, relevant)] == brute_force(queries, documents, relevant)


def test_memory_does_not_grow_with_queries_times_documents() -> None:
    """1,000 queries on 20,000 documents: the scores would take 80 MB, all that numpy holds takes 16 at most."""
    import tracemalloc

    rng = np.random.default_rng(0)
    documents, queries = (rng.normal(size=(n, 8)).astype(np.float32) for n in (20_000, 1_000))
    relevant = [[i] for i in range(1_000)]
    relevant_ranks(queries[:2], documents[:2], [[0], [1]])
    tracemalloc.start()
    relevant_ranks(queries, documents, relevant)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["queries", "documents"])
def test_vectors_that_are_not_finite_are_refused(side: str, value: float) -> None:
    """The message names the side, how many rows are broken, and the first."""
    vectors = {"queries": angles(0, 10, 20, 30), "documents": angles(0, 10, 20, 30)}
    vectors[side][2:, 1] = value
    with pytest.raises(ValueError, match=rf"2 of 4 {side} .*first in row 2"):
        relevant_ranks(vectors["queries"], vectors["documents"], [[0]] * 4)


@pytest.mark.parametrize(
    ("queries", "documents", "relevant", "message"),
    [
        (np.ones((2, 3)), np.ones((4, 5)), [[0], [0]], "queries have 3 dimensions, documents 5"),
        (np.ones((2, 3)), np.ones((4, 3)), [[0]], r"number of queries \(2\) .* \(1\) differ"),
        (np.ones((2, 3)), np.ones((0, 3)), [[], []], r"documents are empty: shape \(0, 3\)"),
        (np.ones((0, 3)), np.ones((4, 3)), [], r"queries are empty: shape \(0, 3\)"),
        (np.ones((2, 0)), np.ones((4, 0)), [[0], [0]], "queries are empty"),
        (np.ones(3), np.ones((4, 3)), [[0]], r"queries must be floats of shape \(n, d\), got float64 of shape \(3,\)"),
        (np.ones((1, 3)), np.ones((4, 3), dtype=int), [[0]], r"documents must be floats .* got int64"),
        (np.ones((2, 3)), np.ones((4, 3)), [[0], [1, 4]], "query 1 has relevant documents 1 to 4; there are 0 to 3"),
        (np.ones((1, 3)), np.ones((4, 3)), [[-1]], "query 0 has relevant documents -1 to -1"),
        (np.ones((1, 3)), np.ones((4, 3)), [[1.5]], "query 0 has relevant documents 1.5"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(queries: Any, documents: Any, relevant: Any, message: str) -> None:
    """Each error carries the numbers that do not fit."""
    with pytest.raises(ValueError, match=message):
        relevant_ranks(queries, documents, relevant)


# --- metrics a human can check ----------------------------------------------------------------------------------


def test_metrics_of_ranks_2_1_and_none_within_reach() -> None:
    """First relevant ranks 2, 1 and a miss (rank 10^12): MRR = (1/2 + 1 + 0) / 3 = 0.5."""
    values = metrics([np.array([2]), np.array([1]), np.array([10**12])])
    assert set(values) == METRICS
    means = summary(values)
    assert means["mrr"] == pytest.approx(0.5)
    assert means["recall_at_1"] == pytest.approx(1 / 3)
    assert means["recall_at_5"] == means["recall_at_100"] == pytest.approx(2 / 3)
    assert values["ndcg_at_10"] == pytest.approx([1 / np.log2(3), 1, 0])


def test_metrics_of_three_relevant_documents() -> None:
    """Ranks 1, 3 and 12: recall 1/3, 2/3, 2/3, 1; AP = (1/1 + 2/3 + 3/12) / 3; NDCG from the first two."""
    values = {name: value[0] for name, value in metrics([np.array([1, 3, 12])]).items()}
    assert [values[f"recall_at_{k}"] for k in (1, 5, 10, 100)] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])
    assert values["mrr"] == 1
    assert values["map"] == pytest.approx((1 + 2 / 3 + 3 / 12) / 3)
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert values["ndcg_at_10"] == pytest.approx((1 + 1 / 2) / ideal)


def test_recall_is_trecs_and_not_any_hit() -> None:
    """One of four relevant documents in the first ten is a recall of 0.25 (Success@10 would be 1)."""
    assert metrics([np.array([10, 11, 12, 13])])["recall_at_10"].tolist() == [0.25]


def test_more_relevant_documents_than_the_cutoff() -> None:
    """Twelve relevant documents on the first twelve places: NDCG@10 is 1, recall at 10 is 10/12."""
    values = metrics([np.arange(1, 13)])
    assert values["ndcg_at_10"].tolist() == [1]
    assert values["recall_at_10"] == pytest.approx([10 / 12])
    assert values["map"].tolist() == [1]


def test_mrr_and_map_have_no_cutoff() -> None:
    """Rank 1,000 is worth a thousandth."""
    values = metrics([np.array([1000])])
    assert values["mrr"] == values["map"] == pytest.approx([0.001])


def test_queries_without_relevant_documents_are_left_out() -> None:
    """They change no mean, and the lengths tell how many there were."""
    ranks = [np.array([2]), np.array([], dtype=np.int64), np.array([1])]
    values = metrics(ranks)
    assert values["mrr"].tolist() == [0.5, 1.0]
    assert {len(ranks) - len(value) for value in values.values()} == {1}


def test_no_query_at_all_has_no_mean() -> None:
    """Nothing to average is an error, never a score."""
    values = metrics([np.array([], dtype=np.int64)])
    assert {len(value) for value in values.values()} == {0}
    with pytest.raises(ValueError, match="no query to average"):
        summary(values)
    with pytest.raises(ValueError, match="no metric"):
        summary({})


def test_a_mean_over_nan_is_refused() -> None:
    """One query without a number spoils the mean, and is counted."""
    with pytest.raises(ValueError, match="mrr is not a number for 1 of 2 queries"):
        summary({"mrr": np.array([0.5, np.nan])})


@pytest.mark.parametrize("ranks", [[0], [-1, 2], [2, 2], [3, 1], [1.0, 2.0]])
def test_ranks_that_cannot_be_are_refused(ranks: list[float]) -> None:
    """Ranks are distinct, ascending whole numbers from 1."""
    with pytest.raises(ValueError, match="judged query 1 are not ascending"):
        metrics([np.array([1]), np.array(ranks)])


def test_a_cutoff_of_zero_is_refused() -> None:
    """Recall at 0 has no meaning."""
    with pytest.raises(ValueError, match=r"at least 1, got \[0\]"):
        metrics([np.array([1])], ks=[0])


# --- metrics in general -----------------------------------------------------------------------------------------

rank_lists = st.lists(
    st.lists(st.integers(1, 5000), min_size=1, max_size=30, unique=True).map(lambda r: np.array(sorted(r))),
    min_size=1,
    max_size=20,
)


@settings(max_examples=100, deadline=None)
@given(rank_lists)
def test_metrics_lie_between_0_and_1(ranks: list[NDArray[np.int64]]) -> None:
    """And each has a value for each query."""
    for values in metrics(ranks).values():
        assert len(values) == len(ranks)
        assert np.all((values >= 0) & (values <= 1))


@settings(max_examples=100, deadline=None)
@given(rank_lists, st.integers(1, 200), st.integers(0, 200))
def test_recall_never_falls_with_k(ranks: list[NDArray[np.int64]], k: int, more: int) -> None:
    """Looking further finds no fewer."""
    values = metrics(ranks, ks=(k, k + more))
    assert np.all(values[f"recall_at_{k}"] <= values[f"recall_at_{k + more}"])


@settings(max_examples=100, deadline=None)
@given(rank_lists, st.data())
def test_a_better_rank_is_never_worth_less(ranks: list[NDArray[np.int64]], data: st.DataObject) -> None:
    """Moving one relevant document up lowers no metric."""
    query = data.draw(st.integers(0, len(ranks) - 1))
    free = sorted(set(range(1, int(ranks[query][-1]))) - set(ranks[query].tolist()))
    if not free:
        return
    better = [*ranks]
    better[query] = np.sort(np.append(ranks[query][:-1], data.draw(st.sampled_from(free))))
    before, after = metrics(ranks), metrics(better)
    for name in METRICS:
        assert np.all(after[name] >= before[name] - 1e-12), name


# --- Matryoshka -------------------------------------------------------------------------------------------------


def test_truncated_vectors_are_the_head_at_unit_length() -> None:
    """(3, 4, 12) cut to two dimensions is (0.6, 0.8); a head of zeros stays zero."""
    cut = truncate(np.array([[3, 4, 12], [0, 0, 5]], dtype=np.float32), 2)
    assert cut.dtype == np.float32
    assert cut == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))


@pytest.mark.parametrize("dim", [0, -1, 4])
def test_dimensions_that_are_not_there_are_refused(dim: int) -> None:
    """The message has the shape and what was asked."""
    with pytest.raises(ValueError, match=rf"shape \(2, 3\) to {dim} dimensions"):
        truncate(np.ones((2, 3), dtype=np.float32), dim)


# --- peers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_pytrec_eval(seed: int) -> None:
    """trec_eval's own code gives the same figures for every query, on data without ties."""
    import pytrec_eval

    queries, documents, relevant = case(seed, queries=60, documents=400)
    left = queries.astype(np.float64) / np.linalg.norm(queries, axis=1, keepdims=True)
    right = documents.astype(np.float64) / np.linalg.norm(documents, axis=1, keepdims=True)
    qrels = {f"q{i:03}": {f"d{j}": 1 for j in wanted} for i, wanted in enumerate(relevant)}
    run = {f"q{i:03}": {f"d{j}": float(s) for j, s in enumerate(row)} for i, row in enumerate(left @ right.T)}
    names = {
        "recall_at_1": "recall_1",
        "recall_at_5": "recall_5",
        "recall_at_10": "recall_10",
        "recall_at_100": "recall_100",
        "mrr": "recip_rank",
        "ndcg_at_10": "ndcg_cut_10",
        "map": "map",
    }
    measures = {"recall.1,5,10,100", "recip_rank", "ndcg_cut.10", "map"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    ours = metrics(relevant_ranks(queries, documents, relevant))
    for name, their_name in names.items():
        assert ours[name] == pytest.approx([theirs[q][their_name] for q in sorted(qrels)], abs=1e-9), name


def test_metrics_equal_the_librarys_evaluator(monkeypatch: pytest.MonkeyPatch) -> None:
    """sentence-transformers' InformationRetrievalEvaluator, given the same vectors, reports the same means.

    Its MRR and MAP have a cutoff, which is set to the size of the corpus.
    """
    import torch
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import cos_sim

    queries, documents, relevant = case(7, queries=60, documents=400)
    evaluator = InformationRetrievalEvaluator(
        {f"q{i}": "" for i in range(60)},
        {f"d{j}": "" for j in range(400)},
        {f"q{i}": {f"d{j}" for j in wanted} for i, wanted in enumerate(relevant)},
        mrr_at_k=[400],
        ndcg_at_k=[10],
        precision_recall_at_k=[1, 5, 10, 100],
        map_at_k=[400],
        score_functions={"cosine": cos_sim},
    )
    vectors = {"query": torch.from_numpy(queries), "document": torch.from_numpy(documents)}
    monkeypatch.setattr(evaluator, "embed_inputs", lambda *_, encode_fn_name, **__: vectors[encode_fn_name])
    theirs = evaluator.compute_all_metrics(None)["cosine"]
    ours = summary(metrics(relevant_ranks(queries, documents, relevant)))
    assert ours["mrr"] == pytest.approx(theirs["mrr@k"][400])
    assert ours["map"] == pytest.approx(theirs["map@k"][400])
    assert ours["ndcg_at_10"] == pytest.approx(theirs["ndcg@k"][10])
    for k in ranking.KS:
        assert ours[f"recall_at_{k}"] == pytest.approx(theirs["recall@k"][k])
