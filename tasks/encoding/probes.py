"""Texts that show whether a model can encode at all, and what it means when it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tasks.encoding.device import put_aside
from tasks.encoding.encoder import PLAIN, ROLES, NumericPath, VectorError, encode
from tasks.encoding.folder import ModelError
from tasks.encoding.model import load, served, transformers_of
from tasks.encoding.tokens import Role

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SHORT: Final = ("a", "How do I reset my password?", "naïve café 日本語 🎉", "🜚🝮")

_LONGEST: Final = 1024
"""Tokens of the longest text, where a model's positions are not a table that ends: time grows with the square."""

_LAST: Final = 3
"""Words from the end of a vocabulary."""


def check_encodes(folder: Path, texts: Sequence[str], described: str, device: str | None = None) -> None:
    """Load a model that is to be scored, and encode some texts in both roles, and one at full length.

    On `device`, or the best there is, whose memory is given back. Raises ModelError that begins with `described`, where
    that cannot be done.
    """
    try:
        model = load(folder, device)
        check_weights(model)
    except ModelError as error:
        raise ModelError(f"{described} cannot be used as it is: {error}") from error
    probe_vectors(model, [*texts, longest_text(model)], described)
    put_aside([model])


def check_weights(model: SentenceTransformer) -> None:
    """Raise ModelError where weights are not numbers: one in the row of a rare word shows only in a text with it."""
    import torch

    broken = [name for name, weights in model.named_parameters() if not bool(torch.isfinite(weights).all())]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ModelError(f"{broken[0]}{more} holds NaN or infinite weights: its files are damaged")


def probe_texts(model: SentenceTransformer) -> list[str]:
    """Short texts, one of unknown characters, one of the last words of the vocabulary, one beyond the model's limit."""
    return [*SHORT, *_last_words(model), longest_text(model)]


def longest_text(model: SentenceTransformer) -> str:
    """A text beyond the model's limit."""
    tables = [
        int(module.num_embeddings)
        for name, module in model.named_modules()
        if "position" in name and hasattr(module, "num_embeddings")
    ]
    limit = min(served(model).max_length or _LONGEST, max([_LONGEST, *tables]))
    return " ".join(f"word{number % 7}" for number in range(limit + 8))


def _last_words(model: SentenceTransformer) -> list[str]:
    """The words that a tokenizer numbers last: where words were added to it alone, the model has no rows for them."""
    found = []
    for tokenizer in (module.tokenizer for module in transformers_of(model)):
        if tokenizer is not None:
            words = sorted(set(tokenizer.get_vocab().items()), key=lambda word: word[1])
            special = set(tokenizer.all_special_tokens)
            found.append(" ".join([word for word, _ in words if word not in special][-_LAST:]))
    return found


def probe_vectors(
    model: SentenceTransformer, texts: Sequence[str], described: str, path: NumericPath = PLAIN
) -> dict[Role, np.ndarray]:
    """Unit vectors of texts by role, each of shape (n_texts, d).

    Raises ModelError that begins with `described`, and says which text cannot be encoded and what to do, whatever the
    library raised.
    """
    found: dict[Role, np.ndarray] = {}
    for role in ROLES:
        try:
            found[role] = encode(model, texts, role, path=path)
        except VectorError as error:
            raise ModelError(
                f"{described} cannot be used as it is: {error}, {texts[error.index][:40]!r}. Are its weights damaged, "
                "or does its tokenizer drop what it does not know?"
            ) from error
        except ModelError as error:
            raise ModelError(f"{described} cannot be used as it is: {error}") from error
        except Exception as error:  # the library raises whatever an input leads to
            which = (
                f"a text at full length ({served(model).max_length} tokens)" if len(texts) > 1 else repr(texts[0][:40])
            )
            raise ModelError(
                f"{described} cannot encode {which} as {role}: {type(error).__name__}: {error}{_remedy(error)}"
            ) from error
    return found


def _remedy(error: Exception) -> str:
    """What an error of the library in a forward usually means."""
    if isinstance(error, IndexError) or "position" in str(error) or "size of tensor" in str(error):
        return ". Is its max_seq_length above the positions that it has, or its vocabulary larger than its embeddings?"
    if isinstance(error, KeyError) and "sentence_embedding" in str(error):
        return ". Has it no Pooling module?"
    if "No route" in str(error):
        return ". Name its routes `query` and `document`, or map these with route_mappings, and save it again"
    return ""
