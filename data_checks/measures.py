"""Rows to what the expectations look at: numbers and flags per row, and a few measures of the whole night.

Great Expectations is slow on texts and fast on numbers, and some of what is asked is easier to get right here:
"blank" by Unicode's idea of white space, NaN told apart from no score. So every text is read once, by Arrow, and
the suite states what the numbers must be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.dataset import RELEVANT_SCORE, encode_texts, flat_negatives, index_documents
from tasks.splits import document_key

Column: TypeAlias = Any  # pa.Array | pa.ChunkedArray: pyarrow ships no types
Flags: TypeAlias = NDArray[np.bool_]

_VISIBLE: Final = r"[^\pZ\pC]"
"""A character that can be seen: no separator, no control or format character (so a lone zero-width space is blank)."""

_BATCH: Final = 1 << 16

LANGUAGE_SAMPLE: Final = 1_000
"""Rows whose language is looked at: the standard error of a share is at most 1.6 points."""

_MIN_DRIFT_ROWS: Final = 30
"""Fewer new or old rows than this have no median worth comparing."""


@dataclass(frozen=True)
class Frame:
    """What one suite looks at: columns of equal length, and for each of their rows the row of the night."""

    columns: dict[str, Column]
    rows: NDArray[np.int64]
    """Positions in the table of all rows, to name the object and line of a failure."""
    texts: dict[str, Column]
    """The texts behind the numbers, to show the ones that failed."""


def label_frame(rows: pa.Table) -> Frame:
    """Pairs and golden rows: lengths in characters, flags for blank and equal texts, scores, conflicting labels."""
    labelled = pc.not_equal(rows["kind"], "corpus")
    chosen = np.flatnonzero(_flags(labelled))
    table = rows if len(chosen) == len(rows) else rows.filter(labelled)  # `take` would copy every text, twice
    query, document, score = table["query"], table["document"], table["score"]
    repeated, contradicted = _conflicts(table)
    columns = {
        "query_chars": _chars(query),
        "query_blank": _blank(query),
        "document_chars": _chars(document),
        "document_blank": _blank(document),
        "query_is_document": _flag(table, _query_is_document),
        # Great Expectations takes NaN for a missing value and lets it pass; infinity it sees
        "score": pc.if_else(pc.is_nan(score), math.inf, score),
        "repeated": repeated,
        "contradicted": contradicted,
    }
    return Frame(columns, chosen, {"query": query, "document": document, "score": score.cast(pa.string())})


def negative_frame(rows: pa.Table) -> Frame:
    """Every negative of every row: its length, and whether it is blank or the row's own document."""
    negative, parents = flat_negatives(rows)
    columns = {
        "negative_chars": _chars(negative),
        "negative_blank": _blank(negative),
        "negative_is_document": _flag(rows, _negative_is_document),
    }
    return Frame(columns, parents, {"negative": negative})


def corpus_frame(rows: pa.Table) -> Frame:
    """Further documents to search: length, and whether they are blank."""
    unlabelled = pc.equal(rows["kind"], "corpus")
    chosen = np.flatnonzero(_flags(unlabelled))
    document = rows["document"].filter(unlabelled)
    columns = {"document_chars": _chars(document), "document_blank": _blank(document)}
    return Frame(columns, chosen, {"document": document})


def night_measures(rows: pa.Table, labels: Frame, *, rejected: int, since: int) -> dict[str, float | None]:
    """Measures of the whole night by name; None where there is too little to measure.

    `rejected` counts the rows of live `pairs/` objects that parsing refused, `since` is the commit up to which rows
    are history. Drift is the ratio of the median length of new pairs to that of older ones, or its inverse: 1 is
    none, 2 is half or double.
    """
    pairs = _flags(pc.equal(rows["kind"], "pair"))[labels.rows]
    fresh = pairs & _flags(pc.greater(rows["commit"], since))[labels.rows]
    count = int(pairs.sum())
    return {
        "distinct_pairs": float(count - int(_flags(labels.columns["repeated"])[pairs].sum())),
        "rejected_share": rejected / (count + rejected) if count + rejected else 0.0,
        "query_length_drift": _drift(labels.columns["query_chars"], fresh, pairs & ~fresh),
        "document_length_drift": _drift(labels.columns["document_chars"], fresh, pairs & ~fresh),
        **_lengths("query", labels.columns["query_chars"]),
        **_lengths("document", labels.columns["document_chars"]),
    }


def language_sample(labels: Frame) -> list[str]:
    """Query and document of up to LANGUAGE_SAMPLE rows, evenly spaced over the night: the same rows every time.

    Together, because a query alone is often too short to tell its language; the document's start is enough.
    """
    count = len(labels.rows)
    places = np.unique(np.linspace(0, max(count - 1, 0), min(count, LANGUAGE_SAMPLE)).astype(np.int64))
    query, document = labels.texts["query"], labels.texts["document"]
    # one by one: `take` would copy the whole column first
    return [f"{query[int(i)].as_py() or ''} {(document[int(i)].as_py() or '')[:200]}" for i in places]


def _conflicts(table: pa.Table) -> tuple[Column, Column]:
    """Two flags per row: an earlier row of its kind has its query and document; its document is a negative too.

    The second is about rows that call their document relevant, and negatives of the same query in any row.
    """
    corpus = index_documents(table)
    query = encode_texts(table["query"], document_key).codes
    label = query * len(corpus) + corpus.document_of
    wrong = query[corpus.negative_row] * len(corpus) + corpus.negative
    relevant = _flags(pc.fill_null(pc.greater_equal(table["score"], RELEVANT_SCORE), True))
    repeated = np.ones(len(label), dtype=bool)
    repeated[np.unique(label * 2 + _flags(pc.equal(table["kind"], "golden")), return_index=True)[1]] = False
    return pa.array(repeated), pa.array(np.isin(label, wrong) & relevant)


def _flags(column: Column) -> Flags:
    """A column of booleans without nulls as a numpy array."""
    flags: Flags = column.to_numpy(zero_copy_only=False).astype(bool)
    return flags


def _chars(texts: Column) -> Column:
    """Lengths as 64-bit floats: Great Expectations compares other number types value by value, in Python."""
    return pc.utf8_length(texts).cast(pa.float64())


def _blank(texts: Column) -> Column:
    """Whether a text has no character to see; false for a missing one, which is another finding."""
    return pc.invert(pc.fill_null(pc.match_substring_regex(texts, _VISIBLE), True))


def _flag(table: pa.Table, condition: Callable[[pa.RecordBatch], Column]) -> Column:
    """A condition batch by batch, since each copies the texts that it looks at."""
    return pa.chunked_array([condition(batch) for batch in table.to_batches(max_chunksize=_BATCH)], pa.bool_())


def _query_is_document(batch: pa.RecordBatch) -> Column:
    return _same(batch["query"], batch["document"])


def _negative_is_document(batch: pa.RecordBatch) -> Column:
    lists = batch["negatives"]
    return _same(pc.list_flatten(lists), batch["document"].take(pc.list_parent_indices(lists)))


def _same(left: Column, right: Column) -> Column:
    """Whether two texts are equal up to white space around them; false where one is missing."""
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(left), pc.utf8_trim_whitespace(right)), False)


def _lengths(name: str, lengths: Column) -> dict[str, float | None]:
    """Median and 95th percentile of the lengths in characters, for the report; None where there is no text."""
    values = lengths.to_numpy()
    values = values[~np.isnan(values)]
    return {
        f"{name}_chars_{label}": float(np.quantile(values, share)) if len(values) else None
        for label, share in (("median", 0.5), ("p95", 0.95))
    }


def _drift(lengths: Column, fresh: Flags, older: Flags) -> float | None:
    """Ratio of two medians, the larger to the smaller; None when either has too few rows."""
    values = lengths.to_numpy()
    medians = [float(np.nanmedian(values[mask])) for mask in (fresh, older) if mask.sum() >= _MIN_DRIFT_ROWS]
    if len(medians) < 2 or min(medians) <= 0:
        return None
    return max(medians) / min(medians)
