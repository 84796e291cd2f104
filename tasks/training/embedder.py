"""Texts -> vectors for training: tokenised once, padded as little as possible, with gradients.

A batch's texts, of all its columns, are sorted by length and go through the model in chunks of a bounded number of
tokens; the vectors are put back in order. Every text still meets every other in one loss, so batch and loss are
unchanged: only the padding goes. On a GPU the tokens lie there, and one chunk holds the whole batch where it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.encoding import Role, prompt_for, tokenise
from tasks.records import Precision
from tasks.training import hardware, packed
from tasks.training.examples import Ints
from tasks.training.processes import ALONE, Group

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CHUNK_TOKENS: Final = 1024
"""Padded tokens that go through the model at once on a CPU: enough for full matrix products, little enough for the
cache. On a GPU it is `hardware.chunk_tokens`."""

Column = tuple["Texts", Ints]
"""Texts, and which of them."""


class Texts:
    """Texts of one role, tokenised once and kept without padding, on the model's device.

    Args:
        model: its own `preprocess` does the tokenising, so prompts, truncation and special tokens are those of serving.
        texts: numbered by their place.
        role: which prompt and, in models with two towers, which tower.
    """

    def __init__(self, model: SentenceTransformer, texts: Sequence[str], role: Role) -> None:
        self._model = model
        self._texts = texts
        self.role: Role = role
        tokens = tokenise(model, texts, role)
        self.tokens = None if tokens is None else tokens.to(model.device)
        self.lengths: Ints = np.array([len(text) for text in texts], np.int64) if tokens is None else tokens.lengths

    @property
    def tokenised(self) -> bool:
        """Whether lengths are tokens (otherwise characters) and the texts can be packed."""
        return self.tokens is not None

    def goes_with(self, other: Texts) -> bool:
        """Whether these texts and others can be inputs of one forward: the model makes no difference of their role."""
        if self.role == other.role:
            return True
        if self.tokens is None or other.tokens is None:
            return False
        routed = any(type(module).__name__ == "Router" for module in self._model.modules())
        alike = self.tokens.padding == other.tokens.padding and _same(self.tokens.constant, other.tokens.constant)
        return not routed and alike

    def padded(self, numbers: Ints, longest: int) -> dict[str, Any]:
        """Features of some texts, each of shape (len(numbers), longest)."""
        if self.tokens is None:
            prompt = prompt_for(self._model, self.role) or None
            return self._model.preprocess([self._texts[number] for number in numbers], prompt=prompt, task=self.role)
        return self.tokens.padded(numbers, longest)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two sets of features are equal; those that hold tensors are not compared."""
    tensors = any(isinstance(value, Tensor) for value in (*one.values(), *other.values()))
    return not tensors and one == other


@dataclass(frozen=True)
class _Plan:
    """The distinct texts of some columns by length, ascending.

    Attributes:
        columns: the texts that the columns are of.
        column, number: of each text, shape (n,).
        lengths: of each text.
        places: for each column, where among the n each of its numbers is.
    """

    columns: list[Texts]
    column: Ints
    number: Ints
    lengths: Ints
    places: list[Ints]

    @classmethod
    def of(cls, columns: Sequence[Column]) -> _Plan:
        """A number that repeats within a column is there once."""
        distinct = [np.unique(numbers, return_inverse=True) for _, numbers in columns]
        column = np.repeat(np.arange(len(columns)), [len(found) for found, _ in distinct])
        number = np.concatenate([found for found, _ in distinct])
        lengths = np.concatenate(
            [texts.lengths[found] for (texts, _), (found, _) in zip(columns, distinct, strict=True)]
        )
        order = np.argsort(lengths, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        starts = np.cumsum([0, *(len(found) for found, _ in distinct)])
        places = [place[start + inverse] for start, (_, inverse) in zip(starts, distinct, strict=False)]
        return cls([texts for texts, _ in columns], column[order], number[order], lengths[order], places)

    def __len__(self) -> int:
        return len(self.number)

    def parts(self, chunk: Ints) -> tuple[list[Column], Ints]:
        """The texts at some places, column by column; and for each place, where its text is among them."""
        by_column = np.argsort(self.column[chunk], kind="stable")
        back = np.empty(len(chunk), np.int64)
        back[by_column] = np.arange(len(chunk))
        sorted_ = chunk[by_column]
        parts = [
            (texts, self.number[sorted_[self.column[sorted_] == place]]) for place, texts in enumerate(self.columns)
        ]
        return [(texts, numbers) for texts, numbers in parts if len(numbers)], back


@dataclass
class Embedder:
    """Runs chunks of texts through a model; what it counts, in this process, is for the report.

    Attributes:
        model: a SentenceTransformer.
        precision: bf16 and fp16 run the forward under autocast; vectors always come out as fp32.
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

    def embed(self, *columns: Column) -> list[Tensor]:
        """Vectors of each column's numbers, of shape (len(numbers), d), fp32, in that order.

        All columns share one autocast, which then converts each weight once for the whole batch.
        """
        with self.autocast():
            return [vectors for plan in _plans(columns) for vectors in self._embed(plan)]

    def _embed(self, plan: _Plan) -> list[Tensor]:
        chunks = list(self._own_chunks(plan))
        if chunks:
            vectors = torch.cat([self.forward(plan, chunk) for chunk in chunks])
        else:  # fewer texts than processes; still a part of the gathering, forth and back
            width = self.model.get_embedding_dimension() or 0
            vectors = torch.zeros(0, width, device=self.model.device, requires_grad=torch.is_grad_enabled())
        vectors = self.group.gather(vectors, len(plan))
        where = vectors.device
        return [vectors.index_select(0, hardware.moved(torch.from_numpy(place), where)) for place in plan.places]

    def backward(self, columns: Sequence[Column], gradients: Sequence[Tensor]) -> None:
        """Forward the columns again and add their share of the parameters' gradients, chunk by chunk.

        Args:
            columns: as given to `embed`.
            gradients: of the loss by each column's vectors, shape (len(numbers), d).
        """
        left = list(gradients)
        for plan in _plans(columns):
            own, left = left[: len(plan.places)], left[len(plan.places) :]
            collected = own[0].new_zeros(len(plan), own[0].shape[1])
            for place, gradient in zip(plan.places, own, strict=True):
                collected.index_add_(0, hardware.moved(torch.from_numpy(place), gradient.device), gradient)
            for chunk in self._own_chunks(plan):
                with self.autocast():
                    vectors = self.forward(plan, chunk)
                rows = hardware.moved(torch.from_numpy(chunk), collected.device)
                torch.autograd.backward([vectors], [collected.index_select(0, rows)])

    def _own_chunks(self, plan: _Plan) -> Iterator[Ints]:
        """Places of this process's texts, in chunks."""
        own = np.arange(self.group.rank, len(plan), self.group.size)
        for start, end in self.cuts(plan.lengths[own]):
            yield own[start:end]

    def cuts(self, lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Cut texts of these lengths, ascending, into runs of at most `chunk_tokens` (or of one text)."""
        start = 0
        total = 0
        for end, length in enumerate(lengths.tolist()):
            total += length
            cost = total if self.packed else (end + 1 - start) * length
            if cost > self.chunk_tokens and end > start:
                yield start, end
                start, total = end, length
        if len(lengths):
            yield start, len(lengths)

    def forward(self, plan: _Plan, chunk: Ints) -> Tensor:
        """Vectors of the texts at some places of the plan, of shape (len(chunk), d), in that order."""
        parts, back = plan.parts(chunk)
        lengths = np.concatenate([texts.lengths[numbers] for texts, numbers in parts])
        longest = int(lengths.max())
        self.tokens += int(lengths.sum())
        self.padded_tokens += int(lengths.sum()) if self.packed else len(chunk) * longest
        where = self.model.device
        if self.packed:
            features = self._packed(parts, lengths)
        else:
            features = _joined([texts.padded(numbers, longest) for texts, numbers in parts])
        moved = {
            name: hardware.moved(value, where) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }
        vectors: Tensor = self.model(moved, task=parts[0][0].role)["sentence_embedding"]
        vectors = vectors[:, : self.model.truncate_dim].float()  # as they are served
        if len(parts) == 1:
            return vectors
        return vectors.index_select(0, hardware.moved(torch.from_numpy(back), vectors.device))

    def _packed(self, parts: Sequence[Column], lengths: Ints) -> dict[str, Any]:
        """Features of some texts laid end to end."""
        tokens = [(texts.tokens, numbers) for texts, numbers in parts if texts.tokens is not None]
        if len(tokens) < len(parts):
            raise packed.PackedUnsupportedError("the model's input is not one row of tokens per text")
        laid = _joined([some.laid(numbers) for some, numbers in tokens])
        return packed.features(laid, lengths, self.position_offset) | tokens[0][0].constant

    def autocast(self) -> AbstractContextManager[Any]:
        """Where forwards of this precision belong."""
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.model.device.type, dtype)


def probes(embedder: Embedder, columns: Sequence[Column]) -> list[tuple[int, Callable[[], Tensor]]]:
    """Two small forwards of the columns' longest texts, and the tokens of each, to measure what a forward keeps."""
    plan = _plans(columns)[-1]
    found: list[tuple[int, Callable[[], Tensor]]] = []
    for count in (2, 6):
        chunk = np.arange(max(0, len(plan) - count), len(plan))

        def forward(chunk: Ints = chunk) -> Tensor:
            with embedder.autocast():
                return embedder.forward(plan, chunk)

        found.append((int(plan.lengths[chunk].sum()), forward))
    return found


def _plans(columns: Sequence[Column]) -> list[_Plan]:
    """One plan for all columns where the model makes no difference of their roles, else one for each."""
    if all(columns[0][0].goes_with(texts) for texts, _ in columns):
        return [_Plan.of(columns)]
    return [_Plan.of([column]) for column in columns]


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Features of several columns as those of one."""
    if len(parts) == 1:
        return parts[0]
    return {
        name: torch.cat([part[name] for part in parts]) if isinstance(value, Tensor) else value
        for name, value in parts[0].items()
    }
