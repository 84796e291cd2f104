"""The loss of a query encoder that is trained alone: each query's answer among the documents as they are.

Documents are vectors that do not change, so every one of them can be a candidate of every query: the softmax runs over
the whole corpus, where a training of both sides has the batch. Beyond `CELLS` similarities a step, the documents of the
batch and a uniform sample of the others stand for the corpus, the others weighted by how many each stands for, so that
the sum that the softmax divides by is right on average (Jean et al. 2015, section 3, with a uniform proposal).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from tasks.splits import document_key
from tasks.training import hardware, losses
from tasks.training.examples import Batch, Examples, Ints

CELLS: Final = 1 << 22
"""Similarities of one step, queries times documents: 65,536 documents at 64 queries, 16 MiB for each dimension."""


@dataclass(frozen=True)
class Documents:
    """What the query side is trained against.

    Attributes:
        folder: the model that encoded the documents; its document route is the candidate's.
        identity: what that model's document vectors depend on (`encoding.document_identity`).
        texts: distinct; first those that dev's relevant documents are places in, then the others of the rows.
        vectors: one for each, unit length, float32, shape (m, d).
    """

    folder: Path
    identity: str
    texts: Sequence[str]
    vectors: npt.NDArray[np.float32]

    def of(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of some of the texts, shape (len(texts), d)."""
        found: npt.NDArray[np.float32] = self.vectors[places(self.texts, texts)]
        return found


def places(texts: Sequence[str], wanted: Sequence[str]) -> Ints:
    """Where each of the wanted texts is among the texts."""
    numbers = {text: place for place, text in enumerate(texts)}
    return np.array([numbers[text] for text in wanted], np.int64)


class Corpus:
    """The documents as candidates.

    Args:
        documents: all of them, with those of the rows.
        examples: the training rows, numbered.
        dims: what vectors are cut to, the full dimension first.
        seed: of the samples.
        cells: most similarities of a step.
    """

    def __init__(
        self, documents: Documents, examples: Examples, dims: Sequence[int], seed: int, cells: int = CELLS
    ) -> None:
        self._examples, self._dims, self._seed, self._cells = examples, dims, seed, cells
        named = [documents.identity, *documents.texts]
        self.fingerprint: str = hashlib.sha256(json.dumps(named).encode()).hexdigest()
        self._vectors = torch.from_numpy(np.ascontiguousarray(documents.vectors))  # (m, d)
        norms = [torch.linalg.vector_norm(self._vectors[:, :dim], dim=1).clamp_min(1e-12) for dim in dims]
        self._scales = losses.SCALE / torch.stack(norms)  # (dims, m)
        self._place = places(documents.texts, examples.documents)
        numbers = dict(zip(map(document_key, examples.documents), examples.document_keys.tolist(), strict=True))
        self._spellings: dict[int, list[int]] = {}  # key of a document -> where its texts are
        for place, text in enumerate(documents.texts):
            if (number := numbers.get(document_key(text))) is not None:
                self._spellings.setdefault(number, []).append(place)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def known(self) -> npt.NDArray[np.float32]:
        """All vectors, shape (m, d)."""
        found: npt.NDArray[np.float32] = self._vectors.cpu().numpy()
        return found

    def vectors(self, documents: Ints) -> Tensor:
        """Vectors of `Examples.documents` by number, shape (len(documents), d)."""
        return self._vectors[torch.from_numpy(self._place[documents])]

    def loss(self, batch: Batch, queries: Tensor, step: int) -> Tensor:
        """Cross-entropy of each query's own document among the corpus, summed over the dimensions.

        Args:
            batch: of kind `ranking`; its documents are candidates in any case, hard negatives among them.
            queries: vectors of `batch.queries`, shape (n, d).
            step: steps taken before; another sample is drawn for each.
        """
        columns, weights = self._columns(batch, step)
        masked, own = self._masked(batch, columns)
        where = queries.device
        if len(columns) == len(self):  # all of them, and so they stay there
            vectors, scales = self._vectors, self._scales = self._vectors.to(where), self._scales.to(where)
        else:
            chosen = torch.from_numpy(columns)
            vectors, scales = self._vectors[chosen].to(where), self._scales[:, chosen].to(where)
        hidden, target, extra = (hardware.moved(torch.from_numpy(one), where) for one in (masked, own, weights))

        def ranking(dim: int) -> Tensor:
            asked = normalize(queries[:, :dim], dim=-1)
            cosines = asked @ vectors[:, :dim].T * scales[self._dims.index(dim)] + extra  # (n, columns), times SCALE
            return cross_entropy(cosines.masked_fill(hidden, -torch.inf), target)

        return losses.matryoshka(ranking, self._dims)

    def _columns(self, batch: Batch, step: int) -> tuple[Ints, npt.NDArray[np.float32]]:
        """The candidates of a step, ascending, and the log of how many documents each of them stands for."""
        most = max(1, self._cells // len(batch.queries))
        if len(self) <= most:
            return np.arange(len(self)), np.zeros(len(self), np.float32)
        certain = np.unique(self._place[batch.documents])
        drawn = np.random.default_rng([self._seed, 3, step]).choice(len(self), most, replace=False, shuffle=False)
        others = np.setdiff1d(drawn, certain)
        columns = np.union1d(certain, others)
        weights = np.zeros(len(columns), np.float32)
        if len(others):
            weights[np.isin(columns, others)] = np.log((len(self) - len(certain)) / len(others))
        return columns, weights

    def _masked(self, batch: Batch, columns: Ints) -> tuple[npt.NDArray[np.bool_], Ints]:
        """Candidates that are not negatives of a query, shape (n, columns), and where its own document is, (n,)."""
        own = np.searchsorted(columns, self._place[batch.documents[batch.positives]])
        masked = np.zeros((len(batch.queries), len(columns)), np.bool_)
        for line, query in enumerate(batch.queries.tolist()):
            known = [place for key in self._examples.answers_of(query) for place in self._spellings[key]]
            at = np.searchsorted(columns, known)
            there = at < len(columns)
            masked[line, at[there][columns[at[there]] == np.array(known, np.int64)[there]]] = True
        masked[np.arange(len(own)), own] = False
        return masked, own
