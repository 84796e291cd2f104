"""Documents that are longer than a model reads: counted, and a warning where they become the same text."""

from __future__ import annotations

from pathlib import Path

from tasks.config import Training
from tasks.encoding import load
from tasks.records import Cut, Cuts
from tasks.training import cuts, train
from tests import tiny_models
from tests.test_batches import table

# the tiny tokenizer has a token for each of these words, and adds two of its own to a text
ALIKE = [f"{'the quick brown fox ' * 10}{end}" for end in ("dog", "fox", "lazy")]
SHORT = ["the fox", "the dog", "the lazy dog", "quick", "brown"]


def test_documents_that_begin_alike_are_counted(tmp_path: Path) -> None:
    """Three of eight are longer than either limit, and the same before it; at 16 tokens as at 24."""
    model = load(tiny_models.save(tmp_path, max_length=24), "cpu")
    found = cuts.measure(model, [*ALIKE, *SHORT], 16)
    assert found == Cuts(Cut(16, 3 / 8, 3), Cut(24, 3 / 8, 3))
    assert model.max_seq_length == 24


def test_a_text_of_exactly_the_limit_is_not_cut(tmp_path: Path) -> None:
    """Two tokens of a text and two around it are four."""
    model = load(tiny_models.save(tmp_path), "cpu")
    found = cuts.measure(model, ["the fox", "the quick fox"], 8)
    lengths = [int(model.preprocess([text])["attention_mask"].sum()) for text in ("the fox", "the quick fox")]
    assert found.training == Cut(8, 0.0, 0)
    exact = cuts.measure(model, ["the fox", "the quick fox"], lengths[0])
    assert exact.training == Cut(lengths[0], 0.5, 0)


def test_a_training_says_what_was_cut(tmp_path: Path) -> None:
    """In what it hands back, with the documents of the corpus, and as a warning with the remedy."""
    rows = table(*[(f"fox {place}", document, [], None) for place, document in enumerate([*ALIKE, *SHORT])])
    base = str(tiny_models.save(tmp_path / "base", max_length=48))
    training = Training(base_model=base, batch_size=4, max_length=16)
    trained = train(rows, None, ["the other brown dog"], training, tmp_path / "candidate")
    assert trained.cuts is not None
    assert trained.cuts.training == Cut(16, 3 / 9, 3)
    [warning, *_] = trained.cuts.warnings
    assert "3 documents begin alike" in warning
    assert "training.max_length" in warning
    assert str(trained.cuts).startswith("in training 33.3% of the documents, at 16 tokens; served ")
