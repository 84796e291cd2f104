"""Texts as tokens: those of the model's own `preprocess`, by whichever way they were made, and batches of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tasks.config import BUNDLED_MODEL
from tasks.encoding import (
    BF16,
    FP16,
    FP32,
    PLAIN,
    Measurement,
    encode,
    encoder,
    load,
    numeric_path,
    resolve_model,
    tokens,
)
from tasks.encoding.tokens import tokenise
from tests import tiny_models
from tests.test_buckets import TEXTS

ODD = [
    "\u00a0 a\u200bb ",
    "naïve  café\r\n",
    "東京 タワー",
    "x" * 5000,
    "[CLS] not a token [SEP]",
    "\U0001f600 ok",
    "A\x00B",
]


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    """all-MiniLM-L6-v2 with prompts."""
    loaded = load(resolve_model(BUNDLED_MODEL), "cpu")
    loaded.prompts = {"query": "find: ", "document": ""}
    return loaded


def rows(model: SentenceTransformer, texts: list[str], role: Any) -> list[dict[str, list[int]]]:
    """What `preprocess` makes of each text by itself."""
    found = []
    for text in texts:
        batch = model.preprocess([text], prompt=model.prompts[role] or None, task=role)
        found.append({name: value[0].tolist() for name, value in batch.items() if isinstance(value, torch.Tensor)})
    return found


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("fast", [True, False])
def test_tokens_are_those_of_preprocess(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, role: Any, fast: bool
) -> None:
    """Prompt, truncation, odd characters: by the fast tokenizer and without it, text by text."""
    if fast:
        monkeypatch.setattr(tokens, "_TOGETHER", 0)  # any use of the slow way but for the sample would fail
    else:
        monkeypatch.setattr(tokens, "_fast", lambda *_: None)
    texts = [*TEXTS, *ODD]
    found = tokenise(model, texts, role)
    assert found is not None
    for number, expected in enumerate(rows(model, texts, role)):
        padded = found.padded(np.array([number]), int(found.lengths[number]))
        assert {
            name: value[0].tolist() for name, value in padded.items() if isinstance(value, torch.Tensor)
        } == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_padded_as_the_model_pads(model: SentenceTransformer, side: str) -> None:
    """On its side, with its values, in any order; laid end to end there is no padding."""
    before, model.tokenizer.padding_side = model.tokenizer.padding_side, side
    try:
        expected = model.preprocess([TEXTS[5], TEXTS[0], TEXTS[9]], prompt=None, task="document")
        found = tokenise(model, TEXTS, "document")
    finally:
        model.tokenizer.padding_side = before
    assert found is not None
    chosen = np.array([5, 0, 9])
    padded = found.padded(chosen, int(found.lengths[chosen].max()))
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(padded[name], expected[name])
    assert torch.equal(found.laid(chosen)["input_ids"], expected["input_ids"][expected["attention_mask"].bool()])


def test_a_tokenizer_that_differs_from_preprocess_is_not_used(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that changes its texts before they are tokenised: the sample shows it."""
    real = model.preprocess
    monkeypatch.setattr(
        model,
        "preprocess",
        lambda texts, **options: real([text.replace("user", "person") for text in texts], **options),
    )
    found = tokenise(model, TEXTS, "document")
    assert found is not None
    ids = real(["tell a person"], prompt=None, task="document")["input_ids"][0, 3]
    assert ids in found.inputs["input_ids"]


def test_memory_that_runs_out_halves_the_batch(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above three texts: the vectors are the same, in order; a single text that does not fit is an error."""
    made = tokenise(model, TEXTS, "document")
    assert made is not None
    chosen, forward, sizes = np.arange(10)[::-1], encoder._forward, []

    def tight(model: Any, made: Any, rows: np.ndarray, role: Any) -> torch.Tensor:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(model, made, rows, role)

    with torch.inference_mode():
        expected = forward(model, made, chosen, "document")
        monkeypatch.setattr(encoder, "_forward", tight)
        found = encoder._within_memory(model, made, chosen, "document")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert sizes == [10, 5, 3, 2, 5, 3, 2]
    monkeypatch.setattr(
        encoder, "_forward", lambda *_: (_ for _ in ()).throw(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"))
    )
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        encoder._within_memory(model, made, chosen, "document")


def test_memory_that_runs_out_in_the_librarys_own_encode_halves_its_batch(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above three texts, the vectors are the same; a single text that does not fit is an error."""
    expected = encode(model, TEXTS, "document", path=PLAIN)
    forward, most = model.forward, 3

    def tight(features: dict[str, Any], **options: Any) -> Any:
        if len(features["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(features, **options)

    monkeypatch.setattr(model, "forward", tight)
    np.testing.assert_allclose(encode(model, TEXTS, "document", path=PLAIN), expected, atol=1e-5)
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        encode(model, TEXTS, "document", path=PLAIN)


def test_texts_are_tokenised_ahead_and_come_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, in slabs of five: every text once, in the right place."""
    tiny = load(tiny_models.save(tmp_path), "cpu")
    expected = encode(tiny, TEXTS, "document")
    monkeypatch.setattr(encoder, "_SLAB", 5)
    monkeypatch.setattr(encoder, "_on_cpu", lambda _: False)
    np.testing.assert_allclose(encode(tiny, TEXTS, "document"), expected, atol=1e-5)
    assert encode(tiny, [], "document").shape == (0, tiny_models.WIDTH)


def test_fp16_agrees_with_fp32(model: SentenceTransformer) -> None:
    """Under autocast, closer than bf16."""
    exact = encode(model, TEXTS, "document", path=PLAIN)
    cosines = {path: (encode(model, TEXTS, "document", path=path) * exact).sum(1).min() for path in (FP16, BF16)}
    assert cosines[FP16] > 0.99999
    assert cosines[FP16] > cosines[BF16]


def test_on_a_gpu_the_path_follows_from_what_agrees() -> None:
    """Never from a race: the more exact half precision first, fp32 where none agrees, plain where nothing does."""

    def chosen(fp32: float, fp16: float, bf16: float) -> str:
        cosines = {PLAIN: 1.0, FP32: fp32, FP16: fp16, BF16: bf16}
        return numeric_path.by_capability([Measurement(path, 0.0, least) for path, least in cosines.items()]).name

    assert chosen(1, 0.999999, 0.99998) == "fp16"
    assert chosen(1, 0.99, 0.99998) == "bf16"
    assert chosen(1, 0.99, 0.99) == "fp32"
    assert chosen(0.99, 0.99, 0.99) == "plain-fp32"
