"""Buckets: the same vectors and gradients as the library's padded forward, with less padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tasks.encoding import load
from tasks.training.embedder import Embedder, Texts
from tests import tiny_models

SENTENCE = "rotate the access key of a user before it expires and tell nobody about its secret part"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[: 1 + 5 * n % 16] * (1 + n % 4)) + f" {n}" for n in range(23)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    """A tiny random BERT."""
    return load(tiny_models.save(tmp_path_factory.mktemp("tiny")), device="cpu").eval()


def gradients(model: SentenceTransformer, vectors: Tensor) -> dict[str, Tensor]:
    """Gradients of an arbitrary function of the vectors that depends on every component and their order."""
    weights = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
    model.zero_grad()
    (vectors * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Same parameters, same gradients within fp32 rounding."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.mark.parametrize("chunk_tokens", [1, 60, 10_000])
def test_buckets_give_the_plain_forwards_vectors_and_gradients(model: SentenceTransformer, chunk_tokens: int) -> None:
    """Whatever the chunk size, repeats and order included, vectors and gradients equal one padded forward's."""
    numbers = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 22, 0])
    plain = model(model.preprocess([TEXTS[number] for number in numbers]))["sentence_embedding"]
    expected = gradients(model, plain)
    embedder = Embedder(model, chunk_tokens=chunk_tokens)
    (found,) = embedder.embed((Texts(model, TEXTS, "document"), numbers))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    assert_close(gradients(model, found), expected)


def test_backward_chunk_by_chunk_gives_the_same_gradients(model: SentenceTransformer) -> None:
    """Forwarding again one chunk at a time leaves the gradients that the whole graph leaves, repeats summed."""
    queries, documents = Texts(model, TEXTS, "query"), Texts(model, TEXTS[::-1], "document")
    columns = ((queries, np.array([3, 1, 4, 1, 5])), (documents, np.array([9, 2, 6, 5, 22, 0])))
    embedder = Embedder(model, chunk_tokens=60)
    vectors = torch.cat(embedder.embed(*columns))
    expected = gradients(model, vectors)
    model.zero_grad()
    weights = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
    embedder.backward(columns, [weights[:5], weights[5:]])
    assert_close({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected)


def test_two_columns_go_through_together_and_come_back_apart(model: SentenceTransformer) -> None:
    """Other texts, numbers that repeat, other lengths: each column as if it were alone, in fewer forwards."""
    queries, documents = Texts(model, TEXTS[:9], "query"), Texts(model, TEXTS, "document")
    columns = ((queries, np.array([8, 0, 8, 3])), (documents, np.array([22, 3, 1, 3, 8])))
    forwards: list[int] = []
    with model.register_forward_hook(lambda *_: forwards.append(1)):
        together = Embedder(model).embed(*columns)
    assert len(forwards) == 1
    for found, column in zip(together, columns, strict=True):
        (alone,) = Embedder(model).embed(column)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_columns_whose_prompts_are_pooled_otherwise_stay_apart(model: SentenceTransformer) -> None:
    """Where the length of the prompt decides what is pooled, one forward has texts of one prompt."""
    model[1].include_prompt, model.prompts = False, {"query": "find: ", "document": "answer it: "}
    try:
        queries, documents = Texts(model, TEXTS, "query"), Texts(model, TEXTS, "document")
        assert not queries.goes_with(documents)
        numbers = np.arange(5)
        with torch.no_grad():
            found = Embedder(model).embed((queries, numbers), (documents, numbers))
        for vectors, encode in zip(found, (model.encode_query, model.encode_document), strict=True):
            np.testing.assert_allclose(vectors.numpy(), encode(TEXTS[:5]), atol=1e-5)
    finally:
        model[1].include_prompt, model.prompts = True, {"query": "", "document": ""}


def test_chunks_hold_the_budget_and_every_text_once(model: SentenceTransformer) -> None:
    """No chunk of two or more exceeds the budget with its padding; together they are all texts in order."""
    lengths = np.sort(Texts(model, TEXTS, "document").lengths)
    for budget in (1, 7, 50, 200, 5_000):
        cuts = list(Embedder(model, chunk_tokens=budget).cuts(lengths))
        assert [place for start, end in cuts for place in range(start, end)] == list(range(len(lengths)))
        assert all(end - start == 1 or (end - start) * lengths[end - 1] <= budget for start, end in cuts)


def test_most_padding_goes(model: SentenceTransformer) -> None:
    """Texts of 4 to 48 tokens: buckets of 96 tokens compute less than half of the padding of one batch."""
    texts = Texts(model, TEXTS, "document")
    embedder = Embedder(model, chunk_tokens=96)
    embedder.embed((texts, np.arange(len(TEXTS))))
    plain = len(TEXTS) * int(texts.lengths.max())
    assert embedder.tokens == int(texts.lengths.sum())
    assert embedder.padded_tokens - embedder.tokens < (plain - embedder.tokens) / 2


def test_prompts_are_those_of_serving(model: SentenceTransformer) -> None:
    """With prompts in the model, the training vector of a query is encode_query's, of a document encode_document's."""
    model.prompts = {"query": "find: ", "document": "answer: "}
    try:
        for role, encode in (("query", model.encode_query), ("document", model.encode_document)):
            texts = Texts(model, TEXTS, role)  # type: ignore[arg-type]
            with torch.no_grad():
                (found,) = Embedder(model).embed((texts, np.arange(5)))
            np.testing.assert_allclose(found.numpy(), encode(TEXTS[:5]), atol=1e-5)
    finally:
        model.prompts = {"query": "", "document": ""}


def test_bf16_vectors_are_near_and_come_as_fp32(model: SentenceTransformer) -> None:
    """Under autocast the vectors still come out as fp32, within bf16's three digits of the exact ones."""
    texts = Texts(model, TEXTS, "document")
    with torch.no_grad():
        (exact,) = Embedder(model).embed((texts, np.arange(23)))
        (found,) = Embedder(model, precision="bf16").embed((texts, np.arange(23)))
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, exact).min() > 0.999


def test_a_model_without_a_tokenizer_of_rows_is_trained_too(tmp_path: Path) -> None:
    """A static embedding has flat ids and offsets: its texts are preprocessed each time, with the same vectors."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(
        WordLevel({word: number for number, word in enumerate(["[UNK]", *sorted(set(WORDS))])}, "[UNK]")
    )
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    texts = Texts(static, TEXTS, "document")
    assert not texts.tokenised
    (found,) = Embedder(static, chunk_tokens=100).embed((texts, np.arange(23)))
    np.testing.assert_allclose(found.detach().numpy(), static.encode(TEXTS), atol=1e-6)
