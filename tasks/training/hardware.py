"""What the training machine does well. What concerns CUDA was written without a GPU to try it on."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from typing import Final, Literal

import torch
from torch import Tensor

from tasks.encoding import moved as moved
from tasks.encoding import out_of_memory as out_of_memory
from tasks.encoding import release as release
from tasks.training.result import TrainingError

_TENSOR_CORES: Final = (7, 0)
"""Compute capability from which a GPU multiplies fp16 matrices faster than fp32 ones (Volta)."""

_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_ROUNDS: Final = 9
"""Interleaved measurements of both precisions, of which the median ratio counts."""


def device() -> torch.device:
    """The current CUDA device where there is one, else the CPU.

    Raises TrainingError where a GPU was asked for (RATCHET_REQUIRE_GPU=1, as the pool `gpu` does) and there is none: on
    a CPU the same training may take a hundred times as long, and nothing else would say why.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if os.environ.get("RATCHET_REQUIRE_GPU") == "1":
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise TrainingError(
            f"a GPU is required here (RATCHET_REQUIRE_GPU), but PyTorch {torch.__version__}, built {build}, sees none: "
            "see what nvidia-smi says; PyTorch's CUDA 13 builds need driver 580 or later"
        )
    return torch.device("cpu")


def gpus() -> int:
    """CUDA devices of this machine."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def describe(where: torch.device) -> str:
    """The device by name, with its driver's CUDA version where it is a GPU."""
    if where.type != "cuda":
        return f"{where.type} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"
    driver = int(torch._C._cuda_getDriverVersion())  # type: ignore[attr-defined]
    cuda = f"CUDA {torch.version.cuda}, driver for CUDA {driver // 1000}.{driver % 1000 // 10}"
    return f"{torch.cuda.get_device_name(where)} ({cuda})"


def chunk_tokens(where: torch.device) -> int:
    """Padded tokens that go through the model at once.

    On a CPU enough for full matrix products, little enough for the cache. On a GPU a whole batch where it fits: each
    chunk launches every kernel of the model again, which takes longer than a thousand tokens keep the GPU busy.
    """
    return 65_536 if where.type == "cuda" else 1024


def half(where: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The precision of the forward that is fastest in training: bf16, before Ampere fp16, on most CPUs fp32."""
    if where.type == "cuda" and not bf16_pays(where):
        return "fp16" if torch.cuda.get_device_capability(where) >= _TENSOR_CORES else "fp32"
    return "bf16" if bf16_pays(where) else "fp32"


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


def attention(where: torch.device) -> Literal["eager", "sdpa"]:
    """The attention kernel that is fastest in training of padded chunks.

    On a CPU the flash kernel behind SDPA has a slow backward pass, and plain matrix products win.
    """
    return "sdpa" if where.type == "cuda" else "eager"


def try_out(where: torch.device, precision: str) -> None:
    """Multiply two small matrices. Raises RuntimeError where the device, its driver or its kernels cannot."""
    ones = torch.ones(64, 64, device=where, dtype=_DTYPES[precision])
    if float((ones @ ones)[0, 0]) != 64:
        raise RuntimeError(f"{describe(where)} multiplies matrices of ones wrongly")


def attends_by_text(where: torch.device) -> bool:
    """Whether the device may have a kernel for the attention of texts that lie end to end (`packed.py`)."""
    return where.type == "cuda"


def computes(precision: str, where: torch.device) -> bool:
    """Whether the device has instructions for this precision, and need not imitate it."""
    return where.type != "cuda" or precision != "bf16" or bf16_pays(where)


def wait(where: torch.device) -> None:
    """Wait until a GPU has done what it was given, before the clock is read."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def free_memory(where: torch.device) -> int | None:
    """Bytes of a GPU that can still be had, PyTorch's reserve included; None on a CPU, where it is not limited here."""
    if where.type != "cuda":
        return None
    reserve = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
    return int(torch.cuda.mem_get_info(where)[0]) + reserve


def peak_memory() -> int:
    """Most bytes this process has used: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
