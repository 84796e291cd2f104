"""The base model on SciFact, against figures that others published: our encoding, ranks and metrics from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import encoding
from tasks.config import BUNDLED_MODEL
from tasks.encoding import encode
from tasks.ranking import metrics, relevant_ranks
from tests.benchmarks.bench_training import labelled_set

SCIFACT = Path(__file__).parents[2] / "shared" / "data" / "scifact"
"""Where the data lies when it lies beside the checkout; it is no part of the project."""


def _map_at_100(ranks: list[Any]) -> float:
    """Mean average precision over the first hundred, as it was published: what lies deeper counts as never found."""
    precisions = [
        sum(place / rank for place, rank in enumerate(found, 1) if rank <= 100) / len(found) for found in ranks
    ]
    return float(np.mean(precisions))


@pytest.mark.slow
@pytest.mark.skipif(not SCIFACT.is_dir(), reason="the SciFact data do not lie beside the checkout")
def test_the_published_figures_come_out() -> None:
    """all-MiniLM-L6-v2 at 256 tokens: NDCG@10 .64508, Recall@10 .78333, MAP@100 .60307 (the MTEB results)."""
    data = labelled_set(SCIFACT)
    model = encoding.load(encoding.resolve_model(BUNDLED_MODEL))
    assert model.max_seq_length == 256
    asked, searched = encode(model, data.queries, "query"), encode(model, data.documents, "document")
    ranks = relevant_ranks(asked, searched, data.relevant)
    found = {name: float(values.mean()) for name, values in metrics(ranks).items()}
    assert found["ndcg_at_10"] == pytest.approx(0.64508, abs=5e-4)
    assert found["recall_at_10"] == pytest.approx(0.78333, abs=5e-4)
    assert _map_at_100(ranks) == pytest.approx(0.60307, abs=5e-4)
