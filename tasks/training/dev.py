"""How good the model is during training, on dev queries: picks the best checkpoint and stops early.

Evaluation is nearly all encoding, and the corpus may be far larger than the night's pairs. So dev is scored on a
part that a run can afford: up to a number of dev queries, their relevant documents, and distractors
drawn from the corpus with the seed. Scores are comparable within one run and say nothing about the whole corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from tasks.records import DevScore
from tasks.training.embedder import Embedder, Texts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from tasks.dataset import EvaluationSet

MIN_QUERIES: Final = 8
"""With fewer dev queries their scores are chance, and the last step's model is taken."""


class Dev:
    """A fixed sample of dev queries and documents, tokenised once.

    Args:
        model: tokenises as it does in training.
        dev: the dev side; `dev.relevant` are indices into `documents`.
        documents: the whole corpus.
        texts: how many texts one evaluation may encode.
        seed: of the sample.
    """

    def __init__(
        self, model: SentenceTransformer, dev: EvaluationSet, documents: Sequence[str], texts: int, seed: int
    ) -> None:
        rng = np.random.default_rng([seed, 1])
        chosen = np.sort(rng.permutation(len(dev.queries))[: max(MIN_QUERIES, texts // 3)])
        relevant = np.unique(np.concatenate([dev.relevant[query] for query in chosen]))
        others = np.setdiff1d(np.arange(len(documents)), relevant)
        distractors = rng.permutation(others)[: max(0, texts - len(chosen) - len(relevant))]
        corpus = np.sort(np.concatenate([relevant, distractors]))
        self._relevant = [np.searchsorted(corpus, np.unique(dev.relevant[query])) for query in chosen]
        self._queries = Texts(model, [dev.queries[query] for query in chosen], "query")
        self._documents = Texts(model, [documents[number] for number in corpus], "document")
        self.queries = len(chosen)
        self.documents = len(corpus)

    def score(self, embedder: Embedder, step: int) -> DevScore:
        """Recall@10 and MRR of the model as it is now."""
        from tasks.ranking import metrics, relevant_ranks, summary

        with torch.no_grad():
            queries, documents = embedder.embed(
                (self._queries, np.arange(self.queries)), (self._documents, np.arange(self.documents))
            )
        ranks = relevant_ranks(queries.cpu().numpy(), documents.cpu().numpy(), self._relevant)
        means = summary(metrics(ranks))
        return DevScore(step, means["recall_at_10"], means["mrr"])
