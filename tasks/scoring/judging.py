"""What people should judge so that the verdict does not depend on who labelled: documents that only one model finds.

Labels from clicks name the document that production ranked first, so a better model that finds another right answer
looks worse. Judging only what the candidate finds would turn the bias round; so people get what either finds alone,
without being told which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import orjson

from tasks.dataset import EvaluationSet
from tasks.encoding import Encoder
from tasks.ranking import nearest

QUERIES: Final = 50
"""Queries to judge."""

_LOOKED_AT: Final = 4 * QUERIES
"""Queries among which they are looked for: most differ in their first ten."""

_DEPTH: Final = 10


def to_judge(test: EvaluationSet, documents: Sequence[str], encoders: Sequence[Encoder], seed: int) -> bytes:
    """A random sample of queries with the documents in which the first tens of two models differ, as JSON lines.

    A line is `{"query", "document", "relevant": null}`, in random order; the judge replaces null by true or false,
    and `ratchet convert` makes pairs of it. Documents that are labelled relevant already are left out.

    Args:
        test: The test queries and what is relevant to them.
        documents: What is searched.
        encoders: The two models, with cached vectors: every text was scored already.
        seed: Of the sample and of the order.
    """
    rng = np.random.default_rng(seed)
    sample = rng.permutation(len(test))[:_LOOKED_AT]
    firsts = [
        nearest(
            encoder.encode([test.queries[i] for i in sample], "query"), encoder.encode(documents, "document"), _DEPTH
        )
        for encoder in encoders
    ]
    pairs = []
    judged = 0
    for i, one, other in zip(sample, *(first.tolist() for first in firsts), strict=True):
        known = set(np.asarray(test.relevant[i]).tolist())
        differing = sorted((set(one) ^ set(other)) - known)
        judged += bool(differing)
        pairs += [(test.queries[i], documents[place]) for place in differing]
        if judged == QUERIES:
            break
    lines = [{"query": pairs[i][0], "document": pairs[i][1], "relevant": None} for i in rng.permutation(len(pairs))]
    return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)
