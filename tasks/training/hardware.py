"""What the training machine does well. What is said of CUDA here is written for it and was never run on it."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from typing import Final, Literal

import torch
from torch import Tensor

_ROUNDS: Final = 9
"""Interleaved measurements of both precisions, of which the median ratio counts."""


def device() -> torch.device:
    """The current CUDA device where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def gpus() -> int:
    """CUDA devices of this machine."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def prepare(where: torch.device) -> None:
    """Let CUDA's matrix products that stay in fp32 use TF32 tensor cores (10 bits of mantissa; bf16 has 7)."""
    if where.type == "cuda":
        torch.set_float32_matmul_precision("high")


def moved(tensor: Tensor, where: torch.device) -> Tensor:
    """The tensor on the device; to a GPU from pinned memory, so that the copy does not hold up what comes next."""
    if where.type != "cuda":
        return tensor.to(where)
    return tensor.pin_memory().to(where, non_blocking=True)


def bf16_pays(where: torch.device) -> bool:
    """Whether bf16 autocast is faster than fp32: by what the processor says it can, unless a measurement objects.

    A CPU with bf16 dot products (AVX512-BF16 or AMX) is about twice as fast with them, one without far slower. So the
    capability decides, and the same machine decides the same every night; the measurement only says no where bf16
    is not faster at all, by the median of interleaved runs, which a busy machine slows alike. About 0.1 s.
    """
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    layer = torch.nn.Linear(384, 1536)
    tokens = torch.randn(1024, 384, generator=torch.Generator().manual_seed(0))
    seconds = [[_cpu_seconds(layer, tokens, bf16=bf16) for bf16 in (False, True)] for _ in range(_ROUNDS)]
    return statistics.median(fp32 / max(bf16, 1e-9) for fp32, bf16 in seconds) > 1


def _cpu_seconds(layer: torch.nn.Linear, tokens: Tensor, *, bf16: bool) -> float:
    """CPU time of one forward and backward of a linear layer, of the size of a small encoder's chunk of tokens."""
    begun = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        result: Tensor = layer(tokens)
    torch.autograd.backward([result.float().sum()])
    return time.process_time() - begun


def attention(where: torch.device, *, half: bool = False) -> Literal["eager", "sdpa", "flash_attention_2"]:
    """The attention kernel that is fastest in training.

    On a CPU the flash kernel behind SDPA has a slow backward pass, and plain matrix products win. FlashAttention
    computes in half precision only (`half`).
    """
    if where.type != "cuda":
        return "eager"
    from transformers.utils.import_utils import is_flash_attn_2_available

    return "flash_attention_2" if half and is_flash_attn_2_available() else "sdpa"


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
