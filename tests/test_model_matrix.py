"""Every kind of model in `model_zoo.KINDS` through a training, a version, and plain sentence-transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tasks.config import Training
from tasks.dataset import EvaluationSet
from tasks.encoding import FP32, ROLES, ModelEncoder, fingerprint, load, resolve_model
from tasks.registry import publish, pull
from tasks.scoring import describe, score_side
from tasks.storage import Store
from tasks.training import TrainingError, hardware, train
from tests import model_zoo
from tests.model_folders import FOLDERS
from tests.model_zoo import Kind
from tests.test_batches import table

KINDS = (*model_zoo.KINDS, *FOLDERS)
ROWS = table(*[(f"fox {place} over dog", f"the brown dog {place} " * (1 + place % 7), [], None) for place in range(12)])
TEXTS = [
    "a fox",
    "the lazy dog " * 80,
    "\N{ALCHEMICAL SYMBOL FOR GOLD}",
    *(f"{'quick ' * (place % 9)}brown fox {place}" for place in range(40)),
]


def marked(kind: Kind) -> object:
    """A parameter named after the kind; only the fast ones are in `make test`."""
    return pytest.param(kind, id=kind.name, marks=() if kind.fast else pytest.mark.slow)


def settings(base: Path) -> Training:
    """Three steps in whatever precision the machine chooses."""
    return Training(base_model=str(base), batch_size=4, learning_rate=1e-3)


@pytest.mark.parametrize("kind", [marked(kind) for kind in KINDS if kind.refused is None])
def test_a_kind_that_works_serves_what_is_scored(kind: Kind, store: Store, tmp_path: Path) -> None:
    """Trained, published, pulled: plain sentence-transformers gives the vectors that scoring takes, in both roles."""
    trained = train(ROWS, None, [], settings(kind.make(tmp_path / "base")), tmp_path / "candidate")
    assert trained.steps == 3
    assert trained.distance_from_base > 0
    version = publish(store, tmp_path / "candidate", describe(tmp_path / "candidate", trained.dims[1:]))
    pulled = pull(store, version, tmp_path / "pulled")
    served = SentenceTransformer(str(pulled), device="cpu", local_files_only=True)
    scored = ModelEncoder.open(pulled, FP32, device="cpu")
    for role in ROLES:
        vectors = (served.encode_query if role == "query" else served.encode_document)(TEXTS)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        expected = vectors / np.where(lengths > 0, lengths, 1)  # no word of a text may be known
        np.testing.assert_allclose(scored.encode(TEXTS, role), expected, atol=2e-6)


@pytest.mark.parametrize("kind", [marked(kind) for kind in KINDS if kind.refused is not None])
def test_a_kind_that_does_not_is_refused_before_the_first_step(kind: Kind, tmp_path: Path) -> None:
    """The message says what the model is and what to do; nothing is left behind."""
    steps: list[int] = []
    with pytest.raises(TrainingError, match=kind.refused):
        train(
            ROWS,
            None,
            [],
            settings(kind.make(tmp_path / "base")),
            tmp_path / "candidate",
            on_progress=lambda step, _steps, _loss: steps.append(step),
        )
    assert steps == []
    assert not (tmp_path / "candidate").exists()


def test_the_table_of_the_documentation_is_made_from_the_kinds() -> None:
    """`docs/models.md` has one row per kind, in order, with what becomes of it."""
    text = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (works|refused) \|", text, re.MULTILINE)
    assert rows == [(kind.name, "works" if kind.refused is None else "refused") for kind in KINDS]


def test_a_whole_repository_in_the_hubs_cache_is_the_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts and exports beside the model change neither whether it is used nor what it is."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    made = model_zoo.repository(tmp_path / "made")
    cached = tmp_path / "models--org--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(revision)
    model_zoo.copied(made, cached / "snapshots" / revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    alone = model_zoo.architecture("bert")(tmp_path / "alone")
    assert fingerprint(resolve_model("org/tiny")) == fingerprint(alone)


def test_where_and_how_a_tokenizer_was_saved_is_not_part_of_what_a_model_is(tmp_path: Path) -> None:
    """Loading sets these keys anew: paths of the machine that saved it, and whether that was offline."""
    made = model_zoo.architecture("bert")(tmp_path / "made")
    before = fingerprint(made)
    path = made / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    elsewhere = {"is_local": False, "local_files_only": True, "name_or_path": "org/tiny", "tokenizer_file": "/a/b.json"}
    path.write_text(json.dumps(settings | elsewhere | {"special_tokens_map_file": "/a/map.json"}))
    assert fingerprint(made) == before
    path.write_text(json.dumps(settings | {"do_lower_case": False}))
    assert fingerprint(made) != before


def test_a_chat_template_is_part_of_what_a_model_is(tmp_path: Path) -> None:
    """It changes what is encoded, so it changes the fingerprint, by which the cache knows a model."""
    made = model_zoo.decoder("qwen3", "chat_template.jinja")(tmp_path / "made")
    before = fingerprint(made)
    (made / "chat_template.jinja").write_text(model_zoo.CHAT.replace("<", "["))
    assert fingerprint(made) != before


def test_weights_that_no_file_holds_are_the_same_at_every_loading(tmp_path: Path) -> None:
    """A masked language model has no pooler: drawn anew each time, it would make every candidate another one."""
    [folder] = [kind.make(tmp_path / "made") for kind in FOLDERS if kind.name.startswith("masked language model")]
    before = torch.get_rng_state()
    first, again, other = (dict(load(folder, "cpu", seed=seed).named_parameters()) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [name for name in first if not torch.equal(first[name], other[name])] == ["0.model.pooler.dense.weight"]


def test_a_text_without_a_known_word_scores_0_with_everything(tmp_path: Path) -> None:
    """Scored on such texts, the query ranks last, and everything else as always; training on them does no harm."""
    odd = "\N{ALCHEMICAL SYMBOL FOR GOLD}"
    base = model_zoo.static_without_marks(tmp_path / "base")
    documents = ["the fox", "lazy dog", odd]
    test = EvaluationSet(["fox", odd], [np.array([0]), np.array([2])], [None, None], np.zeros(2, np.bool_), 0)
    scores = score_side(test, documents, ModelEncoder.open(base, FP32, device="cpu")).per_query["mrr"]
    assert scores.tolist() == [1, 1 / 3]
    rows = table(*[(f"fox {place}", f"the brown dog {place}", [], None) for place in range(7)], (odd, odd, [], None))
    trained = train(rows, None, [], Training(base_model=str(base), batch_size=4, epochs=2), tmp_path / "candidate")
    assert np.isfinite(trained.distance_from_base)
    score_side(test, documents, ModelEncoder.open(tmp_path / "candidate", FP32, device="cpu"))


@pytest.mark.parametrize("name", ["Gemma2", pytest.param("Mamba", marks=pytest.mark.slow)])
def test_a_model_without_sdpa_trains_where_that_is_the_fastest(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, which asks for it: transformers refuses to set a kernel that a model does not have."""
    monkeypatch.setattr(hardware, "attention", lambda _: "sdpa")
    [base] = [kind.make(tmp_path / "base") for kind in KINDS if kind.name == name]
    assert train(ROWS, None, [], settings(base), tmp_path / "candidate").steps == 3


def test_a_limit_beyond_the_positions_is_lowered_to_them(tmp_path: Path) -> None:
    """XLM-R counts positions from its padding id + 1, here from 1: of 34 there are 33."""
    assert load(model_zoo.without_length(tmp_path / "made"), "cpu").max_seq_length == 33


def test_the_document_tower_does_not_answer_for_queries(tmp_path: Path) -> None:
    """Training changes both towers of a router, and each role's vectors come from its own."""
    base = model_zoo.two_towers("document")(tmp_path / "base")
    train(ROWS, None, [], settings(base), tmp_path / "candidate")
    before, after = load(base, "cpu"), load(tmp_path / "candidate", "cpu")
    for role in ROLES:
        changed = [
            not torch.equal(old, new)
            for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
            if f"sub_modules.{role}." in name and "embeddings.word" in name
        ]
        assert changed == [True]
