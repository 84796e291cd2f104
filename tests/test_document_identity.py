"""The identity of a model's documents: what a query-side training leaves alone, and everything that it must notice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router

from tasks.encoding import document_identity, fingerprint
from tests import tiny_models


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One encoder for both roles."""
    return tiny_models.save(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def router(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same encoder behind a router, for queries with other weights; saved by the library."""
    folder = tmp_path_factory.mktemp("router") / "model"
    queries, documents = SentenceTransformer(str(plain), device="cpu"), SentenceTransformer(str(plain), device="cpu")
    for parameter in queries.parameters():
        parameter.data.mul_(1.5)
    both = Router.for_query_document(list(queries), list(documents))
    SentenceTransformer(modules=[both], device="cpu").save(str(folder), create_model_card=False)
    return folder


def test_a_router_has_the_documents_of_the_model_on_its_document_route(plain: Path, router: Path) -> None:
    """Other weights for queries make another model with the same documents."""
    assert fingerprint(router) != fingerprint(plain)
    assert document_identity(router) == document_identity(plain)


def _json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _scale(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, path)


CHANGES: dict[str, tuple[Callable[[Path], None], bool]] = {
    "weights of queries": (lambda folder: _scale(folder / "query_0_Transformer" / "model.safetensors"), False),
    "weights of documents": (lambda folder: _scale(folder / "document_0_Transformer" / "model.safetensors"), True),
    "length of queries": (
        lambda folder: _json(folder / "query_0_Transformer" / "sentence_bert_config.json", max_seq_length=7),
        False,
    ),
    "length of documents": (
        lambda folder: _json(folder / "document_0_Transformer" / "sentence_bert_config.json", max_seq_length=7),
        True,
    ),
    "tokenizer of documents": (lambda folder: _json(folder / "document_0_Transformer" / "tokenizer.json", x=1), True),
    "pooling of documents": (
        lambda folder: _json(folder / "document_1_Pooling" / "config.json", pooling_mode="cls"),
        True,
    ),
    "prompt of queries": (
        lambda folder: _json(folder / "config_sentence_transformers.json", prompts={"query": "q: "}),
        False,
    ),
    "prompt of documents": (
        lambda folder: _json(folder / "config_sentence_transformers.json", prompts={"document": "d: "}),
        True,
    ),
    "prompt of passages": (
        lambda folder: _json(folder / "config_sentence_transformers.json", prompts={"passage": "p: "}),
        True,
    ),
    "prompt by default": (
        lambda folder: _json(
            folder / "config_sentence_transformers.json", prompts={"other": "o: "}, default_prompt_name="other"
        ),
        True,
    ),
    "dimension that vectors are cut to": (
        lambda folder: _json(folder / "config_sentence_transformers.json", truncate_dim=16),
        True,
    ),
    "similarity": (lambda folder: _json(folder / "config_sentence_transformers.json", similarity_fn_name="dot"), True),
    "card": (lambda folder: (folder / "README.md").write_text("# Another\n"), False),
    "who saved it": (
        lambda folder: _json(folder / "document_0_Transformer" / "config.json", transformers_version="0"),
        False,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_changes_with_what_changes_a_document_and_with_nothing_else(name: str, router: Path, tmp_path: Path) -> None:
    """One change at a time, to a copy."""
    change, moves = CHANGES[name]
    copy = Path(shutil.copytree(router, tmp_path / "copy"))
    change(copy)
    assert (document_identity(copy) != document_identity(router)) is moves


def test_a_model_that_cannot_be_followed_changes_with_everything(plain: Path, tmp_path: Path) -> None:
    """No list of modules: whatever is changed, nothing is claimed to have stayed."""
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    (copy / "modules.json").unlink()
    before = document_identity(copy)
    _json(copy / "config_sentence_transformers.json", prompts={"query": "q: "})
    assert document_identity(copy) != before
