"""Both sides of a comparison on the same queries and documents: from models to metrics per query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.dataset import EvaluationSet
from tasks.encoding import Encoder, Progress
from tasks.gate import Scores
from tasks.ranking import metrics, nearest, relevant_ranks, summary, truncate
from tasks.records import Returned
from tasks.scoring.serving import Sample

BASE: Final = "base"
CANDIDATE: Final = "candidate"
PRODUCTION: Final = "production"
GOLDEN: Final = "golden"
SAMPLE: Final = 64
"""Queries, and as many documents, whose vectors are kept for the serving check."""

RETURNED: Final = 3
_CUT: Final = 200
"""Characters of a text that is kept to be shown."""


@dataclass(frozen=True)
class SideScores:
    """What one model scored: per query (at its full dimension), the means at each dimension, and a few vectors."""

    per_query: dict[str, NDArray[np.float64]]
    by_dimension: dict[int, dict[str, float]]
    sample: Sample
    """Some of the texts and the very vectors that were scored, for the serving check."""

    @property
    def means(self) -> dict[str, float]:
        """The means at the full dimension."""
        return self.by_dimension[max(self.by_dimension)]


def score_side(
    test: EvaluationSet,
    documents: Sequence[str],
    encoder: Encoder,
    dims: Sequence[int] = (),
    on_progress: Progress | None = None,
) -> SideScores:
    """Rank every document for every test query, and compute the metrics at the full dimension and at `dims`.

    Texts are encoded once; shorter vectors are cut from the full ones. Dimensions that the model does not have
    are left out.

    Raises:
        ValueError: There is no test query, or a vector is not finite.
    """
    asked = encoder.encode(test.queries, "query")
    searched = encoder.encode(documents, "document", on_progress=on_progress)
    full = searched.shape[1]
    per_query = metrics(relevant_ranks(asked, searched, test.relevant))
    by_dimension = {full: summary(per_query)}
    for dim in sorted({dim for dim in dims if dim < full}, reverse=True):
        ranks = relevant_ranks(truncate(asked, dim), truncate(searched, dim), test.relevant)
        by_dimension[dim] = summary(metrics(ranks))
    return SideScores(per_query, by_dimension, Sample(test.queries, asked, documents, searched).cut(SAMPLE))


def per_query_table(test: EvaluationSet, sides: Mapping[str, SideScores]) -> bytes:
    """The metrics of both sides per test query, as Parquet: `query`, `slice`, `golden`, `<side>_<metric>`."""
    columns: dict[str, Any] = {
        "query": pa.array(test.queries, pa.string()),
        "slice": pa.array(test.slices, pa.string()),
        "golden": pa.array(test.golden, pa.bool_()),
    }
    for side, scores in sides.items():
        for metric, values in scores.per_query.items():
            columns[f"{side}_{metric}"] = pa.array(values, pa.float64())
    sink = BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def returned(
    test: EvaluationSet, documents: Sequence[str], encoder: Encoder, rows: Sequence[int]
) -> list[list[Returned]]:
    """What some test queries find first: for each of `rows`, the nearest documents, cut, and whether each is relevant.

    Every text was scored already, so with a cache nothing is encoded for it.
    """
    if not rows:
        return []
    found = nearest(
        encoder.encode([test.queries[row] for row in rows], "query"), encoder.encode(documents, "document"), RETURNED
    )
    return [
        [Returned(documents[place][:_CUT], place in set(np.asarray(test.relevant[row]).tolist())) for place in places]
        for row, places in zip(rows, found.tolist(), strict=True)
    ]


def read_side(per_query: bytes, side: str, model: str) -> Scores:
    """One side of a per-query table, as the gate takes it.

    Args:
        per_query: What `per_query_table` made.
        side: "candidate" or "production".
        model: Fingerprint of the model on that side.
    """
    table = pq.read_table(BytesIO(per_query))
    golden = table["golden"].to_numpy()
    named = table["slice"].combine_chunks().dictionary_encode()
    codes = named.indices.fill_null(-1).to_numpy()
    slices = {f"slice {name}": codes == code for code, name in enumerate(named.dictionary.to_pylist())}
    if golden.any():
        slices[GOLDEN] = golden
    prefix = f"{side}_"
    return Scores(
        model=model,
        queries=tuple(table["query"].to_pylist()),
        per_query={
            name.removeprefix(prefix): table[name].to_numpy() for name in table.column_names if name.startswith(prefix)
        },
        slices=slices,
    )
