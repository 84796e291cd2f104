"""How good the model is during training, on dev queries: picks the best checkpoint and stops early.

Evaluation is nearly all encoding, and the corpus may be far larger than the night's pairs. So dev is scored on a
part that a run can afford: up to a number of dev queries, their relevant documents, and distractors
drawn from the corpus with the seed. Scores are comparable within one run and say nothing about the whole corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch

from tasks.records import DevScore
from tasks.training.embedder import Column, Embedder, Texts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from tasks.dataset import EvaluationSet

MIN_QUERIES: Final = 8
"""With fewer dev queries their scores are chance, and the last step's model is taken."""

MOST_DOCUMENTS: Final = 1 << 16
"""Documents that are ranked where their vectors are known."""


class Dev:
    """A fixed sample of dev queries and documents, tokenised once.

    Args:
        model: tokenises as it does in training.
        dev: the dev side; `dev.relevant` are indices into `documents`.
        documents: the whole corpus.
        texts: how many texts one evaluation may encode.
        seed: of the sample.
        vectors: of the documents, shape (at least len(documents), d), where these are not encoded.
    """

    def __init__(  # what is sampled, from what, and how much
        self,
        model: SentenceTransformer,
        dev: EvaluationSet,
        documents: Sequence[str],
        texts: int,
        seed: int,
        vectors: npt.NDArray[np.float32] | None = None,
    ) -> None:
        rng = np.random.default_rng([seed, 1])
        share = texts // 3 if vectors is None else texts
        chosen = np.sort(rng.permutation(len(dev.queries))[: max(MIN_QUERIES, share)])
        relevant = np.unique(np.concatenate([dev.relevant[query] for query in chosen]))
        others = np.setdiff1d(np.arange(len(documents)), relevant)
        room = texts - len(chosen) if vectors is None else MOST_DOCUMENTS
        distractors = rng.permutation(others)[: max(0, room - len(relevant))]
        corpus = np.sort(np.concatenate([relevant, distractors]))
        self._relevant = [np.searchsorted(corpus, np.unique(dev.relevant[query])) for query in chosen]
        self._queries = Texts(model, [dev.queries[query] for query in chosen], "query")
        self._documents = (
            Texts(model, [documents[number] for number in corpus], "document") if vectors is None else vectors[corpus]
        )
        self.queries = len(chosen)
        self.documents = len(corpus)

    def score(self, embedder: Embedder, step: int) -> DevScore:
        """Recall@10 and MRR of the model as it is now."""
        from tasks.ranking import metrics, relevant_ranks, summary

        columns: list[Column] = [(self._queries, np.arange(self.queries))]
        if isinstance(self._documents, Texts):
            columns.append((self._documents, np.arange(self.documents)))
        with torch.no_grad():
            vectors = [found.cpu().numpy() for found in embedder.embed(*columns)]
        queries, documents = vectors if isinstance(self._documents, Texts) else (vectors[0], self._documents)
        ranks = relevant_ranks(queries, documents, self._relevant)
        means = summary(metrics(ranks))
        return DevScore(step, means["recall_at_10"], means["mrr"])
