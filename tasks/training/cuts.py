"""How many texts are longer than a model reads, in training and when it serves, and which become the same by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from tasks.encoding import prompt_for, served
from tasks.records import Cut, Cuts
from tasks.training.start import shorten

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_SAMPLE: Final = 5_000
"""Documents that are looked at, of those with more characters than tokens are read: a second or two of tokenising."""

_TOGETHER: Final = 256


def measure(model: SentenceTransformer, documents: Sequence[str], max_length: int) -> Cuts:
    """What becomes of documents that are cut at `max_length` tokens in training, and at the model's limit in serving.

    `model` has its limit of serving, and keeps it. Of more than 5,000 long documents an even sample is looked at: the
    shares are then estimates, and the counts lower bounds.
    """
    serving = served(model).max_length
    training = max_length if serving is None else min(max_length, serving)
    # a character is rarely more than three tokens, and a prompt counts too
    fewest = (training - len(prompt_for(model, "document"))) // 3
    long = [text for text in documents if len(text) >= fewest]
    picked = [long[int(place)] for place in np.linspace(0, len(long) - 1, min(len(long), _SAMPLE))]
    tokens = _tokens(model, picked, (serving or training) + 1)
    share = len(long) / len(picked) / len(documents) if picked else 0.0
    return Cuts(_cut(tokens, training, share), None if serving is None else _cut(tokens, serving, share))


def _cut(tokens: Sequence[tuple[int, ...]], limit: int, share: float) -> Cut:
    """What a limit does to texts of these tokens, each of which stands for `share` of all documents."""
    beginnings = Counter(text[: limit - 1] for text in tokens if len(text) > limit)
    equal = sum(count for count in beginnings.values() if count > 1)
    return Cut(limit, min(1.0, beginnings.total() * share), equal)


def _tokens(model: SentenceTransformer, texts: Sequence[str], limit: int) -> list[tuple[int, ...]]:
    """The tokens of texts as documents, at most `limit`; none where the model does not give one row per text."""
    import torch

    restore = shorten(model, limit, raise_to=True)
    prompt = prompt_for(model, "document") or None
    found: list[tuple[int, ...]] = []
    try:
        by_length = sorted(texts, key=len)
        for start in range(0, len(by_length), _TOGETHER):
            batch = model.preprocess(by_length[start : start + _TOGETHER], prompt=prompt, task="document")
            ids, mask = batch.get("input_ids"), batch.get("attention_mask")
            if not isinstance(ids, torch.Tensor) or not isinstance(mask, torch.Tensor) or ids.shape != mask.shape:
                return []
            found += [tuple(row[kept].tolist()) for row, kept in zip(ids, mask.bool(), strict=True)]
    finally:
        restore()
    return found
