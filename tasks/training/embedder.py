"""Texts -> vectors for training: tokenised once, padded as little as possible, with gradients.

A batch's texts are sorted by length and go through the model in chunks of a bounded number of tokens; the vectors are
put back in order. Every text still meets every other in one loss, so batch and loss are unchanged: only the padding
goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from tasks.encoding import Role, prompt_for
from tasks.records import Precision
from tasks.training import hardware, packed
from tasks.training.examples import Ints
from tasks.training.processes import ALONE, Group

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CHUNK_TOKENS: Final = 1024
"""Padded tokens that go through the model at once: enough for full matrix products, little enough for the cache."""

_TOKENISE: Final = 1024
"""Texts per call of the tokenizer."""


class Texts:
    """Texts of one role, tokenised once and kept without padding.

    Args:
        model: its own `preprocess` does the tokenising, so prompts, truncation and special tokens are those of serving.
        texts: numbered by their place.
        role: which prompt and, in models with two towers, which tower.
    """

    def __init__(self, model: SentenceTransformer, texts: Sequence[str], role: Role) -> None:
        self._model = model
        self._texts = texts
        self._prompt = prompt_for(model, role) or None
        self._role = role
        self.lengths: Ints = np.array([len(text) for text in texts], np.int64)
        self._ragged: dict[str, list[Tensor]] | None = None
        self._constant: dict[str, Any] = {}
        self._left = getattr(getattr(model, "tokenizer", None), "padding_side", "right") == "left"
        self._pad = getattr(getattr(model, "tokenizer", None), "pad_token_id", None) or 0
        if texts:
            self._tokenise()

    def _preprocess(self, texts: Sequence[str]) -> dict[str, Any]:
        return self._model.preprocess(texts, prompt=self._prompt, task=self._role)

    def _tokenise(self) -> None:
        """Fill `_ragged`; models whose input is not one row of tokens per text are left to `preprocess` each time."""
        ragged: dict[str, list[Tensor]] = {}
        by_length = np.argsort(self.lengths, kind="stable")
        for start in range(0, len(by_length), _TOKENISE):
            features = self._preprocess([self._texts[number] for number in by_length[start : start + _TOKENISE]])
            mask = features.get("attention_mask")
            ids = features.get("input_ids")
            if not isinstance(mask, Tensor) or not isinstance(ids, Tensor) or mask.shape != ids.shape:
                return
            kept = mask.bool()
            for name, value in features.items():
                if isinstance(value, Tensor) and value.shape == ids.shape:
                    rows = [line[keep] for line, keep in zip(value, kept, strict=True)]
                    ragged.setdefault(name, []).extend(rows)
                else:
                    self._constant[name] = value
        self._ragged = {name: [rows[place] for place in np.argsort(by_length)] for name, rows in ragged.items()}
        self.lengths = np.array([len(ids) for ids in self._ragged["input_ids"]], np.int64)

    @property
    def tokenised(self) -> bool:
        """Whether lengths are tokens (otherwise characters) and the texts can be packed."""
        return self._ragged is not None

    def padded(self, numbers: Ints) -> dict[str, Any]:
        """Features of some texts, padded to the longest of them."""
        if self._ragged is None:
            return self._preprocess([self._texts[number] for number in numbers])
        found: dict[str, Any] = {}
        for name, rows in self._ragged.items():
            chosen = [rows[number] for number in numbers]
            value = self._pad if name == "input_ids" else 0
            side: Literal["left", "right"] = "left" if self._left else "right"
            found[name] = torch.nn.utils.rnn.pad_sequence(chosen, True, value, side)
        return found | self._constant

    def packed(self, numbers: Ints, position_offset: int) -> dict[str, Any]:
        """Features of some texts, laid end to end."""
        if self._ragged is None:
            raise packed.PackedUnsupportedError("the model's input is not one row of tokens per text")
        extra = {
            name: [rows[number] for number in numbers]
            for name, rows in self._ragged.items()
            if name not in ("input_ids", "attention_mask")
        }
        ids = [self._ragged["input_ids"][number] for number in numbers]
        return packed.features(ids, extra, position_offset) | self._constant


@dataclass
class Embedder:
    """Runs chunks of texts through a model; what it counts, in this process, is for the report.

    Attributes:
        model: a SentenceTransformer.
        precision: bf16 runs the forward under autocast; vectors always come out as fp32.
        chunk_tokens: tokens per chunk, padding included.
        packed: whether chunks are laid end to end (`packed.py`) instead of padded.
        position_offset: position of the first token, for packed chunks.
        group: the processes among which the texts of a batch are divided.
        tokens, padded_tokens: real tokens encoded so far, and tokens computed for them.
    """

    model: SentenceTransformer
    precision: Precision = "fp32"
    chunk_tokens: int = CHUNK_TOKENS
    packed: bool = False
    position_offset: int = 0
    group: Group = ALONE
    tokens: int = field(default=0, init=False)
    padded_tokens: int = field(default=0, init=False)

    def embed(self, *columns: tuple[Texts, Ints]) -> list[Tensor]:
        """Vectors of each column's numbers, of shape (len(numbers), d), fp32, in that order.

        All columns share one autocast, which then converts each weight once for the whole batch.
        """
        with self.autocast():
            return [self._column(texts, numbers) for texts, numbers in columns]

    def _column(self, texts: Texts, numbers: Ints) -> Tensor:
        """Vectors of one column; a number that repeats is encoded once."""
        by_length, place = _by_length(texts, numbers)
        own = by_length[self.group.rank :: self.group.size]
        if len(own):
            vectors = torch.cat([self.forward(texts, chunk) for chunk in self.chunks(texts, own)])
        else:  # fewer texts than processes; still a part of the gathering, forth and back
            vectors = torch.zeros(0, self.model.get_embedding_dimension() or 0, requires_grad=torch.is_grad_enabled())
        vectors = self.group.gather(vectors, len(by_length))
        return vectors.index_select(0, torch.from_numpy(place).to(vectors.device))

    def backward(self, texts: Texts, numbers: Ints, gradient: Tensor) -> None:
        """Forward one column again and add its share of the parameters' gradients, chunk by chunk.

        Args:
            texts: those that the column is of.
            numbers: which of them, as given to `embed`.
            gradient: of the loss by the column's vectors, shape (len(numbers), d).
        """
        by_length, place = _by_length(texts, numbers)
        collected = gradient.new_zeros(len(by_length), gradient.shape[1])
        collected.index_add_(0, torch.from_numpy(place).to(gradient.device), gradient)
        own = by_length[self.group.rank :: self.group.size]
        collected = collected[self.group.rank :: self.group.size]
        start = 0
        for chunk in self.chunks(texts, own) if len(own) else ():
            with self.autocast():
                vectors = self.forward(texts, chunk)
            torch.autograd.backward([vectors], [collected[start : start + len(chunk)]])
            start += len(chunk)

    def chunks(self, texts: Texts, by_length: Ints) -> Iterator[Ints]:
        """Cut numbers sorted by length, ascending, into runs of at most `chunk_tokens` (or of one text)."""
        start = 0
        total = 0
        for end, length in enumerate(texts.lengths[by_length].tolist()):
            total += length
            cost = total if self.packed else (end + 1 - start) * length
            if cost > self.chunk_tokens and end > start:
                yield by_length[start:end]
                start, total = end, length
        yield by_length[start:]

    def forward(self, texts: Texts, chunk: Ints) -> Tensor:
        """Vectors of one chunk, of shape (len(chunk), d), in its order."""
        lengths = texts.lengths[chunk]
        self.tokens += int(lengths.sum())
        self.padded_tokens += int(lengths.sum() if self.packed else len(chunk) * lengths.max())
        features = texts.packed(chunk, self.position_offset) if self.packed else texts.padded(chunk)
        moved = {
            name: hardware.moved(value, self.model.device) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }
        vectors: Tensor = self.model(moved)["sentence_embedding"]
        return vectors.float()

    def autocast(self) -> AbstractContextManager[Any]:
        """Where forwards of this precision belong."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)


def _by_length(texts: Texts, numbers: Ints) -> tuple[Ints, Ints]:
    """The distinct numbers by length, ascending, and for each of `numbers` its place among them."""
    distinct, inverse = np.unique(numbers, return_inverse=True)
    order = np.argsort(texts.lengths[distinct], kind="stable")
    place = np.empty(len(distinct), np.int64)
    place[order] = np.arange(len(distinct))
    return distinct[order], place[inverse]
