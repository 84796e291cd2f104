"""Losses against numbers worked by hand and against sentence-transformers' own implementations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch import Tensor, nn

from tasks.training.losses import TRIPLET_MARGIN, cosent_loss, matryoshka, ranking_loss, triplet_loss

DIMS = (16, 8, 4)


class GivenVectors(nn.Module):
    """Stands where the library's losses expect a model: its vectors are the features themselves."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hand the vectors on."""
        return dict(features)

    def get_embedding_dimension(self) -> int:
        """The width of the vectors."""
        return DIMS[0]


def vectors(*columns: int, seed: int = 0) -> list[Tensor]:
    """Random columns of vectors that record gradients, of the given heights."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, DIMS[0], generator=generator).requires_grad_() for rows in columns]


def library_matryoshka(loss: Any, model: GivenVectors, columns: list[Tensor], labels: Tensor) -> Tensor:
    """The library's MatryoshkaLoss of its loss, on given vectors."""
    wrapped = MatryoshkaLoss(model, loss, list(DIMS))
    value: Tensor = wrapped([{"sentence_embedding": column} for column in columns], labels)
    return value


def test_ranking_loss_of_orthogonal_vectors_by_hand() -> None:
    """Own cosine 1, the other 0: -log(e^20 / (e^20 + 1)) each; equal documents: log 2."""
    apart = torch.eye(2, dtype=torch.float64)
    found = ranking_loss(apart, apart, torch.tensor([0, 1]))
    assert found.item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-3)
    same = ranking_loss(torch.eye(2), torch.ones(2, 2), torch.tensor([0, 1]))
    assert same.item() == pytest.approx(math.log(2), rel=1e-6)


def test_a_masked_candidate_takes_no_part() -> None:
    """Masking a column for a query equals leaving the column out for it."""
    queries, documents = vectors(1, 3)
    masked = ranking_loss(queries, documents, torch.tensor([0]), torch.tensor([[False, True, False]]))
    left_out = ranking_loss(queries, documents[[0, 2]], torch.tensor([0]))
    assert masked.item() == pytest.approx(left_out.item(), rel=1e-6)


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_ranking_under_matryoshka_is_the_librarys(negatives: int) -> None:
    """Value and gradients equal MultipleNegativesRankingLoss in MatryoshkaLoss, with and without hard negatives."""
    model = GivenVectors()
    columns = vectors(5, 5, *[5] * negatives)
    expected = library_matryoshka(MultipleNegativesRankingLoss(model), model, columns, torch.zeros(5))
    expected_gradients = torch.autograd.grad(expected, columns)
    candidates = torch.cat(columns[1:])
    found = matryoshka(lambda dim: ranking_loss(columns[0][:, :dim], candidates[:, :dim], torch.arange(5)), DIMS)
    gradients = torch.autograd.grad(found, columns)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_cosent_under_matryoshka_is_the_librarys() -> None:
    """Value equals CoSENTLoss in MatryoshkaLoss, ties among the scores included."""
    model = GivenVectors()
    left, right = vectors(6, 6)
    scores = torch.tensor([0.1, 0.9, 0.9, 0.5, 0.0, 0.5])
    expected = library_matryoshka(CoSENTLoss(model), model, [left, right], scores)
    found = matryoshka(lambda dim: cosent_loss(left[:, :dim], right[:, :dim], scores), DIMS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_cosent_of_right_order_and_of_equal_scores() -> None:
    """Two pairs in the right order, 2 apart in cosine: log(1 + e^-40), nearly 0; equal scores ask for nothing: 0."""
    left, right = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert cosent_loss(left, right, torch.tensor([1.0, 0.0])).item() < 1e-6
    assert cosent_loss(left, right, torch.tensor([0.0, 1.0])).item() == pytest.approx(40)
    assert cosent_loss(left, right, torch.tensor([0.5, 0.5])).item() == 0


def test_triplet_under_matryoshka_is_the_librarys() -> None:
    """Value equals TripletLoss with the cosine distance and our margin, in MatryoshkaLoss."""
    model = GivenVectors()
    columns = vectors(7, 7, 7)
    theirs = TripletLoss(model, distance_metric=TripletDistanceMetric.COSINE, triplet_margin=TRIPLET_MARGIN)
    expected = library_matryoshka(theirs, model, columns, torch.zeros(7))
    found = matryoshka(lambda dim: triplet_loss(*(column[:, :dim] for column in columns)), DIMS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_triplet_by_hand() -> None:
    """Cosines 1 to the positive and 0.9 to the negative: 0.9 - 1 + 0.2 = 0.1; to an opposite negative: 0."""
    query = torch.tensor([[1.0, 0.0]])
    near = torch.tensor([[0.9, math.sqrt(1 - 0.81)]])
    assert triplet_loss(query, query, near).item() == pytest.approx(0.1, abs=1e-6)
    assert triplet_loss(query, query, -query).item() == 0
