"""Texts as tokens, exactly as the model's own `preprocess` makes them, kept without padding.

All texts' tokens lie end to end in one tensor for each input, so that a batch is a few index operations, on whatever
device the tokens are, instead of one small tensor for each text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from tasks.encoding.device import moved

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Role = Literal["query", "document"]

_Ints = npt.NDArray[np.int64]

DOCUMENT_PROMPTS: Final = ("document", "passage", "corpus")
"""Names of prompts, of which the first that a model has is put before documents."""

_TOGETHER: Final = 256
"""Texts per call of `preprocess`, of similar length: its padding is thrown away again."""

_TOGETHER_FAST: Final = 4096
"""Texts per call of the fast tokenizer, which pads nothing and divides them among the processor's cores."""

_SAMPLE: Final = 32
"""Texts on which the fast tokenizer is compared with `preprocess`."""

_ODD: Final = (" two  spaces \n", "a\tb", "Ünïcödé - x2 \U0001f600", "word " * 3000)
"""Texts that are compared as well: where the two would differ, it is on texts like these."""


def prompt_for(model: SentenceTransformer, role: Role) -> str:
    """The prompt that `encode_query` or `encode_document` would put before each text; empty for none."""
    names = ("query",) if role == "query" else DOCUMENT_PROMPTS
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return (model.prompts.get(name) or "") if name is not None else ""


@dataclass(frozen=True)
class Padding:
    """How a model pads texts of different length: on which side, and with what, by input."""

    side: Literal["left", "right"]
    values: dict[str, int]


def padding(model: SentenceTransformer, role: Role, prompt: str = "") -> Padding | None:
    """See how the model itself pads, for a role; None where its inputs are not one row of tokens per text."""
    import torch

    short, long = "a", " ".join("a" * 16)
    batch = model.preprocess([short, long], prompt=prompt or None, task=role)
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if not isinstance(ids, torch.Tensor) or not isinstance(mask, torch.Tensor) or ids.shape != mask.shape:
        return None
    unused = (mask[0] == 0).nonzero().flatten().tolist()
    if ids.ndim != 2 or not unused:  # always of the same length: nothing to take away
        return None
    rows = {
        name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and value.shape == ids.shape
    }
    return Padding("left" if unused[0] == 0 else "right", {name: int(row[0, unused[0]]) for name, row in rows.items()})


@dataclass(frozen=True)
class Tokens:
    """Texts as a model's inputs, without padding.

    Attributes:
        inputs: by name, but for the mask, each of shape (tokens of all texts,).
        lengths: tokens of each text.
        starts: where each text's tokens begin.
        padding: how a batch is padded.
        constant: inputs that are the same for all texts.
    """

    inputs: dict[str, torch.Tensor]
    lengths: _Ints
    starts: _Ints
    padding: Padding
    constant: dict[str, Any]

    def to(self, where: torch.device) -> Tokens:
        """The same on a device."""
        return replace(self, inputs={name: moved(tokens, where) for name, tokens in self.inputs.items()})

    def padded(self, rows: _Ints, longest: int) -> dict[str, Any]:
        """Inputs of some texts, each of shape (len(rows), longest)."""
        import torch

        sizes, starts = self._index(rows)
        within = torch.arange(longest, device=starts.device)[None, :]  # (1, longest)
        if self.padding.side == "left":
            within = within - (longest - sizes[:, None])
        valid = (within >= 0) & (within < sizes[:, None])  # (n, longest)
        places = torch.where(valid, starts[:, None] + within, 0).flatten()
        found = {
            name: torch.where(valid, tokens.index_select(0, places).view(valid.shape), self.padding.values[name])
            for name, tokens in self.inputs.items()
        }
        return {**found, "attention_mask": valid.to(torch.int64), **self.constant}

    def laid(self, rows: _Ints) -> dict[str, torch.Tensor]:
        """Tokens of some texts laid end to end, by input, each of shape (tokens,)."""
        import torch

        sizes, starts = self._index(rows)
        total = int(self.lengths[rows].sum())
        shift = (starts - (sizes.cumsum(0) - sizes)).repeat_interleave(sizes, output_size=total)
        places = torch.arange(total, device=starts.device) + shift
        return {name: tokens.index_select(0, places) for name, tokens in self.inputs.items()}

    def _index(self, rows: _Ints) -> tuple[torch.Tensor, torch.Tensor]:
        """Lengths of some texts and where each begins, on the tokens' device, in one copy."""
        import torch

        both = torch.from_numpy(np.stack([self.lengths[rows], self.starts[rows]]))
        sizes, starts = moved(both, self.inputs["input_ids"].device).unbind()
        return sizes, starts


def tokenise(model: SentenceTransformer, texts: Sequence[str], role: Role) -> Tokens | None:
    """Tokenise each text once; None where the model's inputs are not one row of tokens per text.

    The model's own `preprocess` does the work, so prompts, truncation and special tokens are the served ones; or its
    fast tokenizer alone, where that gives the same on a sample.
    """
    import torch

    prompt = prompt_for(model, role) or None
    pads = padding(model, role, prompt or "") if texts else None
    if pads is None:
        return None
    order = np.argsort([len(text) for text in texts], kind="stable")
    slow = _Preprocess(model, role, prompt, pads)
    fast = _fast(model, slow, texts, order)
    together = _TOGETHER if fast is None else _TOGETHER_FAST
    lengths: list[_Ints] = []
    inputs: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(order), together):
        made = (fast or slow)([texts[row] for row in order[start : start + together]])
        if made is None:
            return None
        lengths.append(made[0])
        for name, tokens in made[1].items():
            inputs.setdefault(name, []).append(tokens)
    sizes, starts = np.empty((2, len(texts)), np.int64)
    sizes[order] = np.concatenate(lengths)
    starts[order] = np.cumsum(sizes[order]) - sizes[order]
    return Tokens({name: torch.cat(parts) for name, parts in inputs.items()}, sizes, starts, pads, slow.constant)


_Made = tuple[_Ints, "dict[str, torch.Tensor]"]
"""Lengths of some texts, and their tokens end to end by input."""


class _Preprocess:
    """The model's own way from texts to tokens; `constant` is what it adds that is the same for all texts."""

    def __init__(self, model: SentenceTransformer, role: Role, prompt: str | None, pads: Padding) -> None:
        self.prompt = prompt
        self.constant: dict[str, Any] = {}
        self._model, self._role, self._pads = model, role, pads

    def __call__(self, texts: Sequence[str]) -> _Made | None:
        """None where a batch is not rows of tokens, all padded on the side that is known."""
        import torch

        batch = self._model.preprocess(list(texts), prompt=self.prompt, task=self._role)
        mask = batch.get("attention_mask")
        tensors = {name for name, value in batch.items() if isinstance(value, torch.Tensor)}
        if tensors != set(self._pads.values) or not isinstance(mask, torch.Tensor):
            return None
        right = self._pads.side == "right"
        earlier, later = (mask[:, 1:], mask[:, :-1]) if right else (mask[:, :-1], mask[:, 1:])
        if not bool((earlier <= later).all()):
            return None
        self.constant = {name: value for name, value in batch.items() if name not in tensors}
        kept = mask.bool()
        inputs = {name: batch[name][kept] for name in self._pads.values if name != "attention_mask"}
        return mask.sum(dim=1).numpy(), inputs


def _fast(
    model: SentenceTransformer, slow: _Preprocess, texts: Sequence[str], order: _Ints
) -> Callable[[Sequence[str]], _Made] | None:
    """The model's fast tokenizer alone, where it gives what `preprocess` gives on a sample; three times as fast."""
    import torch

    backend = getattr(getattr(model, "tokenizer", None), "backend_tokenizer", None)
    spread = np.unique(np.linspace(0, len(order) - 1, min(_SAMPLE, len(order))).astype(int))
    sample = [*(texts[row] for row in order[spread]), *_ODD]
    expected = slow(sample)
    if backend is None or expected is None:
        return None
    constant = {name: int(tokens[0]) for name, tokens in expected[1].items() if name != "input_ids"}

    def tokens(some: Sequence[str]) -> _Made:
        backend.no_padding()  # the truncation is what `preprocess` has set for this role
        found = backend.encode_batch_fast([f"{slow.prompt or ''}{text}" for text in some])
        lengths = np.array([len(one) for one in found], np.int64)
        ids = np.fromiter(chain.from_iterable(one.ids for one in found), np.int64, int(lengths.sum()))
        inputs = {name: torch.full((len(ids),), value, dtype=torch.int64) for name, value in constant.items()}
        return lengths, {"input_ids": torch.from_numpy(ids), **inputs}

    lengths, inputs = tokens(sample)
    same = np.array_equal(lengths, expected[0]) and all(
        torch.equal(inputs[name], expected[1][name]) for name in expected[1]
    )
    return tokens if same else None
