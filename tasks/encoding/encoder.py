"""Texts to vectors, once per model and text, exactly as the model will be served.

"As served" means what `SentenceTransformer.encode_query` and `encode_document` do with the saved model: its own
prompts, `max_seq_length`, pooling, `truncate_dim`. Only the order of the work differs: texts are tokenised once,
sorted by length and forwarded in batches that hold about the same number of tokens, so that hardly any padding is
computed, each batch by one thread, so that on a CPU no thread waits for another inside a batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np

from tasks.encoding.folder import ModelError
from tasks.encoding.identity import fingerprint
from tasks.encoding.model import load
from tasks.threads import one_thread_each

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Role = Literal["query", "document"]
ROLES: Final[tuple[Role, ...]] = ("query", "document")
Progress = Callable[[int, int], None]

_SLAB: Final = 16_384
"""Texts tokenised and sorted at a time: enough to leave no padding, little enough to bound memory."""

_TOKENISED_TOGETHER: Final = 256
"""Texts per call of the tokenizer, of similar length: its padding is thrown away again."""


class VectorError(ModelError):
    """A model gave a vector that is not finite or has no direction; names the model and the text's index."""

    def __init__(self, model: str, index: int) -> None:
        super().__init__(f"{model} gives no usable vector (NaN, infinite or zero) for the text at index {index}")
        self.model = model
        self.index = index


@dataclass(frozen=True)
class NumericPath:
    """One way to compute vectors, the same for both models of a comparison.

    Attributes:
        name: what reports and cache keys call it.
        token_budget: tokens per batch, padding included; None leaves batching to the library's own `encode`.
        bf16: matrix products in bfloat16 under autocast; sums, softmax, normalisation and pooling stay float32.
    """

    name: str
    token_budget: int | None
    bf16: bool = False


PLAIN: Final = NumericPath("plain-fp32", None)
FP32: Final = NumericPath("fp32", 1024)
BF16: Final = NumericPath("bf16", 1024, bf16=True)

_ACCELERATED: Final = 32
"""Times the budget of a batch on anything but a CPU, most of which a small batch leaves idle. Not measured."""


class Encoder(Protocol):
    """Turns texts into unit vectors, and says under which key vectors like these may be kept."""

    @property
    def dimension(self) -> int:
        """Components of a vector."""

    def key(self, role: Role) -> str:
        """Hex digest of everything but the text that a vector depends on."""

    def encode(self, texts: Sequence[str], role: Role, *, on_progress: Progress | None = None) -> np.ndarray:
        """Float32 unit vectors of shape (n_texts, dimension)."""


@dataclass(frozen=True)
class ModelEncoder:
    """A loaded model on one numeric path; `fingerprint` is that of the folder it was loaded from."""

    model: SentenceTransformer
    fingerprint: str
    path: NumericPath

    @classmethod
    def open(cls, folder: Path, path: NumericPath, *, device: str | None = None) -> ModelEncoder:
        """Load a model's folder and take its fingerprint."""
        return cls(load(folder, device), fingerprint(folder), path)

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return _dimension(self.model)

    def key(self, role: Role) -> str:
        """Hex digest of model, numeric path, role, prompt, lengths, device and the libraries' versions.

        Prompt and lengths are those of the loaded model: changed in memory, they change the key.
        """
        import sentence_transformers
        import torch
        import transformers

        facts = {
            "fingerprint": self.fingerprint,
            "path": self.path.name,
            "role": role,
            "prompt": prompt_for(self.model, role),
            "max_length": self.model.max_seq_length,
            "dimension": self.dimension,
            "device": self.model.device.type,
            "versions": [module.__version__ for module in (torch, transformers, sentence_transformers)],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def encode(self, texts: Sequence[str], role: Role, *, on_progress: Progress | None = None) -> np.ndarray:
        """Float32 unit vectors of shape (n_texts, dimension). Raises VectorError."""
        name = f"model {self.fingerprint[:12]}"
        return encode(self.model, texts, role, path=self.path, on_progress=on_progress, name=name)


def prompt_for(model: SentenceTransformer, role: Role) -> str:
    """The prompt that `encode_query` or `encode_document` would put before each text; empty for none."""
    names = ["query"] if role == "query" else ["document", "passage", "corpus"]
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return (model.prompts.get(name) or "") if name is not None else ""


def encode(
    model: SentenceTransformer,
    texts: Sequence[str],
    role: Role,
    *,
    path: NumericPath = FP32,
    on_progress: Progress | None = None,
    name: str = "the model",
) -> np.ndarray:
    """Encode texts as the model will be served; returns float32 unit vectors of shape (n_texts, dimension).

    A model whose inputs are not one row of tokens per text (static embeddings) goes through the library's own `encode`
    on any path. `on_progress(done, total)` is called after each batch.

    Raises VectorError naming `name` and the index of the first text whose vector is not finite or is zero.
    """
    vectors = np.empty((len(texts), _dimension(model)), np.float32)
    done = 0
    # one autocast for all batches: it converts each weight once and keeps it until it ends
    with _settings(model, path):
        for start in range(0, len(texts), _SLAB):
            for rows, batch in _encode_slab(model, texts[start : start + _SLAB], role, path):
                vectors[start + rows] = batch
                done += len(rows)
                if on_progress is not None:
                    on_progress(done, len(texts))
    return _unit(vectors, name)


def _dimension(model: SentenceTransformer) -> int:
    dimension = model.get_embedding_dimension()
    if dimension is None:
        raise ModelError("the model does not say how many dimensions its vectors have")
    return int(dimension)


def _unit(vectors: np.ndarray, name: str) -> np.ndarray:
    """Divide each row by its length; after a model's own Normalize module this changes only rounding."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(bad):
        raise VectorError(name, int(bad[0]))
    vectors /= norms
    return vectors


def _encode_slab(
    model: SentenceTransformer, texts: Sequence[str], role: Role, path: NumericPath
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (indices of texts, their vectors) until every text has one."""
    import torch

    prompt = prompt_for(model, role)
    tokens = None if path.token_budget is None else _tokenise(model, texts, role, prompt)
    if tokens is None or path.token_budget is None:
        library = model.encode_query if role == "query" else model.encode_document
        for start in range(0, len(texts), _TOKENISED_TOGETHER):
            found = library(list(texts[start : start + _TOKENISED_TOGETHER]), show_progress_bar=False)
            yield np.arange(start, start + len(found)), found
        return
    model.eval()
    lengths = np.array([len(ids) for ids in tokens.columns["input_ids"]])

    def forward(rows: np.ndarray) -> np.ndarray:
        with _settings(model, path):  # each thread's own
            return _forward(model, tokens.padded(rows), role)

    if model.device.type != "cpu":
        for rows in by_budget(lengths, _ACCELERATED * path.token_budget):
            yield rows, forward(rows)
        return
    batches = list(by_budget(lengths, path.token_budget))
    # within one more level of autocast, leaving it after a batch does not throw away the converted weights
    with one_thread_each(torch.autocast_increment_nesting) as pool:
        yield from zip(batches, pool.map(forward, batches), strict=True)


@contextmanager
def _settings(model: SentenceTransformer, path: NumericPath) -> Iterator[None]:
    """No gradients, and the path's precision."""
    import torch

    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=path.bf16):
        yield


def by_budget(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Group texts of similar length so that each group, padded, holds at most `budget` tokens (or is one text).

    The longest come first: if memory does not suffice, that shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


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
class _Tokens:
    """Texts as the model's inputs, one tensor of shape (length,) per text and input, and what to pad each with."""

    columns: dict[str, list[torch.Tensor]]
    padding: Padding
    shared: dict[str, Any]

    def padded(self, rows: np.ndarray) -> dict[str, Any]:
        """Inputs of some texts, each of shape (len(rows), longest of them)."""
        from torch.nn.utils.rnn import pad_sequence

        batch = {
            name: pad_sequence([values[row] for row in rows], True, self.padding.values[name], self.padding.side)
            for name, values in self.columns.items()
        }
        return batch | self.shared


def _tokenise(model: SentenceTransformer, texts: Sequence[str], role: Role, prompt: str) -> _Tokens | None:
    """Tokenise each text once, without padding; None where the model's inputs are not one row of tokens per text.

    The model's own `preprocess` does the work, so prompts, truncation and special tokens are the served ones.
    """
    pads = padding(model, role, prompt)
    if pads is None:
        return None
    tokens = _Tokens({}, pads, {})
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), _TOKENISED_TOGETHER):
        rows = order[start : start + _TOKENISED_TOGETHER]
        batch = model.preprocess([texts[row] for row in rows], prompt=prompt or None, task=role)
        if not _is_plain_text(batch, pads):
            return None
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        for name, values in batch.items():
            if name not in pads.values:
                tokens.shared[name] = values
                continue
            column = tokens.columns.setdefault(name, [values] * len(texts))
            for row, line, length in zip(rows, values, lengths, strict=True):
                column[row] = line[:length] if pads.side == "right" else line[len(line) - length :]
    return tokens


def _is_plain_text(batch: dict[str, Any], pads: Padding) -> bool:
    """Whether a preprocessed batch can be cut and padded anew: rows of tokens, all padded on the side that is known."""
    import torch

    mask = batch.get("attention_mask")
    tensors = {name for name, value in batch.items() if isinstance(value, torch.Tensor)}
    if tensors != set(pads.values) or not isinstance(mask, torch.Tensor):
        return False
    earlier, later = (mask[:, 1:], mask[:, :-1]) if pads.side == "right" else (mask[:, :-1], mask[:, 1:])
    return bool((earlier <= later).all())


def _forward(model: SentenceTransformer, inputs: dict[str, Any], role: Role) -> np.ndarray:
    """One batch through the model, cut to its `truncate_dim`; float32 of shape (batch, dimension)."""
    import torch

    on_device = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
    }
    vectors: torch.Tensor = model(on_device, task=role)["sentence_embedding"]
    return vectors[:, : model.truncate_dim].float().cpu().numpy()
