"""This process's place among those that train together, and what they exchange: tensors only, nothing pickled.

All processes plan the same batches. Each encodes its share of a batch's texts; the vectors are gathered, so every
process computes the loss of the whole batch, with all its negatives; each carries the gradient back through its own
share, and the parameters' gradients are summed. The result is that of one process up to rounding, whatever the
number. `launch.py` starts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """This process's place among those that train together; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that reports and saves."""
        return self.rank == 0

    def gather(self, own: Tensor, rows: int) -> Tensor:
        """Put together rows that were dealt out one by one (rank r has rows r, r + size, ...).

        Args:
            own: this process's rows, shape (its share, d), with or without gradients.
            rows: how many there are in all.

        Returns:
            All rows in order, shape (rows, d); gradients flow back into this process's own.
        """
        if self.size == 1:
            return own
        gathered: Tensor = _Gather.apply(own, rows, self)  # type: ignore[no-untyped-call]
        return gathered

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each parameter's gradient by the sum over all processes."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def agree(self, value: float) -> float:
        """The leader's value, in all processes: for what each might measure or see otherwise."""
        return float(self.share(torch.tensor([value], dtype=torch.float64)).item())

    def share(self, tensor: Tensor) -> Tensor:
        """The leader's tensor, on the CPU of all processes; the others give one of the same shape and type."""
        if self.size == 1:
            return tensor
        shared = tensor.to(device())
        dist.broadcast(shared, src=0)
        return shared.cpu()

    def total(self, value: int) -> int:
        """The sum of a count over all processes."""
        if self.size == 1:
            return value
        summed = torch.tensor([value], dtype=torch.int64, device=device())
        dist.all_reduce(summed)
        return int(summed.item())


ALONE: Final = Group()
"""The group of a single process."""


def device() -> torch.device:
    """Where tensors must be to be exchanged: NCCL moves those of a GPU, gloo those of the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Gather(torch.autograd.Function):
    """All-gather whose backward takes this process's rows: the loss is the same in all, so nothing is to be summed."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: int, group: Group) -> Tensor:
        ctx.group = group
        share = -(-rows // group.size)
        padded = own.new_zeros(share, own.shape[1])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(group.size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:rows]  # (share, size, d) -> (rows, d)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.group.rank :: ctx.group.size].contiguous(), None, None
