"""A model saved as a plain sentence-transformers folder, of the kinds of file that a version may hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import MODEL_FILES
from tasks.training.result import TrainingError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def save(model: SentenceTransformer, folder: Path, card: str, described: str) -> None:
    """Save a model and its card into a new folder, and nothing in it that is code or a pickle.

    Raises TrainingError where the library cannot save it, or saves files of other kinds than `MODEL_FILES`; the folder
    is removed then.
    """
    for module in model.modules():
        tokenizer: Any = getattr(module, "tokenizer", None)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:  # what the last call truncated and padded to does not belong to the model
            backend.no_truncation()
            backend.no_padding()
    try:
        model.save(str(folder), create_model_card=False, safe_serialization=True)
    except Exception as error:  # the library raises whatever a module leads to
        shutil.rmtree(folder, ignore_errors=True)
        raise TrainingError(f"{described} cannot be saved: {type(error).__name__}: {error}") from error
    (folder / "README.md").write_text(card, encoding="utf-8")
    foreign = sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in MODEL_FILES)
    if foreign:
        shutil.rmtree(folder)
        raise TrainingError(
            f"{described} saves files of an unexpected kind: {', '.join(foreign)}. A version may hold "
            f"{', '.join(sorted(MODEL_FILES))}; convert its tokenizer to tokenizer.json, for example"
        )
