"""Moving tensors to a device, and telling when its memory has run out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

_OUT_OF_MEMORY: Final = (
    "can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def moved(tensor: torch.Tensor, where: torch.device) -> torch.Tensor:
    """The tensor on the device; to a GPU from pinned memory, so that the copy does not hold up what comes next."""
    if where.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(where)
    return tensor.pin_memory().to(where, non_blocking=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: in PyTorch's allocators, or in a library that allocates by itself."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def put_aside(models: Iterable[SentenceTransformer]) -> None:
    """Move models to the CPU, so that another process has a GPU's memory to itself."""
    for model in models:
        model.to("cpu")
    release()


def release() -> None:
    """Give back the GPU memory that PyTorch holds in reserve."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
