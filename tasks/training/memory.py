"""How much memory training takes, found before the first step from the model itself.

The parameters, their gradients and the optimiser's moments are counted; what a forward keeps for the backward pass is
measured on a few tokens, with the model's own layers, precision and attention, and grows with the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_PER_TRAINED: Final = 4 + 8
"""Bytes for each trained parameter beside its own: the gradient, and two moments of AdamW, in fp32."""


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes.

    Attributes:
        fixed: whatever the batch: weights, gradients, moments, and the copies of the weights in half precision.
        per_token: for each token whose activations are kept until the backward pass.
    """

    fixed: int
    per_token: float

    def of(self, tokens: float) -> int:
        """For a step with the activations of so many tokens."""
        return int(self.fixed + self.per_token * tokens)

    def tokens_within(self, budget: int) -> int:
        """How many tokens' activations fit, beside what is fixed."""
        return max(0, int((budget - self.fixed) / max(self.per_token, 1e-9)))


def measure(model: nn.Module, forwards: Sequence[tuple[int, Callable[[], Tensor]]], *, recomputed: bool) -> Memory:
    """What training a model takes.

    Args:
        model: on any device; on `meta` nothing is computed.
        forwards: two forwards with gradients, and the tokens of each; the second has more.
        recomputed: whether each layer's activations are computed again in the backward pass (gradient checkpointing);
            the forwards themselves must keep them. Then a layer's input is kept, and one layer's activations at a time.
    """
    parameters = list(model.parameters())
    own = {parameter.untyped_storage()._cdata for parameter in parameters}
    (few, small), (many, large) = ((tokens, _kept(forward, own)) for tokens, forward in forwards)
    per_token = max(0.0, (large - small) / (many - few))
    copies = max(0, int(small - per_token * few))
    fixed = sum(p.nbytes + (_PER_TRAINED * p.numel() if p.requires_grad else 0) for p in parameters) + copies
    layers = max((len(module) for module in model.modules() if isinstance(module, nn.ModuleList)), default=1)
    if recomputed and layers > 1:
        per_token = per_token / layers + layers * 4 * _width(model)
    return Memory(fixed, per_token)


def _kept(forward: Callable[[], Tensor], own: set[int]) -> int:
    """Bytes of all tensors but `own` that a forward keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        return tensor.detach()  # an output that its own node keeps would be a circle that nothing ever frees

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        vectors = forward()
    del vectors
    return sum(sizes.values())


def _width(model: nn.Module) -> int:
    """The width of the residual stream: that of the widest table of tokens."""
    return max((module.embedding_dim for module in model.modules() if isinstance(module, nn.Embedding)), default=0)
