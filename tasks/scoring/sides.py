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
from tasks.gate import GOLDEN, NEW_DOCUMENTS, Scores
from tasks.ranking import metrics, nearest, relevant_ranks, summary, truncate
from tasks.records import Returned
from tasks.scoring.serving import Sample

BASE: Final = "base"
CANDIDATE: Final = "candidate"
PRODUCTION: Final = "production"
SAMPLE: Final = 64
"""Queries, and as many documents, whose vectors are kept for the serving check."""

RETURNED: Final = 3
_CUT: Final = 200
"""Characters of a text that is kept to be shown."""

_MOST_SLICES: Final = 1_000
"""Slices that are kept of a column with more of them ..."""

_LARGE_SLICE: Final = 30
"""... besides all with this many queries, which the gate judges by default."""


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

    def means_over(self, queries: NDArray[np.bool_]) -> dict[str, float]:
        """The means at the full dimension over some of the queries; over all where none is chosen."""
        if not queries.any():
            return self.means
        return summary({name: values[queries] for name, values in self.per_query.items()})


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


@dataclass(frozen=True)
class Exposure:
    """What training has seen of each test query, each of shape (n_queries,)."""

    similarity: NDArray[np.float64]
    """How similar the most similar training query is, from 0 to 1."""
    near_duplicate: NDArray[np.bool_]
    """Whether a training query nearly repeats it."""
    new_document: NDArray[np.bool_]
    """Whether neither model was trained on any of its relevant documents."""


def new_documents(test: EvaluationSet, *trained: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which test queries ask for documents of which none was trained on; `trained` are masks over the documents."""
    seen = np.logical_or.reduce(trained)
    return np.array([not seen[relevant].any() for relevant in test.relevant], dtype=bool)


def per_query_table(test: EvaluationSet, sides: Mapping[str, SideScores], exposure: Exposure | None = None) -> bytes:
    """The metrics of both sides per test query, as Parquet.

    Columns: `query`, `slice`, `source`, `golden`, `document` (the lowest relevant one, which clusters queries), those
    of `exposure` where that is known, and `<side>_<metric>`.
    """
    columns: dict[str, Any] = {
        "query": pa.array(test.queries, pa.string()),
        "slice": pa.array(test.slices, pa.string()),
        "source": pa.array(test.sources or [None] * len(test), pa.string()),
        "golden": pa.array(test.golden, pa.bool_()),
        "document": pa.array([int(np.min(relevant)) for relevant in test.relevant], pa.int64()),
    }
    if exposure is not None:
        columns |= {name: pa.array(values) for name, values in vars(exposure).items()}
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
    prefix = f"{side}_"
    return Scores(
        model=model,
        queries=tuple(table["query"].to_pylist()),
        per_query={
            name.removeprefix(prefix): table[name].to_numpy() for name in table.column_names if name.startswith(prefix)
        },
        slices=_slices(table),
        clusters=_column(table, "document"),
        near_duplicates=_column(table, "near_duplicate"),
    )


def _largest(codes: NDArray[np.int32], distinct: int) -> list[int]:
    """The codes that a mask is made for: those of many queries, and of the others the most frequent.

    A column that names nearly every query (an id taken for a slice) would cost queries x slices bytes.
    """
    counts = np.bincount(codes[codes >= 0], minlength=distinct)
    frequent = np.argsort(-counts, kind="stable")[:_MOST_SLICES]
    return sorted({*frequent.tolist(), *np.flatnonzero(counts >= _LARGE_SLICE).tolist()})


def _column(table: pa.Table, name: str) -> NDArray[Any] | None:
    """A column as an array; None where the table has none, as those of earlier releases."""
    return table[name].to_numpy() if name in table.column_names else None


def _slices(table: pa.Table) -> dict[str, NDArray[np.bool_]]:
    """The slices that rows name, by slice and by source, and those that are built in."""
    slices: dict[str, NDArray[np.bool_]] = {}
    for column in ("slice", "source"):
        if column in table.column_names:
            named = table[column].combine_chunks().dictionary_encode()
            codes, names = named.indices.fill_null(-1).to_numpy(), named.dictionary.to_pylist()
            slices |= {f"{column} {names[code]}": codes == code for code in _largest(codes, len(names))}
    golden, new = _column(table, "golden"), _column(table, "new_document")
    if golden is not None and golden.any():
        slices[GOLDEN] = golden
    if new is not None:
        slices[NEW_DOCUMENTS] = new
    return slices
