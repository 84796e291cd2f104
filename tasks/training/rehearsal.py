"""The dress rehearsal: everything that follows the last step, done with the untouched model before the first one.

The model is saved, put into a scratch folder as a candidate would be published, loaded afresh and asked for vectors in
both roles, of short texts, of one at full length and of one that no vocabulary knows. What cannot be saved, published,
loaded or encoded, or comes out different, would fail after a whole training, every night; here it costs seconds and no
GPU time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from tasks.config import Training
from tasks.encoding import (
    FP32,
    PLAIN,
    ROLES,
    ModelError,
    NumericPath,
    Role,
    VectorError,
    document_identity,
    encode,
    least_cosine,
    load,
    out_of_memory,
    served,
)
from tasks.encoding.probes import SHORT, check_weights, probe_texts, probe_vectors
from tasks.registry import Description, VersionError
from tasks.registry.versions import describe_folder, differences
from tasks.training import query_side, saving
from tasks.training.embedder import Embedder, Texts
from tasks.training.result import TrainingError
from tasks.training.start import FROM_BASE, Start, choose_kernel, restore_attention, shorten

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TOLERANCE: Final = 1e-4
"""Largest Euclidean distance at which two unit vectors of one text are the same, as in the serving check."""

_FEW: Final = 8
"""Texts of each role that are compared in training's own computation, from the shortest to the longest."""

_LEAST_HALF: Final = 0.99
"""Least cosine of a vector in half precision to that in float32."""


def rehearse(
    training: Training, start: Start = FROM_BASE, device: str | None = None, scratch: Path | None = None
) -> None:
    """Save, publish, load and encode the untouched model that a training would start from.

    Args:
        training: names the base model.
        start: the model to start from, where that is not the base model.
        device: where to compute; None: the best there is.
        scratch: where the candidate will be saved, so that a full disk shows; None: where temporary files are.

    Raises TrainingError saying what fails, and what to do about it.
    """
    described = start.described(training)
    try:
        model = load(start.path(training), device)
        check_weights(model)
    except ModelError as error:
        raise TrainingError(f"{described}: {error}") from error
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(f"{described} has no weights that can be trained")
    texts = probe_texts(model)
    expected = _vectors(model, texts, described)
    _check_complete(load(start.path(training), device, seed=1), texts, expected, described)
    _check_distinct(expected, f"{described}, with texts of at most {served(model).max_length} tokens,")
    restore = shorten(model, training.max_length)
    cut = _vectors(model, SHORT, described)
    restore()
    _check_distinct(cut, f"{described}, with texts of at most {training.max_length} tokens in training,")
    _check_alone(model, texts, expected, described)
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=scratch) as temporary:
        afresh = _published(model, Path(temporary), described, device)
    for path, how in ((PLAIN, "by the library's own encode"), (FP32, "in batches by tokens")):
        found = _vectors(afresh, texts, f"{described}, saved and loaded again,", path)
        for role in ROLES:
            _compare(found[role], expected[role], f"{described}, saved and loaded again: encoded {how}, as {role}")


def rehearse_joined(queries: Path, documents: Path, described: str, device: str | None = None) -> None:
    """Put an untouched query encoder beside the documents of another model, as it will be saved, and load it again.

    Args:
        queries: the query encoder as a plain model.
        documents: the model whose documents it is trained against.
        described: the name of the first in messages.
        device: where to compute; None: the best there is.

    Raises TrainingError where queries or documents come out different.
    """
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        saving.save(load(queries, device), Path(scratch) / "queries", "# Rehearsal\n", described)
        joined = Path(scratch) / "joined"
        query_side.join(Path(scratch) / "queries", documents, joined)
        afresh = load(joined, device)
        sources: tuple[tuple[Role, Path], ...] = (("query", queries), ("document", documents))
        for role, source in sources:
            model = load(source, device)
            texts = probe_texts(model)
            expected = encode(model, texts, role, path=PLAIN)
            for path, how in ((PLAIN, "by the library's own encode"), (FP32, "in batches by tokens")):
                found = encode(afresh, texts, role, path=path)
                _compare(found, expected, f"{described}, saved beside its documents: encoded {how}, as {role}")
        if document_identity(joined) != document_identity(documents):
            raise TrainingError(f"{described}, saved beside its documents, is said to encode them otherwise")


def rehearse_forward(embedder: Embedder, columns: Sequence[tuple[Texts, Sequence[str]]], described: str) -> None:
    """Compare the vectors that training computes with those of the library, for a few texts of every role.

    In the precision, packing and kernel of the training, whose length limit the model has at this point.

    Args:
        embedder: of the training.
        columns: texts as they are trained on, and what they are.
        described: the model's name in messages.

    Raises TrainingError where they differ, or cannot be computed.
    """
    for texts, strings in columns:
        order = np.argsort(texts.lengths, kind="stable")
        few = order[np.linspace(0, len(order) - 1, _FEW).astype(int)]
        try:
            choose_kernel(embedder, packed=embedder.packed)
            with torch.no_grad():
                [vectors] = embedder.embed((texts, few))
            found = torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()
            restore_attention(embedder.model)
            expected = encode(embedder.model, [strings[number] for number in few], texts.role, path=PLAIN)
        except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError, VectorError) as error:
            if out_of_memory(error):
                raise
            raise TrainingError(f"{described} cannot compute a {texts.role} in training: {error}") from error
        if embedder.precision == "fp32":
            _compare(found, expected, f"{described}, in training, as {texts.role}")
        elif not (least := least_cosine(found, expected)) >= _LEAST_HALF:
            raise TrainingError(f"{described}, in {embedder.precision}, as {texts.role}: cosine {least:.4f} to float32")
    choose_kernel(embedder, packed=embedder.packed)
    embedder.tokens = embedder.padded_tokens = 0


def _check_distinct(vectors: dict[Role, np.ndarray], described: str) -> None:
    """Refuse a model for which all texts of a role are one; those of which it knows no word do not count."""
    for role, of_role in vectors.items():
        known = of_role[of_role.any(axis=1)]
        if len(known) > 1 and np.ptp(known, axis=0).max() < TOLERANCE:
            raise TrainingError(
                f"{described} gives every {role} the same vector: does its prompt leave room for texts?"
            )


def _check_complete(
    again: SentenceTransformer, texts: list[str], expected: dict[Role, np.ndarray], described: str
) -> None:
    """Refuse a model of which a part is drawn at random each time that it is loaded, here from another seed."""
    found = _vectors(again, texts, described)
    for role in ROLES:
        _compare(
            found[role],
            expected[role],
            f"{described}, loaded twice, as {role} (its files lack weights that the library then draws at random)",
        )


def _vectors(
    model: SentenceTransformer, texts: Sequence[str], described: str, path: NumericPath = PLAIN
) -> dict[Role, np.ndarray]:
    """Unit vectors of the texts by role, each of shape (n_texts, d)."""
    try:
        return probe_vectors(model, texts, described, path)
    except ModelError as error:
        raise TrainingError(str(error)) from error


def _check_alone(
    model: SentenceTransformer, texts: list[str], expected: dict[Role, np.ndarray], described: str
) -> None:
    """Refuse a model whose vector of a text depends on what else is in the batch."""
    alone = [_vectors(model, [text], described) for text in texts]
    for role in ROLES:
        _compare(
            np.concatenate([one[role] for one in alone]),
            expected[role],
            f"{described}: encoded alone and together with longer texts, as {role} (padding on the left with learned "
            "positions? Set the tokenizer's padding_side to 'right'; or layers that see padding, such as convolutions)",
        )


def _published(model: SentenceTransformer, scratch: Path, described: str, device: str | None) -> SentenceTransformer:
    """The model as a consumer loads it: saved, described, copied by its manifest, verified."""
    saved, copied = scratch / "saved", scratch / "served"
    saving.save(model, saved, "# Rehearsal\n", described)
    facts = served(model)
    try:
        manifest = describe_folder(saved, Description(**facts.described()))
    except (VersionError, ValueError) as error:
        raise TrainingError(f"{described} cannot be published: {error}") from error
    for path in manifest.files:
        (copied / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(saved / path, copied / path)
    wrong = differences(copied, manifest)
    if wrong:
        raise TrainingError(f"{described} cannot be published: {'; '.join(wrong)}")
    try:
        afresh = load(copied, device)
    except ModelError as error:
        raise TrainingError(f"{described} cannot be loaded again once it is saved: {error}") from error
    if served(afresh) != facts:
        raise TrainingError(f"{described} is another model once it is saved: {served(afresh)} in the place of {facts}")
    return afresh


def _compare(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Raise TrainingError where two arrays of unit vectors, of shape (n, d), are not the same vectors."""
    distance = np.linalg.norm(found.astype(np.float64) - expected, axis=1)
    if not (distance <= TOLERANCE).all():
        raise TrainingError(f"{what}: other vectors (distance {distance.max():.2g} of unit vectors)")
