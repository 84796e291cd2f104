"""What one training step asks of a GPU, counted without one.

On the `meta` device every operation is dispatched, none computed, and one that would wait for a value raises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.config import BUNDLED_MODEL
from tasks.encoding import load, resolve_model
from tasks.training import hardware
from tasks.training.embedder import Embedder, Texts
from tasks.training.examples import Examples
from tasks.training.loop import batch_loss
from tasks.training.processes import Group
from tasks.training.start import choose_kernel
from tests.test_batches import table
from tests.test_buckets import TEXTS, WORDS

VIEWS = (
    "view",
    "transpose",
    "permute",
    "expand",
    "slice",
    "select",
    "squeeze",
    "unsqueeze",
    "detach",
    "alias",
    "split",
)
"""Operations that launch no kernel, by the beginning of their name."""


class Launches(TorchDispatchMode):
    """Counts the operations that would launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and do it."""
        name = str(function).removeprefix("aten.").lstrip("_")
        self.count += not name.startswith(VIEWS)
        return function(*args, **(kwargs or {}))


def launches(chunk_tokens: int) -> int:
    """Operations of the forward, loss and backward pass of one batch of 64 pairs of all-MiniLM-L6-v2."""
    model = load(resolve_model(BUNDLED_MODEL), "cpu").to("meta")
    rows = [(f"{' '.join(WORDS[: 1 + n % 9])} {n}", f"{TEXTS[n % 23]} again {n}", [], None) for n in range(64)]
    examples = Examples(table(*rows))
    (batch,) = examples.epoch(64, np.random.default_rng(0))
    queries, documents = Texts(model, examples.queries, "query"), Texts(model, examples.documents, "document")
    embedder = Embedder(model, chunk_tokens=chunk_tokens)
    choose_kernel(embedder, packed=True)
    with Launches() as counted:
        vectors = embedder.embed((queries, batch.queries), (documents, batch.documents))
        loss = batch_loss(batch, *vectors, (384, 256, 128, 64, 32))
        torch.autograd.backward([loss])
    assert all(p.grad is not None for name, p in model.named_parameters() if "pooler" not in name)
    return counted.count


def test_a_packed_step_is_few_launches_and_waits_for_nothing() -> None:
    """One forward for both columns, packed: half of what chunks of 1,024 tokens ask for; nothing is read back."""
    once = launches(hardware.chunk_tokens(torch.device("cuda")))
    assert once < 900
    assert launches(hardware.chunk_tokens(torch.device("cpu"))) > 2 * once


def test_a_process_without_a_share_of_a_batch_has_vectors_where_the_model_is() -> None:
    """Fewer texts than GPUs: NCCL gathers tensors of the GPU only."""
    model = load(resolve_model(BUNDLED_MODEL), "cpu").to("meta")
    seen: list[str] = []

    class Fourth(Group):
        def gather(self, own: torch.Tensor, rows: int) -> torch.Tensor:
            seen.append(own.device.type)
            return own.new_zeros(rows, own.shape[1])

    Embedder(model, group=Fourth(3, 4)).embed((Texts(model, TEXTS[:2], "document"), np.arange(2)))
    assert seen == ["meta"]
