"""The parts of a row that is more than a query and a document: lists, passages with titles, lists spelt as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tasks.parsing.columns import Columns
from tasks.parsing.values import NOTHING, spelt_list


class Shape(NamedTuple):
    """One query (None in a corpus), the documents that are relevant to it, and its negatives; types are not checked."""

    query: Any
    documents: list[Any]
    negatives: list[Any]


class _RowError(Exception):
    """The row cannot be taken; the message says why."""


def join_title(title: Any, text: Any) -> Any:
    """Title and text of a document as one text, everywhere in the same way: as BEIR does, with a blank between them."""
    if title is None or title == NOTHING:
        return text
    if not isinstance(title, str):
        raise _RowError("title is not a text")
    if not isinstance(text, str) and text is not None:
        return text
    return " ".join(part for part in (title.strip(), (text or "").strip()) if part and part != NOTHING)


def shape_of(row: Mapping[str, Any], columns: Columns) -> Shape | str:
    """The parts of a row, or why it has none."""
    try:
        documents = list(_texts(row[columns.document], columns.document, columns))
        if columns.title is not None:
            documents = [join_title(row[columns.title], text) for text in documents or [None]]
        negatives = [text for name in columns.negatives for text in _texts(row[name], name, columns)]
    except _RowError as error:
        return str(error)
    if not documents:
        return "no document"
    return Shape(None if columns.query is None else row[columns.query], documents, negatives)


def _texts(value: Any, name: str, columns: Columns) -> Iterator[Any]:
    """The texts of one cell."""
    if value is None or value == NOTHING:
        return
    if isinstance(value, str) and name in columns.spelt:
        spelt = spelt_list(value)
        yield from [value] if spelt is None else spelt
    elif isinstance(value, list) and (name in columns.lists or name in columns.negatives):
        for item in value:
            yield _passage(item, name) if isinstance(item, dict) else item
    elif isinstance(value, dict) and name in columns.lists:
        yield _passage(value, name)
    else:
        yield value


def _passage(passage: dict[str, Any], name: str) -> Any:
    """The text of an object with a text, and perhaps a title."""
    if not isinstance(passage.get("text"), str):
        raise _RowError(f"an object in {name.strip()} has no text")
    return join_title(passage.get("title"), passage["text"])
