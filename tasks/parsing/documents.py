"""Documents of an index: rows with an id, a text, and whatever else is known of them, from the formats of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import date, time
from typing import Any, Final, NamedTuple

import orjson

from tasks.config import Limits
from tasks.parsing.columns import Columns, Survey
from tasks.parsing.names import plain
from tasks.parsing.objects import refuse_queries, source_of
from tasks.parsing.parquet import ParquetRows
from tasks.parsing.rows import Rejected, fault
from tasks.parsing.shapes import shape_of
from tasks.parsing.unpacking import RefusedError

_IDS: Final = (
    *("id", "_id", "document_id", "doc_id", "docid", "docno", "doc_no", "passage_id", "pid", "corpus_id", "uuid"),
)
"""Plain names of the column of ids; the first that is there counts, the others are metadata."""

_LONGEST_ID: Final = 512
_LONGEST_METADATA: Final = 64 << 10
"""Characters of an id, and bytes of a document's metadata: what vector stores take."""


class Document(NamedTuple):
    """One document as it was uploaded."""

    id: str
    text: str
    metadata: bytes
    """A JSON object of the other columns, its keys sorted: equal metadata is equal bytes."""
    line: int


def read_documents(
    key: str, body: bytes, limits: Limits | None = None, left_out: list[str] | None = None
) -> Iterator[Document | Rejected]:
    """Every document of an object in order, and every row that is not one; none of an object without a row.

    A title is put before the text, as in `corpus/`. Memory is bounded as it is for pairs. Columns of Parquet that
    cannot be metadata (vectors, bytes, structs) are added to `left_out`, each with its type.

    Raises RefusedError, before the first row, where no row can be taken: the format, the encoding or a cap, no column
    of texts, no column of ids.
    """
    caps = limits or Limits()
    refuse_queries(key)
    source = source_of(key, body, caps)
    if isinstance(source, ParquetRows):
        source.every = True
    survey = Survey("corpus")
    try:
        source.survey(survey)
    except RefusedError as error:
        if error.reason == "empty":  # what a writer leaves of a partition without a row
            return
        raise
    plan = survey.decide()
    named = _id_column(survey) if survey.columns else _IDS[0]
    if left_out is not None and isinstance(source, ParquetRows):
        left_out += source.left_out
    for record in source.records(plan):
        if record is None:
            continue
        line, cells, columns, _ = record
        found = columns if isinstance(columns, str) else _document(cells, columns, named, caps, line)
        yield Rejected(key, line, found, "") if isinstance(found, str) else found


def _id_column(survey: Survey) -> str:
    """The plain name of the column of ids."""
    for name in _IDS:
        if name in survey.columns:
            return name
    raise RefusedError("no column of ids", f"give each document an id that stays, in a column {_IDS[0]}")


def _document(cells: Mapping[str, Any], columns: Columns, named: str, limits: Limits, line: int) -> Document | str:
    """One document, or why the row is none."""
    by_name = {plain(name): name for name in cells}
    identity = _id(cells[by_name[named]]) if named in by_name else None
    shape = shape_of(cells, columns)
    if isinstance(shape, str):
        return shape
    text = shape.documents[0]
    reason = fault("id", identity, _LONGEST_ID) or fault("text", text, limits.max_text_chars)
    if reason is not None or identity is None:
        return reason or "no id"
    others = {name: _json(value) for name, value in cells.items() if name not in {columns.document, by_name[named]}}
    try:
        metadata = orjson.dumps(others, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError) as error:
        return f"metadata that is not JSON: {error}"
    if len(metadata) > _LONGEST_METADATA:
        return f"metadata longer than {_LONGEST_METADATA} bytes"
    return Document(identity, text, metadata, line)


def _id(value: Any) -> Any:
    """An id as a text; a whole number is one, a fraction or a truth value is not."""
    return str(value) if type(value) is int else value


def _json(value: Any) -> Any:
    """A value of a table as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, date | time) else value
