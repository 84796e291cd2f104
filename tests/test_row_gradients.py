"""Gradients of embedding tables, beside those of PyTorch's own lookup."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tasks.training.row_gradients import RowGradients, use_row_gradients


def tables(padding: int | None) -> tuple[nn.Embedding, nn.Embedding]:
    """Two equal tables, the second of which collects its gradient by row."""
    torch.manual_seed(0)
    plain, changed = nn.Embedding(50, 8, padding_idx=padding), nn.Embedding(50, 8, padding_idx=padding)
    changed.load_state_dict(plain.state_dict())
    use_row_gradients(changed)
    assert type(changed) is RowGradients
    return plain, changed


def gradient(table: nn.Embedding, lookups: list[Tensor]) -> Tensor:
    """Of a loss over several lookups of the table, each of its own weight."""
    weights = [torch.randn(*numbers.shape, 8, generator=torch.Generator().manual_seed(1)) for numbers in lookups]
    torch.autograd.backward([sum((table(n) * w).sum() for n, w in zip(lookups, weights, strict=True))])
    assert table.weight.grad is not None
    return table.weight.grad


@pytest.mark.parametrize("padding", [None, 0, 7])
def test_the_gradient_is_that_of_the_plain_lookup(
    padding: int | None,
) -> None:
    """Over repeated numbers, several lookups, and with the row of the padding token left out."""
    lookups = [torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    plain, changed = tables(padding)
    expected, found = gradient(plain, lookups), gradient(changed, lookups)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    if padding is not None:
        assert not found[padding].any()


def test_a_second_backward_adds_to_the_first() -> None:
    """As everywhere in PyTorch."""
    plain, changed = tables(None)
    numbers = [torch.tensor([[1, 1, 2]])]
    for table in (plain, changed):
        gradient(table, numbers)
        gradient(table, numbers)
    assert plain.weight.grad is not None
    torch.testing.assert_close(changed.weight.grad, plain.weight.grad)


def test_values_and_state_are_those_of_the_plain_table() -> None:
    """With and without gradients; a saved model does not know of the change."""
    plain, changed = tables(3)
    numbers = torch.arange(50)
    assert torch.equal(plain(numbers), changed(numbers))
    with torch.no_grad():
        assert torch.equal(plain(numbers), changed(numbers))
    assert list(changed.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("kept", [nn.Embedding(5, 2, max_norm=1.0), nn.Embedding(5, 2, scale_grad_by_freq=True)])
def test_tables_that_do_more_than_look_up_stay_as_they_are(kept: nn.Embedding) -> None:
    """What rescales rows or gradients keeps its own backward pass."""
    use_row_gradients(kept)
    assert type(kept) is nn.Embedding


def test_a_frozen_table_stays_as_it_is() -> None:
    """Nothing has to be collected for it."""
    frozen = nn.Embedding(5, 2).requires_grad_(False)
    use_row_gradients(frozen)
    assert type(frozen) is nn.Embedding
