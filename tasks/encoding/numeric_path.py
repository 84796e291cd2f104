"""Which numeric path a night encodes with: measured on its own models and texts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from tasks.encoding.encoder import BF16, FP16, FP32, PLAIN, ROLES, NumericPath, VectorError, encode

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

PARITY: Final = 0.9999
"""Least cosine between a path's vector and that of the plain fp32 `encode`, over the sample it is judged by.

bf16 under autocast reaches 0.99997 on all-MiniLM-L6-v2; int8 reaches 0.96, which changes verdicts."""

_WORTHWHILE: Final = 1.3
"""Times by which a path of less precision must be faster: far enough from both 1 and the factor of 2 that CPUs with
bf16 dot products show, so that the choice, and with it the cache, does not flip from night to night."""

_TENSOR_CORES: Final = (7, 0)
"""Compute capability from which a GPU multiplies fp16 matrices faster than fp32 ones (Volta)."""

_SAMPLE: Final = 32
"""Texts by which the numeric path is chosen."""

_ROUNDS: Final = 3
"""Times that each path is timed, on every other text of the sample."""


@dataclass(frozen=True)
class Measurement:
    """What a numeric path did on the sample.

    Attributes:
        path: the path.
        texts_per_second: of the first model, of CPU time; 0 for plain, never chosen for its speed, and on a GPU.
        least_cosine: the least cosine of any model's vector to that of plain fp32.
    """

    path: NumericPath
    texts_per_second: float
    least_cosine: float


def measure_paths(models: Sequence[SentenceTransformer], sample: Sequence[str]) -> list[Measurement]:
    """Encode a few texts of the sample with every model on every path; plain fp32 comes first and is the reference.

    The texts are spread evenly over the sample's lengths, for padding and rounding both depend on length. Each is
    encoded in both roles. A path on which a model cannot compute at all (mixed types under autocast) does not agree.
    On a GPU nothing is timed: so few texts would only measure launches.
    """
    by_length = sorted(set(sample), key=lambda text: (len(text), text))
    step = max(1.0, len(by_length) / _SAMPLE)
    texts = [by_length[int(place)] for place in np.arange(0, len(by_length), step)]
    if not texts or not models:
        raise ValueError(f"a numeric path is chosen on texts and models, got {len(texts)} and {len(models)}")
    reference = [_vectors(model, texts, PLAIN) for model in models]  # also prepares the kernels
    found = [Measurement(PLAIN, 0.0, 1.0)]
    on_cpu = models[0].device.type == "cpu"
    paths = (FP32, BF16) if on_cpu else (FP32, *_half_paths(models[0].device))
    found += [Measurement(path, 0.0, _least_cosine(models, texts, path, reference)) for path in paths]
    if not on_cpu:
        return found
    # CPU time, in turns, the best of each: what else runs on the machine must not change the choice
    seconds = {one.path: float("inf") for one in found[1:] if one.least_cosine > 0}
    for _ in range(_ROUNDS):
        for path in seconds:
            start = time.process_time()
            encode(models[0], texts[::2], "document", path=path)
            seconds[path] = min(seconds[path], time.process_time() - start)
    rates = {path: len(texts[::2]) / spent for path, spent in seconds.items()}
    return [replace(one, texts_per_second=rates.get(one.path, 0.0)) for one in found]


def _vectors(model: SentenceTransformer, texts: Sequence[str], path: NumericPath) -> np.ndarray:
    """The texts' vectors in both roles, of shape (2 * n_texts, d)."""
    return np.concatenate([encode(model, texts, role, path=path) for role in ROLES])


def _least_cosine(
    models: Sequence[SentenceTransformer], texts: Sequence[str], path: NumericPath, reference: Sequence[np.ndarray]
) -> float:
    """The least cosine of any model's vector on a path to the reference; 0 where one cannot be computed."""
    try:
        vectors = [_vectors(model, texts, path) for model in models]
    except (RuntimeError, TypeError, ValueError, VectorError):
        return 0.0
    return min(least_cosine(a, b) for a, b in zip(vectors, reference, strict=True))


def least_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """The least cosine of two arrays of unit vectors, of shape (n, d), row by row; two of zeros are the same."""
    cosines = (found * expected).sum(axis=1)
    cosines[~found.any(axis=1) & ~expected.any(axis=1)] = 1
    return float(cosines.min())


def choose_path(models: Sequence[SentenceTransformer], sample: Sequence[str], *, parity: float = PARITY) -> NumericPath:
    """The fastest numeric path whose vectors agree with plain fp32 for every model; measured in a few seconds.

    Choose once per night, with both models and real texts, and pass the value to every `encode`.
    """
    measured = measure_paths(models, sample)
    if models and models[0].device.type != "cpu":
        return by_capability(measured, parity)
    return fastest(measured, parity)


def _half_paths(where: torch.device) -> list[NumericPath]:
    """Half precision that a GPU has instructions for, the more exact first."""
    import torch

    if where.type != "cuda":
        return []
    fp16 = [FP16] if torch.cuda.get_device_capability(where) >= _TENSOR_CORES else []
    return fp16 + ([BF16] if torch.cuda.is_bf16_supported(including_emulation=False) else [])


def by_capability(measured: Sequence[Measurement], parity: float = PARITY) -> NumericPath:
    """The first half-precision path that agrees, else fp32 in batches by budget, else plain.

    What a GPU can compute, and how exactly, is the same every night; how fast a few texts are is not.
    """
    holding = [measurement.path for measurement in measured if measurement.least_cosine >= parity]
    return next((path for path in holding if path.half), FP32 if FP32 in holding else PLAIN)


def fastest(measured: Sequence[Measurement], parity: float = PARITY) -> NumericPath:
    """bf16 where it holds parity and clearly pays, else fp32 in batches by budget where that agrees, else plain."""
    by_path = {measurement.path: measurement for measurement in measured}
    holding = {path for path, measurement in by_path.items() if measurement.least_cosine >= parity}
    if FP32 not in holding:
        return PLAIN
    if BF16 in holding and by_path[BF16].texts_per_second >= _WORTHWHILE * by_path[FP32].texts_per_second:
        return BF16
    return FP32
