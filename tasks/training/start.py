"""The model that a fine-tuning run starts from: loaded, checked against the settings, and made ready to be trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch.nn.functional import normalize

from tasks.config import Training
from tasks.encoding import ModelError, least_cosine, load, resolve_model, served, transformers_of
from tasks.records import Precision
from tasks.training import hardware
from tasks.training import packed as packing
from tasks.training.embedder import Embedder, Texts
from tasks.training.examples import Ints
from tasks.training.plan import BASE
from tasks.training.processes import Group
from tasks.training.result import TrainingError
from tasks.training.row_gradients import use_row_gradients

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_DEFAULT_DIMENSIONS: Final = Training().matryoshka_dims


_LEAST_HALF: Final = 0.99
"""Least cosine of a vector in half precision to that in float32 with which training goes on."""

_PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Start:
    """Where a run starts: from the base model, or from the folder of a version that was trained from it.

    A query encoder that is trained alone always has a folder; by the name BASE it begins as the encoder of documents.
    """

    name: str = BASE
    folder: Path | None = None

    def path(self, training: Training) -> Path:
        """The folder that is loaded. Raises TrainingError when there is none, or it is not to be trusted."""
        try:
            return resolve_model(training.base_model if self.folder is None else str(self.folder))
        except ModelError as error:
            raise TrainingError(f"{self.described(training)}: {error}") from error

    def described(self, training: Training) -> str:
        """Its name in messages."""
        return f"base model {training.base_model!r}" if self.name == BASE else f"version {self.name}"


FROM_BASE: Final = Start()


def open_start(training: Training, start: Start = FROM_BASE, device: str | None = None) -> SentenceTransformer:
    """Load the model in fp32, dropout off, the parameters that are not to be trained frozen; on the best device.

    Raises TrainingError when it cannot be loaded, is not of the base model's architecture, or has no upper half.
    """
    where = hardware.device() if device is None else torch.device(device)
    model = _load(start.path(training), str(where), start.described(training))
    _set_attention(model, hardware.attention(where))
    if start.folder is not None and training.side == "both":
        base = _load(FROM_BASE.path(training), "cpu", FROM_BASE.described(training))
        if _shapes(model) != _shapes(base):
            raise TrainingError(
                f"version {start.name} has other parameters than base model {training.base_model!r}: "
                "it was trained from another one; start from base"
            )
    if training.quick:
        _freeze_lower_half(model)
    use_row_gradients(model)
    return model.eval()  # as opposed to train(): the only difference is dropout


def _load(folder: Path, where: str, described: str) -> SentenceTransformer:
    try:
        return load(folder, device=where)
    except ModelError as error:
        raise TrainingError(f"{described} cannot be loaded: {error}") from error


def _shapes(model: SentenceTransformer) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def dimensions(model: SentenceTransformer, training: Training) -> tuple[int, ...]:
    """The full dimension, then the smaller Matryoshka dimensions.

    The default dimensions adapt to the model. Raises TrainingError where others are above the model's.
    """
    full = served(model).dimension
    above = [dim for dim in training.matryoshka_dims if dim > full]
    if above and training.matryoshka_dims != _DEFAULT_DIMENSIONS:
        raise TrainingError(f"matryoshka_dims {above} are above the base model's dimension {full}")
    return (full, *(dim for dim in training.matryoshka_dims if dim < full))


def shorten(model: SentenceTransformer, limit: int, *, raise_to: bool = False) -> Callable[[], None]:
    """Cut texts at `limit` tokens at most in every tower of a model; returns what puts the old limits back.

    With `raise_to` a lower limit is raised to it: for tokenising, since a forward may lack the positions.
    """
    towers = [(module, module.max_seq_length) for module in transformers_of(model)]
    for module, length in towers:
        module.max_seq_length = limit if length is None or raise_to else min(limit, length)

    def restore() -> None:
        for module, length in towers:
            module.max_seq_length = length

    return restore


def embedder(model: SentenceTransformer, columns: Sequence[Texts], training: Training, group: Group) -> Embedder:
    """Choose the precision by the device, then packed or padded by comparing their vectors in that precision."""
    chunk = hardware.chunk_tokens(model.device)
    own: Precision = hardware.half(model.device) if training.precision == "auto" else training.precision
    if own != "fp32":
        problem = _in_half(Embedder(model, own, chunk), columns)
        if problem and training.precision != "auto":
            raise TrainingError(f"precision {own!r} does not suit this base model ({problem}): use 'auto' or 'fp32'")
        own = "fp32" if problem else own
    precision = _PRECISIONS[int(group.agree(_PRECISIONS.index(own)))]
    chosen = Embedder(model, precision, chunk)
    choose_kernel(chosen, packed=_can_be_packed(chosen, columns))
    chosen.group = group
    chosen.tokens = chosen.padded_tokens = 0
    return chosen


def choose_kernel(embedder: Embedder, *, packed: bool) -> None:
    """Let the model attend within packed chunks, or within padded ones."""
    if packed:
        packing.register()
    embedder.packed = packed
    embedder.position_offset = packing.position_offset(embedder.model) if packed else 0
    _set_attention(embedder.model, packing.ATTENTION if packed else hardware.attention(embedder.model.device))


def recompute_layers(model: SentenceTransformer) -> None:
    """Let each layer's activations be computed again in the backward pass instead of being kept.

    Raises TrainingError where the model's library does not support that.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in transformers_of(model):
        inner = module.model
        try:
            inner.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        except ValueError as error:
            raise TrainingError(f"gradient_checkpointing is not supported by this model: {error}") from error
        for layer in inner.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True  # of this module only: what is below it stays without dropout


def _in_half(embedder: Embedder, columns: Sequence[Texts]) -> str:
    """Why the model cannot be trained in half precision, found on a few texts of every role; empty when it can.

    Rotary positions are an example: on a CPU they meet the autocast products in another type.
    """
    exact = Embedder(embedder.model, "fp32", embedder.chunk_tokens)
    with torch.no_grad():
        for texts in columns:
            column = (texts, _spread(texts.lengths))
            choose_kernel(exact, packed=False)
            expected = torch.cat(exact.embed(column))
            try:
                found = torch.cat(embedder.embed(column))
            except RuntimeError as error:
                if hardware.out_of_memory(error):
                    raise
                return str(error).strip().partition("\n")[0]
            least = least_cosine(*(normalize(vectors, dim=-1).cpu().numpy() for vectors in (found, expected)))
            if not least >= _LEAST_HALF:
                return f"its vectors have a cosine of {least:.4f} to those in float32"
    return ""


def _can_be_packed(embedder: Embedder, columns: Sequence[Texts]) -> bool:
    """Whether the model gives the same vectors without padding, for a few texts of every role.

    Leaves the kernel changed. Only a GPU has a variable-length kernel, and that for half precision.
    """
    kernel = hardware.attends_by_text(embedder.model.device) and embedder.precision != "fp32"
    if not kernel or not all(texts.tokenised for texts in columns):
        return False
    probes = [(texts, _spread(texts.lengths)) for texts in columns]

    def vectors(*, packed: bool) -> torch.Tensor:
        choose_kernel(embedder, packed=packed)
        return torch.cat([vectors for column in probes for vectors in embedder.embed(column)])

    return packing.agrees(lambda: vectors(packed=False), lambda: vectors(packed=True))


def _spread(lengths: Ints) -> Ints:
    """A few texts, from the shortest to the longest."""
    order: Ints = np.argsort(lengths, kind="stable")
    few: Ints = order[np.linspace(0, len(order) - 1, 8).astype(int)]
    return few


def distance(model: SentenceTransformer, training: Training, start: Start = FROM_BASE) -> float:
    """How far the weights are from the base model's: the L2 norm of the difference / that of the base's weights.

    Over all parameters as one vector, frozen ones included; 0 for the base model itself. Of a query encoder that is
    trained alone: from the weights that it started from.
    """
    origin = start if training.side == "query" else FROM_BASE
    base = _load(origin.path(training), "cpu", origin.described(training))
    before = dict(base.named_parameters())
    norm = partial(torch.linalg.vector_norm, dtype=torch.float64)
    moved = size = 0.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            moved += float(norm(parameter.cpu() - before[name])) ** 2
            size += float(norm(before[name])) ** 2
    return math.sqrt(moved / size) if size else math.inf


def _freeze_lower_half(model: SentenceTransformer) -> None:
    """Leave the embeddings and the first half of the layers as they are: no gradient has to reach them."""
    inner = model.transformers_model
    stacks = [] if inner is None else [module for module in inner.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = max(stacks, key=len, default=torch.nn.ModuleList())
    if inner is None or len(layers) < 2:
        raise TrainingError("quick needs a model with two or more layers, of which the upper half can be trained")
    trained = next(layers[len(layers) // 2].parameters())
    for parameter in inner.parameters():  # in order of registration: embeddings, layers, what follows them
        if parameter is trained:
            break
        parameter.requires_grad_(False)


def restore_attention(model: SentenceTransformer) -> None:
    """The attention kernel that the library would choose, as in serving."""
    _set_attention(model, "sdpa")


def _set_attention(model: SentenceTransformer, kernel: str) -> None:
    """Let every transformer attend by a kernel; by plain matrix products where it has no SDPA (Gemma 2, Mamba)."""
    for module in transformers_of(model):
        lacks = kernel == "sdpa" and not module.model._supports_sdpa
        module.model.set_attn_implementation("eager" if lacks else kernel)
