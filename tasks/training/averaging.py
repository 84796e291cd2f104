"""Averages of the weights a training started from and those it came to (WiSE-FT, Wortsman et al. 2022).

An average forgets less of what the starting model knew, at no cost when it serves. How far to go is chosen on dev, as
checkpoints are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from tasks.encoding import load

ALPHAS: Final = (1.0, 0.75, 0.5)
"""Shares of the way from the starting weights to the tuned ones that are tried."""


def weights(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a saved model, on the CPU, under the names of another's, whose architecture it must have."""
    found = load(folder, "cpu").state_dict()
    return {name: found[name] for name in like}


def average(started: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """`(1 - alpha) * started + alpha * tuned` for tensors of floats; of others, and for alpha 1, the tuned ones."""
    if alpha == 1.0:
        return dict(tuned)
    return {
        name: started[name].lerp(tensor, alpha) if tensor.is_floating_point() else tensor
        for name, tensor in tuned.items()
    }
