"""The dress rehearsal: whatever saving, publishing, loading or encoding may refuse is refused before the first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from deployments import doctor
from tasks.config import Training
from tasks.training import TrainingError, rehearse, train
from tasks.training.embedder import Embedder
from tests import model_zoo, tiny_models
from tests.test_batches import table

ROWS = table(*[(f"fox {place}", f"the brown dog {place}", [], None) for place in range(8)])

Inject = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random BERT."""
    return str(tiny_models.save(tmp_path_factory.mktemp("base")))


def _saving_also(write: Callable[[Path], None]) -> Inject:
    """Let every save do something more to the folder."""

    def inject(patch: pytest.MonkeyPatch) -> None:
        honest = SentenceTransformer.save

        def save(self: SentenceTransformer, path: str, **options: Any) -> None:
            honest(self, path, **options)
            write(Path(path))

        patch.setattr(SentenceTransformer, "save", save)

    return inject


def _cannot_save(patch: pytest.MonkeyPatch) -> None:
    def save(*_: Any, **__: Any) -> None:
        raise NotImplementedError("this module has no save")

    patch.setattr(Pooling, "save", save)


def _edit(name: str, **values: Any) -> Inject:
    def write(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))

    return _saving_also(write)


def _other_weights(patch: pytest.MonkeyPatch) -> None:
    honest = SentenceTransformer.save

    def save(self: SentenceTransformer, path: str, **options: Any) -> None:
        weight = next(self.parameters())
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(2)
        honest(self, path, **options)
        with torch.no_grad():
            weight.copy_(kept)

    patch.setattr(SentenceTransformer, "save", save)


def _too_long(patch: pytest.MonkeyPatch) -> None:
    honest = Transformer.forward

    def forward(self: Transformer, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        if features["input_ids"].shape[1] > 40:
            raise IndexError("index out of range in self")
        return honest(self, features, **options)

    patch.setattr(Transformer, "forward", forward)


def _attends_across_texts(patch: pytest.MonkeyPatch) -> None:
    """A batch in training's own computation leaks from text to text."""
    honest = Embedder.embed

    def embed(self: Embedder, *columns: Any) -> list[torch.Tensor]:
        return [vectors + vectors.mean(dim=0) for vectors in honest(self, *columns)]

    patch.setattr(Embedder, "embed", embed)


@pytest.mark.parametrize(
    ("inject", "message"),
    [
        (_cannot_save, "cannot be saved: NotImplementedError: this module has no save"),
        (_saving_also(lambda folder: (folder / "vocab.bin").touch()), "files of an unexpected kind: vocab.bin"),
        (_saving_also(lambda folder: (folder / "a:b.txt").touch()), "cannot be published: .*a:b.txt"),
        (_saving_also(lambda folder: (folder / "manifest.json").touch()), "cannot be published: .*the manifest itself"),
        (_edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}), "loaded again once it is saved"),
        (_saving_also(lambda folder: (folder / "config.json").unlink()), "loaded again once it is saved"),
        (_edit("config_sentence_transformers.json", prompts={"query": "q: "}), "another model once it is saved"),
        (_edit("tokenizer_config.json", model_max_length=8), "another model once it is saved"),
        (_other_weights, "saved and loaded again: encoded by the library's own encode.*other vectors"),
        (_too_long, "cannot encode a text at full length"),
        (_attends_across_texts, "in training, as query"),
    ],
)
def test_what_would_fail_after_the_last_step_is_refused_before_the_first(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inject: Inject, message: str
) -> None:
    """Each fault by itself; no step is taken and nothing is left."""
    inject(monkeypatch)
    steps: list[int] = []
    with pytest.raises(TrainingError, match=message):
        train(
            ROWS,
            None,
            [],
            Training(base_model=base, batch_size=4, precision="fp32"),
            tmp_path / "candidate",
            on_progress=lambda step, _steps, _loss: steps.append(step),
        )
    assert steps == []
    assert not (tmp_path / "candidate").exists()


def test_a_vector_that_depends_on_its_neighbours_is_refused(tmp_path: Path) -> None:
    """GPT-2 counts positions from the left end, padding included: the remedy is to pad on the right."""
    base = model_zoo.decoder("gpt2", side="left")(tmp_path / "base")
    with pytest.raises(TrainingError, match=r"alone and together with longer texts.*padding_side to 'right'"):
        rehearse(Training(base_model=str(base)))


def test_doctor_rehearses_the_base_model(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a night would refuse is found by the examination too."""
    assert doctor.examine_model(base).sound
    _cannot_save(monkeypatch)
    finding = doctor.examine_model(base)
    assert not finding.sound
    assert "cannot be saved" in finding.text


def test_the_default_dimensions_adapt_and_others_do_not(base: str, tmp_path: Path) -> None:
    """Of 256, 128, 64 and 32 a model of 32 dimensions keeps its own; others that are asked for are refused."""
    trained = train(ROWS, None, [], Training(base_model=base, batch_size=4), tmp_path / "candidate")
    assert trained.dims == (32,)
    with pytest.raises(TrainingError, match=r"matryoshka_dims \[64\] are above the base model's dimension 32"):
        train(ROWS, None, [], Training(base_model=base, matryoshka_dims=(64, 16)), tmp_path / "other")
