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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from tasks.encoding.device import moved, out_of_memory, release
from tasks.encoding.folder import ModelError
from tasks.encoding.identity import document_identity, fingerprint
from tasks.encoding.model import load, reads_by_transformer, served
from tasks.encoding.tokens import Role, Tokens, prompt_for, tokenise
from tasks.threads import one_thread_each

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

ROLES: Final[tuple[Role, ...]] = ("query", "document")
Progress = Callable[[int, int], None]

_SLAB: Final = 16_384
"""Texts tokenised and sorted at a time: enough to leave no padding, little enough to bound memory."""

_LIBRARY: Final = 256
"""Texts per call of the library's own `encode`."""

_LIBRARY_BATCH: Final = 32
"""Texts per batch there, its default."""


_UNIT: Final = 1e-2
"""How far the length of a normalised vector may be from 1, in half precision too."""


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
        bf16, fp16: matrix products in bfloat16 or float16 under autocast; sums, softmax, normalisation and pooling
            stay float32.
    """

    name: str
    token_budget: int | None
    bf16: bool = False
    fp16: bool = False

    @property
    def half(self) -> bool:
        """Whether matrix products are in half precision."""
        return self.bf16 or self.fp16


PLAIN: Final = NumericPath("plain-fp32", None)
FP32: Final = NumericPath("fp32", 1024)
BF16: Final = NumericPath("bf16", 1024, bf16=True)
FP16: Final = NumericPath("fp16", 1024, fp16=True)

_ACCELERATED: Final = 32
"""Times the budget of a batch on anything but a CPU, most of which a small batch leaves idle. Not measured."""


PATHS: Final = {path.name: path for path in (PLAIN, FP32, BF16, FP16)}
"""Numeric paths by the names that records give them."""


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
    """A loaded model on one numeric path.

    `fingerprint` is that of the folder it was loaded from, `documents` what its document vectors depend on: models
    with the same share the cached vectors of documents.
    """

    model: SentenceTransformer
    fingerprint: str
    path: NumericPath
    documents: str = ""

    @classmethod
    def open(cls, folder: Path, path: NumericPath, *, device: str | None = None) -> ModelEncoder:
        """Load a model's folder and take its fingerprint."""
        return cls.of(folder, load(folder, device), path)

    @classmethod
    def of(cls, folder: Path, model: SentenceTransformer, path: NumericPath) -> ModelEncoder:
        """A model that was loaded from a folder."""
        return cls(model, fingerprint(folder), path, document_identity(folder))

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return served(self.model).dimension

    def key(self, role: Role) -> str:
        """Hex digest of model, numeric path, role, prompt, lengths, device and the libraries' versions.

        Prompt and lengths are those of the loaded model: changed in memory, they change the key.
        """
        import sentence_transformers
        import torch
        import transformers

        facts = {
            "fingerprint": (role == "document" and self.documents) or self.fingerprint,
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
    on any path. Where no transformer reads the texts, one of which no word is known has a vector of zeros, which scores
    0 with everything. `on_progress(done, total)` is called after each batch.

    Raises VectorError naming `name` and the index of the first text whose vector is not finite, or is zero for another
    reason; ModelError where vectors have other dimensions than the model says, or its similarity is not the cosine.
    """
    vectors = np.empty((len(texts), served(model).dimension), np.float32)
    done = 0
    # one autocast for all batches: it converts each weight once and keeps it until it ends
    with _settings(model, path):
        for start, some, tokens in _slabs(model, texts, role, path):
            for rows, batch in _encode_slab(model, some, tokens, role, path):
                if batch.shape[1] != vectors.shape[1]:
                    raise ModelError(
                        f"{name} gives {batch.shape[1]} dimensions as {role}, and says that it has {vectors.shape[1]}"
                    )
                vectors[start + rows] = batch
                done += len(rows)
                if on_progress is not None:
                    on_progress(done, len(texts))
    norms = np.linalg.norm(vectors, axis=1)
    zero = norms == 0
    bad = np.flatnonzero(~np.isfinite(norms) | (zero & reads_by_transformer(model, role)))
    if len(bad):
        raise VectorError(name, int(bad[0]))
    norms[zero] = 1
    _check_similarity(model.similarity_fn_name, norms, name)
    vectors /= norms[:, None]  # after a model's own Normalize module this changes only rounding
    return vectors


def _check_similarity(similarity: str, norms: np.ndarray, name: str) -> None:
    """Refuse a model whose similarity ranks otherwise than the cosine, by which everything here trains and ranks.

    On vectors of length 1 the dot product and the Euclidean distance rank as the cosine does.
    """
    as_cosine = similarity in {"dot", "euclidean"} and bool((np.abs(norms - 1) <= _UNIT).all())
    if similarity != "cosine" and not as_cosine:
        raise ModelError(
            f"{name}: its similarity function is {similarity!r}, and Ratchet trains and ranks by the cosine, which "
            "would rank otherwise. Set similarity_fn_name to 'cosine' (a Normalize module as the last one does as "
            "well, but for 'manhattan'), and save it"
        )


def _slabs(
    model: SentenceTransformer, texts: Sequence[str], role: Role, path: NumericPath
) -> Iterator[tuple[int, Sequence[str], Tokens | None]]:
    """Runs of texts: where each starts, its texts, their tokens; on a GPU tokenised while the one before computes."""
    starts = range(0, len(texts), _SLAB)

    def slab(start: int) -> tuple[int, Sequence[str], Tokens | None]:
        some = texts[start : start + _SLAB]
        return start, some, None if path.token_budget is None else tokenise(model, some, role)

    if _on_cpu(model):
        yield from map(slab, starts)
        return
    with ThreadPoolExecutor(1) as ahead:
        pending = None
        for start in starts:
            following = ahead.submit(slab, start)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _on_cpu(model: SentenceTransformer) -> bool:
    return model.device.type == "cpu"


def _encode_slab(
    model: SentenceTransformer, texts: Sequence[str], tokens: Tokens | None, role: Role, path: NumericPath
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (indices of texts, their vectors) until every text has one."""
    import torch

    if tokens is None or path.token_budget is None:
        library = model.encode_query if role == "query" else model.encode_document
        for start in range(0, len(texts), _LIBRARY):
            found = _by_library(library, list(texts[start : start + _LIBRARY]))
            yield np.arange(start, start + len(found)), found
        return
    model.eval()
    if not _on_cpu(model):
        there = tokens.to(model.device)
        batches = list(by_budget(tokens.lengths, _ACCELERATED * path.token_budget))
        vectors = torch.cat([_within_memory(model, there, rows, role) for rows in batches])
        yield np.concatenate(batches), vectors.cpu().numpy()  # copied once: each copy waits for the GPU
        return

    def forward(rows: np.ndarray) -> np.ndarray:
        with _settings(model, path):  # each thread's own
            return _forward(model, tokens, rows, role).numpy()

    batches = list(by_budget(tokens.lengths, path.token_budget))
    # within one more level of autocast, leaving it after a batch does not throw away the converted weights
    with one_thread_each(torch.autocast_increment_nesting) as pool:
        yield from zip(batches, pool.map(forward, batches), strict=True)


def _by_library(library: Callable[..., np.ndarray], texts: list[str]) -> np.ndarray:
    """Vectors by the library's own encode, in smaller batches where memory runs out, down to single texts."""
    size = _LIBRARY_BATCH
    while True:
        try:
            return library(texts, batch_size=size, show_progress_bar=False)
        except RuntimeError as error:
            if size == 1 or not out_of_memory(error):
                raise
        size //= 2
        release()


def _within_memory(model: SentenceTransformer, tokens: Tokens, rows: np.ndarray, role: Role) -> torch.Tensor:
    """One batch through the model, in two halves where memory runs out, and so on down to single texts."""
    import torch

    try:
        return _forward(model, tokens, rows, role)
    except RuntimeError as error:
        if len(rows) == 1 or not out_of_memory(error):
            raise
    release()
    halves = np.array_split(rows, 2)
    return torch.cat([_within_memory(model, tokens, half, role) for half in halves])


@contextmanager
def _settings(model: SentenceTransformer, path: NumericPath) -> Iterator[None]:
    """No gradients, and the path's precision."""
    import torch

    dtype = torch.float16 if path.fp16 else torch.bfloat16
    with torch.inference_mode(), torch.autocast(model.device.type, dtype, enabled=path.half):
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


def _forward(model: SentenceTransformer, tokens: Tokens, rows: np.ndarray, role: Role) -> torch.Tensor:
    """One batch through the model, cut to its `truncate_dim`; float32 of shape (batch, dimension)."""
    import torch

    inputs = tokens.padded(rows, int(tokens.lengths[rows].max()))
    on_device = {
        name: moved(value, model.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
    }
    vectors: torch.Tensor = model(on_device, task=role)["sentence_embedding"]
    return vectors[:, : model.truncate_dim].float()
