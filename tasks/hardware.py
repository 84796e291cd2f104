"""What the training machine does well: measured on a CPU, by capability on CUDA (written for it, not tested there)."""

from __future__ import annotations

import resource
import sys
import time
from typing import Final, Literal

import torch
from torch import Tensor

_WORTHWHILE: Final = 1.3
"""Times by which bf16 must be faster. Well away from 1, so that the choice does not flip between runs of a machine:
where the CPU has bf16 dot products the ratio is 2 or more, elsewhere far below 1."""

_SECONDS: Final = 0.25
"""How long each of the two precisions is measured."""


def device() -> torch.device:
    """The current CUDA device where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def bf16_pays(where: torch.device) -> bool:
    """Whether forward and backward of a linear layer are clearly faster under bf16 autocast; takes about a second."""
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    fp32 = _seconds_of_linear(where, enabled=False)
    bf16 = _seconds_of_linear(where, enabled=True)
    return fp32 > _WORTHWHILE * bf16


def _seconds_of_linear(where: torch.device, *, enabled: bool) -> float:
    """Shortest time of a linear layer's forward and backward, of the size of a small encoder's chunk of tokens."""
    layer = torch.nn.Linear(384, 1536, device=where)
    tokens = torch.randn(1024, 384, device=where, generator=torch.Generator(where).manual_seed(0))
    best = float("inf")
    start = time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        begun = time.perf_counter()
        with torch.autocast(where.type, torch.bfloat16, enabled=enabled):
            result: Tensor = layer(tokens)
        torch.autograd.backward([result.float().sum()])
        best = min(best, time.perf_counter() - begun)
    return best


def attention(where: torch.device) -> Literal["eager", "sdpa", "flash_attention_2"]:
    """The attention kernel that is fastest in training.

    On a CPU the flash kernel behind SDPA has a slow backward pass, and plain matrix products win.
    """
    if where.type != "cuda":
        return "eager"
    from transformers.utils.import_utils import is_flash_attn_2_available

    return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or in PyTorch's CPU allocator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def peak_memory() -> int:
    """Most bytes this process has used: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
