"""What one training step asks of a GPU, counted without one.

On the `meta` device every operation is dispatched, none computed, and one that would wait for a value raises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.config import BUNDLED_MODEL
from tasks.encoding import load, resolve_model
from tasks.training import hardware, packed
from tasks.training.embedder import Embedder, Texts
from tasks.training.examples import Examples
from tasks.training.loop import batch_loss
from tasks.training.start import choose_kernel
from tests import tiny_models
from tests.test_batches import table
from tests.test_buckets import TEXTS, WORDS, assert_close, gradients

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


def by_text(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, *rest: Any, scale: float) -> Tensor:
    """What the variable-length kernel computes, text by text: tensors of shape (tokens, heads, width)."""
    assert torch.equal(ends, rest[0])
    assert rest[1:] == (int(ends.diff().max()),) * 2
    cuts = ends[1:-1].tolist()
    parts = zip(*(states.transpose(0, 1).tensor_split(cuts, dim=1) for states in (query, key, value)), strict=True)
    found = [torch.nn.functional.scaled_dot_product_attention(*part, scale=scale) for part in parts]
    return torch.cat(found, dim=1).transpose(0, 1)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_what_the_kernel_is_given_is_each_text_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: tiny_models.Architecture
) -> None:
    """With attention text by text in the kernel's place, vectors and gradients are those of the padded forward."""
    model: SentenceTransformer = load(tiny_models.save(tmp_path, architecture), device="cpu").eval()
    column = (Texts(model, TEXTS, "document"), np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 22, 0]))
    (plain,) = Embedder(model).embed(column)
    expected = gradients(model, plain)
    embedder = Embedder(model, chunk_tokens=70)
    choose_kernel(embedder, packed=True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_text)
    monkeypatch.setattr(packed, "Spread", lambda *_: None)  # as on a GPU
    (found,) = embedder.embed(column)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    assert_close(gradients(model, found), expected)
