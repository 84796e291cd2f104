"""Training losses on embeddings, each a pure function of tensors.

Definitions and defaults are those of sentence-transformers (the tests compare the values with that library's):
in-batch ranking (`MultipleNegativesRankingLoss`, scale 20 on cosines), `CoSENTLoss`, `TripletLoss` with the cosine
distance, and `MatryoshkaLoss` as their sum over prefixes of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

SCALE: Final = 20.0
"""Inverse temperature of the ranking and CoSENT losses."""

TRIPLET_MARGIN: Final = 0.2
"""How much further than the positive the negative should be, in cosine distance.

The cosine rather than the library's default (Euclidean, margin 5): vectors here have length 1, where no pair is 5
apart, and Matryoshka prefixes have other lengths, which a Euclidean margin would depend on.
"""


def ranking_loss(queries: Tensor, candidates: Tensor, positives: Tensor, masked: Tensor | None = None) -> Tensor:
    """Cross-entropy of each query's own positive among all candidates of the batch (InfoNCE, van den Oord 2018).

    Args:
        queries: vectors of shape (n, d).
        candidates: vectors of shape (m, d): positives and hard negatives of the whole batch.
        positives: shape (n,), the column of each query's own positive among the candidates.
        masked: shape (n, m), true where a candidate is not a negative of the query although it is not its own
            positive (it is another known positive). Such a candidate takes no part in that query's sum.
    """
    similarities = normalize(queries, dim=-1) @ normalize(candidates, dim=-1).T * SCALE  # (n, m)
    if masked is not None:
        similarities = similarities.masked_fill(masked, -torch.inf)
    return cross_entropy(similarities, positives)


def cosent_loss(left: Tensor, right: Tensor, scores: Tensor) -> Tensor:
    """CoSENT (Su 2022): log(1 + sum exp(scale * (cos_k - cos_i))) over all i, k with a higher score for i than for k.

    Args:
        left: vectors of one side of each pair, shape (n, d).
        right: those of the other side, shape (n, d).
        scores: shape (n,), the labelled similarity of each pair; only their order matters.
    """
    cosines = cosine_similarity(left, right) * SCALE  # (n,)
    differences = cosines[None, :] - cosines[:, None]  # (i, k): how much k is above i
    wanted = scores[:, None] > scores[None, :]  # (i, k): i should be above k
    terms = differences[wanted]
    return torch.logsumexp(torch.cat([terms.new_zeros(1), terms]), dim=0)


def triplet_loss(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Mean of max(0, cos(q, n) - cos(q, p) + margin) over triplets; all arguments of shape (n, d)."""
    gaps = cosine_similarity(queries, negatives) - cosine_similarity(queries, positives)
    return (gaps + TRIPLET_MARGIN).clamp(min=0).mean()


def matryoshka(loss: Callable[[int], Tensor], dims: Sequence[int]) -> Tensor:
    """Sum of `loss(dim)` over the dimensions (Kusupati 2022, weights 1); `loss` cuts the vectors to `dim` itself."""
    return torch.stack([loss(dim) for dim in dims]).sum()
