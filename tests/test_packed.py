"""The packed forward: the plain path's loss and gradients where the model allows it, and a refusal where not.

The kernel needs a GPU. Here a function takes its place that computes the same text by text from the same arguments, so
all is tested but the kernel; `test_gpu.py` tests that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tasks.config import BUNDLED_MODEL
from tasks.encoding import load, resolve_model
from tasks.training import packed
from tasks.training.embedder import Embedder, Texts
from tasks.training.start import choose_kernel
from tests import tiny_models
from tests.test_buckets import TEXTS, assert_close, gradients


def by_text(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, *rest: Any, scale: float) -> Tensor:
    """What the variable-length kernel computes, text by text: tensors of shape (tokens, heads, width)."""
    assert torch.equal(ends, rest[0])
    assert rest[1:] == (int(ends.diff().max()),) * 2
    cuts = ends[1:-1].tolist()
    parts = zip(*(states.transpose(0, 1).tensor_split(cuts, dim=1) for states in (query, key, value)), strict=True)
    found = [torch.nn.functional.scaled_dot_product_attention(*part, scale=scale) for part in parts]
    return torch.cat(found, dim=1).transpose(0, 1)


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention text by text in the kernel's place."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_text)


def packed_embedder(model: SentenceTransformer, chunk_tokens: int = 1024) -> Embedder:
    """An embedder on the packed path, whether or not the model agrees with it."""
    embedder = Embedder(model, chunk_tokens=chunk_tokens)
    choose_kernel(embedder, packed=True)
    return embedder


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "distilbert"])
def test_packed_gives_the_plain_vectors_and_gradients(
    tmp_path: Path, architecture: tiny_models.Architecture, pooling: str
) -> None:
    """BERT and its kin, whatever the pooling: vectors and gradients of every parameter as in the padded forward."""
    model = load(tiny_models.save(tmp_path, architecture, pooling), device="cpu").eval()
    texts, numbers = Texts(model, TEXTS, "document"), np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 22, 0])
    (plain,) = Embedder(model).embed((texts, numbers))
    expected = gradients(model, plain)
    (found,) = packed_embedder(model, chunk_tokens=70).embed((texts, numbers))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    assert_close(gradients(model, found), expected)


def test_packed_computes_no_padding(tmp_path: Path) -> None:
    """The linear layers see exactly the real tokens, and chunks are bounded by them."""
    model = load(tiny_models.save(tmp_path), device="cpu").eval()
    texts = Texts(model, TEXTS, "document")
    embedder = packed_embedder(model, chunk_tokens=100)
    seen: list[int] = []
    assert model.transformers_model is not None
    dense = model.transformers_model.encoder.layer[0].output.dense
    handle = dense.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[:-1].numel()))
    with handle:
        embedder.embed((texts, np.arange(len(TEXTS))))
    assert sum(seen) == int(texts.lengths.sum()) == embedder.tokens == embedder.padded_tokens
    assert max(seen) <= 100


def test_real_model_agrees_in_fp32_and_nearly_in_bf16() -> None:
    """all-MiniLM-L6-v2: cosine 1 to its own encode in fp32, above 0.999 in bf16."""
    model = load(resolve_model(BUNDLED_MODEL), device="cpu").eval()
    expected = torch.from_numpy(model.encode(TEXTS))
    embedder = packed_embedder(model)
    texts = Texts(model, TEXTS, "document")
    for precision, least in (("fp32", 0.999999), ("bf16", 0.999)):
        embedder.precision = precision  # type: ignore[assignment]
        with torch.no_grad():
            (found,) = embedder.embed((texts, np.arange(len(TEXTS))))
        assert torch.cosine_similarity(found, expected).min() > least


@pytest.mark.parametrize("architecture", ["mpnet", "modernbert"])
def test_models_that_cannot_be_packed_disagree(tmp_path: Path, architecture: tiny_models.Architecture) -> None:
    """MPNet adds a bias by position within the padded batch, ModernBERT attends in windows: neither is packed."""
    model = load(tiny_models.save(tmp_path, architecture), device="cpu").eval()
    texts, numbers = Texts(model, TEXTS, "document"), np.arange(10)
    with torch.no_grad():
        (plain,) = Embedder(model).embed((texts, numbers))
    embedder = packed_embedder(model)
    assert not packed.agrees(lambda: plain, lambda: embedder.embed((texts, numbers))[0])


def test_agreement_is_about_values() -> None:
    """A forward that gives other vectors, other shapes, NaN or an error does not agree; rounding does."""
    vectors = torch.eye(3)

    def broken() -> torch.Tensor:
        raise ValueError("no such layer")

    assert packed.agrees(lambda: vectors, lambda: vectors + 1e-3)
    assert not packed.agrees(lambda: vectors, lambda: vectors + 0.1)
    assert not packed.agrees(lambda: vectors, lambda: vectors[:2])
    assert not packed.agrees(lambda: vectors, lambda: vectors * torch.nan)
    assert not packed.agrees(lambda: vectors, broken)
