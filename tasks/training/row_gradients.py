"""Embedding tables whose gradient grows only in the rows that were looked up.

PyTorch's own backward of a lookup writes a gradient of the whole table, almost all of it zeros, and adds it to the one
before: once per chunk of texts, so that a vocabulary of 30,000 costs a chunk of 1,000 tokens about as much as one layer
of the model. Adding the chunk's rows to the one gradient of the table gives the same sums. On CUDA such an addition has
no fixed order, and the copies cost little: there the library's way stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class RowGradients(nn.Embedding):
    """An embedding that adds to `weight.grad` in its backward pass, in the order of the lookups.

    It is meant for `Tensor.backward`: `torch.autograd.grad` with regard to the table finds nothing.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that callers may use
        """The rows of some numbers, of shape (*input.shape, width)."""
        if not torch.is_grad_enabled():
            return super().forward(input)
        found: Tensor = _Lookup.apply(self.weight, input, self.padding_idx)  # type: ignore[no-untyped-call]
        return found


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, numbers: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(numbers)
        ctx.weight, ctx.padding = weight, padding
        return functional.embedding(numbers, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        (numbers,) = ctx.saved_tensors
        flat, rows = numbers.flatten(), gradients[0].flatten(0, -2)
        if ctx.padding is not None:  # the row of the padding token never learns, as in the library
            rows = rows.masked_fill((flat == ctx.padding)[:, None], 0)
        if ctx.weight.grad is None:
            ctx.weight.grad = torch.zeros_like(ctx.weight)
        ctx.weight.grad.index_add_(0, flat, rows)
        return None, None, None


def use_row_gradients(model: nn.Module) -> None:
    """Let the trainable embedding tables of a model on the CPU collect their gradients by row; no weight changes."""
    for module in model.modules():
        plain = type(module) is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq
        if plain and module.weight.requires_grad and module.weight.device.type == "cpu":
            module.__class__ = RowGradients  # a module of the same state, so nothing that refers to it need change
