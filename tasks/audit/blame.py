"""Which upload has wrong labels: an ablation in closed form, and whether an upload's labels look drawn at random.

Scores on a few dev queries cannot tell: an upload of which a fifth is wrong moves them by less than chance does. Its
own labels can. Each upload is left out in turn, a linear adapter is fitted to all others (ridge regression on cached
vectors, towards the identity), and what the upload says is compared with what that adapter finds. A pair is *outlying*
when more than a quarter of the upload's own documents are nearer to its query than its own, and the nearest is far
nearer. Of labels drawn at random most are outlying, of right ones hardly any, also where a topic is hard: then no other
document stands out. How many would be outlying at random is measured by shuffling the upload's own labels.

`python -m tests.benchmarks audit` says how often this is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]

LEAST: Final = 50
"""Pairs below which an upload is not judged: a fifth of them would be too few to tell from chance."""

MOST_PAIRS: Final = 200
"""Pairs of one upload that are looked at."""

_RIDGE: Final = 30.0
"""Weight of the identity in the regression, in pairs."""

_RANK: Final = 0.25
"""Share of the upload's documents that are nearer than the labelled one, from which a pair may be outlying."""

_FAR: Final = 2.0
"""How much nearer the nearest must be, in standard deviations of the query's similarities."""

_DOCUMENTS: Final = 50
"""Documents that a label is compared with at least; those of other uploads are added where an upload has fewer."""

_DRAWS: Final = 5
"""Times that an upload's labels are shuffled to see how many pairs would be outlying."""

_VISIBLE: Final = 0.35
"""Least share of shuffled pairs that are outlying: with less, the vectors do not tell the documents apart."""

_STANDS_OUT: Final = -0.2
_DISTINCT: Final = 0.2
_MUTUAL: Final = 0.9
"""Where a model tells the documents of an upload apart; see `_told_apart`. What 100 nights' uploads of 50 pairs have,
as the middle and as what 95 are above (topic: of one service of AWS) or below (all others):

|           | topic    | unrelated   | queries in a cipher | documents in a cipher | both in a cipher |
|-----------|----------|-------------|---------------------|-----------------------|------------------|
| stands out| .6, .1   | .2, .6      | .2, .9              | .3, 2.7               | -.4, -.1         |
| distinct  | .8, .4   | .1, .3      | .0, .2              | .1, .3                | .7, .9           |
| mutual    | 1.4, .95 | .75, .9     | .8, .9              | .7, .9                | 1.0, 1.2         |
"""

_LEAST_SHARE: Final = 0.06
"""Share of random labels below which an upload is not named, however certain it is."""

_SELDOM: Final = 0.005
"""Least share of outlying pairs that is expected of right labels: nobody labels without any slip."""

_ALONE: Final = 0.10
"""The same where nothing is there to compare with; of the sets that were measured the worst has 0.03."""

_CHANCE: Final = 0.05
"""Chance that any upload with right labels is named in a night, if pairs were independent."""


@dataclass(frozen=True)
class Labels:
    """Some training pairs as vectors.

    Attributes:
        queries: Unit vectors of shape (n, d), of a model that was not trained on the pairs.
        documents: Unit vectors of shape (m, d) of the distinct documents of these pairs.
        document: For each pair, its document; of shape (n,).
        answers: Pairs of query and document that are labelled right, each as `query_id * m + document`, ascending.
        query_id: For each pair, its query; of shape (n,).
    """

    queries: Vectors
    documents: Vectors
    document: Ints
    query_id: Ints
    answers: Ints


@dataclass(frozen=True)
class Judgement:
    """What was found of one upload.

    Attributes:
        pairs: Pairs of it that were looked at.
        share: Share of its labels that look drawn at random, 0 to 1; None where it could not be judged.
        named: Whether that is more than chance and honest slips explain.
        why: One sentence without the upload's name.
    """

    pairs: int
    share: float | None
    named: bool
    why: str


@dataclass(frozen=True)
class _Seen:
    """Outlying pairs of an upload, and how many of its pairs would be if its labels were shuffled."""

    outlying: int
    pairs: int
    at_random: float
    told_apart: bool


def judge(labels: Labels, groups: Sequence[Ints], seed: int) -> list[Judgement]:
    """Judge each group of pairs (rows of `labels`) by an adapter that is fitted to all other pairs.

    A group that is named is left out when the others are judged, the worst first: it would spoil what they are
    compared with.

    Args:
        labels: The pairs of all groups, and of earlier uploads to compare with.
        groups: Rows of each group, no row in two.
        seed: Of the draws.
    """
    spoilt: dict[int, Judgement] = {}
    while True:
        found = _judge_all(labels, groups, spoilt, seed)
        new = [number for number, one in enumerate(found) if one.named and number not in spoilt]
        if not new:
            return found
        worst = max(new, key=lambda number: found[number].share or 0.0)
        spoilt[worst] = found[worst]


def without(labels: Labels, rows: Ints, queries: Vectors, documents: Vectors, relevant: Sequence[Ints]) -> float:
    """How much higher MRR is on dev queries when the adapter is fitted without these rows; above 0, they hurt.

    `relevant[i]` are the documents, of shape (m, d), that are relevant to dev query i.
    """
    from tasks.ranking import metrics, relevant_ranks

    fit = _Fit(labels, np.arange(len(labels.queries)))
    scores = [
        float(metrics(relevant_ranks(queries @ fit.without(left), documents, relevant))["mrr"].mean())
        for left in (rows, rows[:0])
    ]
    return scores[0] - scores[1]


def _judge_all(labels: Labels, groups: Sequence[Ints], spoilt: Mapping[int, Judgement], seed: int) -> list[Judgement]:
    """Judge every group that is not spoilt; what right labels are like is seen in the other groups and the rest."""
    trusted = np.ones(len(labels.queries), dtype=bool)
    for number in spoilt:
        trusted[groups[number]] = False
    rest = np.setdiff1d(np.flatnonzero(trusted), np.concatenate([*groups, np.empty(0, np.int64)]).astype(np.int64))
    parts = [*groups, *np.array_split(rest, max(1, len(rest) // MOST_PAIRS))]
    fit = _Fit(labels, np.flatnonzero(trusted))
    seen = {
        number: _look(labels, part, fit.without(part), np.random.default_rng([seed, number]))
        for number, part in enumerate(parts)
        if len(part) >= LEAST and number not in spoilt
    }
    outlying, pairs = (sum(getattr(one, name) for one in seen.values()) for name in ("outlying", "pairs"))
    judged = sum(len(group) >= LEAST for group in groups)

    def conclude(number: int) -> Judgement:
        if number in spoilt:
            return spoilt[number]
        if number not in seen:
            why = f"{len(groups[number])} pairs are too few to judge; it takes {LEAST}."
            return Judgement(len(groups[number]), None, False, why)
        own = seen[number]
        others = pairs - own.pairs
        expected = max(_SELDOM, (outlying - own.outlying) / others) if others >= LEAST else _ALONE
        return _conclude(own, expected, judged)

    return [conclude(number) for number in range(len(groups))]


def _conclude(seen: _Seen, expected: float, judged: int) -> Judgement:
    from scipy.stats import binom

    if not seen.told_apart or seen.at_random < _VISIBLE:
        why = "The model hardly tells its documents apart (another language, or texts that are alike): not judged."
        return Judgement(seen.pairs, None, False, why)
    share = (seen.outlying / seen.pairs - expected) / max(seen.at_random - expected, 0.1)
    share = float(np.clip(share, 0.0, 1.0))
    chance = float(binom.sf(seen.outlying - 1, seen.pairs, expected))
    named = share >= _LEAST_SHARE and chance < _CHANCE / judged
    why = (
        f"For {seen.outlying} of {seen.pairs} pairs another document fits far better than the labelled one; of right "
        f"labels {expected * seen.pairs:.1f} would be expected, of labels drawn at random "
        f"{seen.at_random * seen.pairs:.0f}."
    )
    return Judgement(seen.pairs, share, named, why)


class _Fit:
    """Ridge regressions on nearly the same pairs: sums over all of them, from which a few are taken away again."""

    def __init__(self, labels: Labels, rows: Ints) -> None:
        self._labels = labels
        self._chosen = np.zeros(len(labels.queries), dtype=bool)
        self._chosen[rows] = True
        self._sums = self._of(rows)

    def _of(self, rows: Ints) -> NDArray[np.float64]:
        """Sums of products, of shape (2, d, d): queries with queries, and with their documents."""
        queries = self._labels.queries[rows].astype(np.float64)
        found = self._labels.documents[self._labels.document[rows]].astype(np.float64)
        return np.stack([queries.T @ queries, queries.T @ found])

    def without(self, rows: Ints) -> NDArray[np.float64]:
        """The matrix W, of shape (d, d), that minimises |QW - D|^2 + ridge * |W - I|^2 over all pairs but these."""
        squares, products = self._sums - self._of(rows[self._chosen[rows]])
        identity = np.eye(len(squares)) * _RIDGE
        return np.asarray(np.linalg.solve(squares + identity, products + identity))


def _look(labels: Labels, rows: Ints, adapter: NDArray[np.float64], rng: np.random.Generator) -> _Seen:
    """Compare the labels of some pairs with what an adapter finds among their own documents."""
    rows = np.sort(rng.permutation(rows)[:MOST_PAIRS])
    own = np.unique(labels.document[rows])
    count = len(own)
    if len(own) < _DOCUMENTS:
        others = np.setdiff1d(np.arange(len(labels.documents)), own)
        own = np.concatenate([own, rng.permutation(others)[: _DOCUMENTS - len(own)]])
    adapted = labels.queries[rows] @ adapter
    scores = adapted @ labels.documents[own].T  # (rows, own); a query's length changes no comparison of its documents
    known = np.isin(labels.query_id[rows][:, None] * len(labels.documents) + own, labels.answers)
    column = {int(document): place for place, document in enumerate(own)}
    labelled = np.array([column[int(document)] for document in labels.document[rows]])
    outlying = _outlying(scores, labelled, known)
    shuffled = [_outlying(scores, rng.permutation(labelled), np.zeros_like(known)).mean() for _ in range(_DRAWS)]
    return _Seen(
        outlying=int(outlying.sum()),
        pairs=len(rows),
        at_random=float(np.mean(shuffled)),
        told_apart=_told_apart(scores[np.unique(labels.query_id[rows], return_index=True)[1]], count),
    )


def _outlying(scores: NDArray[np.float64], labelled: Ints, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which pairs are outlying; documents that are labelled right for the query elsewhere do not count against it."""
    own = np.take_along_axis(scores, labelled[:, None], axis=1)
    others = ~known
    np.put_along_axis(others, labelled[:, None], False, axis=1)
    nearer = ((scores > own) & others).sum(axis=1) / np.maximum(others.sum(axis=1), 1)
    best = np.where(others, scores, -np.inf).max(axis=1)
    far = (best - own[:, 0]) >= _FAR * np.maximum(scores.std(axis=1), 1e-12)
    return np.asarray((nearer > _RANK) & far)


def _told_apart(scores: NDArray[np.float64], own: int) -> bool:
    """Whether queries find something among the documents, of which the first `own` are the upload's.

    A language that the model does not know must accuse nobody, and neither must noise. Three things are compared with
    independent scores of the same shape: how far the nearest document *stands out* of a query's scores; the same after
    the means of documents and of queries are taken away, since what is near to everything tells nothing (*distinct*);
    and how many documents are the nearest one of their nearest query (*mutual*).
    """
    queries, documents = scores.shape
    centred = scores - scores.mean(axis=0)
    centred -= centred.mean(axis=1, keepdims=True)
    stands_out, distinct = (
        np.median((found.max(axis=1) - found.mean(axis=1)) / np.maximum(found.std(axis=1), 1e-12)) - _highest(documents)
        for found in (scores, centred)
    )
    # of n x m independent scores, the highest of a column is that of its row with probability n / (n + m - 1)
    mutual = centred.argmax(axis=1)[centred.argmax(axis=0)] == np.arange(documents)
    share = mutual[:own].mean() * (queries + documents - 1) / queries
    return bool(stands_out >= _STANDS_OUT and distinct >= _DISTINCT and share >= _MUTUAL)


def _highest(count: int) -> float:
    """What the largest of so many normal deviates is expected to be (Blom 1958)."""
    from scipy.special import ndtri

    return float(ndtri((count - 0.375) / (count + 0.25)))
