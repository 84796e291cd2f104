"""What is to be forgotten, and how it is recognised: in a row, in a record, in a sentence of a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.erasure import indexed
from tasks.splits import document_key
from tasks.storage import Store

ERASED: Final = "(erased)"
"""What stands in the place of an erased text in reports and records."""

_SUBSTRING_CHARS: Final = 12
"""Texts from this length on are also found inside longer ones; a shorter one would be found everywhere."""

_CUT_CHARS: Final = 60
"""A text that ends early, as reports show them, counts from this length on."""

_MOST_SUBSTRINGS: Final = 50
_THREADS: Final = 4


class NothingToForgetError(Exception):
    """The selection does not name one thing to forget; the message says why."""


@dataclass(frozen=True)
class Wanted:
    """What is to be forgotten.

    A text is found however it is written, up to case and white space, and whether it stands as a query, as a document
    or as a negative: a text that must be forgotten must be so everywhere.
    """

    kind: str
    """`object`, `query` or `document`."""
    object: str | None
    """The object of which nothing must be left."""
    keys: frozenset[str] = frozenset()
    """`document_key` of every text that must not be left."""
    spellings: frozenset[str] = frozenset()
    """The same texts as they were found written, for what is kept by a hash of the text."""
    _starts: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for key in self.keys:
            if len(key) >= _CUT_CHARS:
                self._starts.setdefault(key[:_CUT_CHARS], []).append(key)

    def equals(self, text: str) -> bool:
        """Whether a text is one of those to forget."""
        return document_key(text) in self.keys

    def is_in(self, text: str, *, words: bool = True) -> bool:
        """Whether a text is one of those to forget, or its start, or holds one.

        Without `words` a short word does not count: it may be one of a record's own, such as a verdict.
        """
        found = document_key(text)
        if found in self.keys and (words or len(found) >= _SUBSTRING_CHARS or " " in found):
            return True
        if self._is_start(found):
            return True
        if len(self.keys) > _MOST_SUBSTRINGS:
            return False
        return any(len(key) >= _SUBSTRING_CHARS and key in found for key in self.keys)

    def _is_start(self, found: str) -> bool:
        start = found.rstrip(".\u2026 ")
        return any(key.startswith(start) for key in self._starts.get(start[:_CUT_CHARS], ()))

    def is_in_record(self, text: str) -> bool:
        """Whether the beginning of a line as it was uploaded holds a text to forget, whole or cut off by its end."""
        plain = [document_key(form) for form in {text, _unescaped(text)}]
        cells = [cell for form in plain for cell in _cells(form)]
        if any(cell in self.keys for cell in cells) or any(map(self.is_in, {text, _unescaped(text)})):
            return True
        if len(self.keys) > _MOST_SUBSTRINGS:
            return False
        return any(_ends_with_start(form, key) for form in plain for key in self.keys)

    def in_table(self, table: pa.Table) -> tuple[pa.Table, int]:
        """The rows of a batch that stay, with the negatives that stay, and how many rows are dropped."""
        if self.object is not None:
            kept = table.filter(pc.not_equal(table["object"], self.object))
            return kept, table.num_rows - kept.num_rows
        dropped = [a or b for a, b in zip(self._flags(table["query"]), self._flags(table["document"]), strict=True)]
        kept = table.filter(pa.array([not flag for flag in dropped], pa.bool_()))
        negatives = kept["negatives"].to_pylist()
        if any(self.equals(text) for texts in negatives for text in texts or ()):
            column = [[text for text in texts or () if not self.equals(text)] for texts in negatives]
            place = kept.schema.get_field_index("negatives")
            kept = kept.set_column(place, kept.schema.field(place), pa.array(column, kept.schema.field(place).type))
        return kept, sum(dropped)

    def holds_in(self, table: pa.Table) -> bool:
        """Whether a batch has anything to forget."""
        kept, dropped = self.in_table(table)
        return bool(dropped) or not kept["negatives"].equals(table["negatives"])

    def mentions(self, table: pa.Table) -> int:
        """How many texts of a batch contain a text to forget and are longer than it."""
        if len(self.keys) > _MOST_SUBSTRINGS or self.object is not None:
            return 0
        found = [document_key(text) for text in _texts(table)]
        return sum(any(key in text and key != text for key in self.keys) for text in found)

    def _flags(self, column: pa.ChunkedArray) -> list[bool]:
        """For each text of a column, whether it is to be forgotten; every distinct one is looked at once."""
        flags: list[bool] = []
        for chunk in column.chunks:
            coded = chunk.dictionary_encode()
            wanted = [text is not None and self.equals(text) for text in coded.dictionary.to_pylist()]
            flags += [code is not None and wanted[code] for code in coded.indices.to_pylist()]
        return flags


def select(store: Store, *, key: str | None = None, query: str | None = None, document: str | None = None) -> Wanted:
    """What is meant by one of the three. Reads every batch: an object's texts, unless others have them too.

    Raises NothingToForgetError when not exactly one is given, or it is blank.
    """
    given = {name: value for name, value in (("object", key), ("query", query), ("document", document)) if value}
    if len(given) != 1:
        raise NothingToForgetError("name exactly one of --object, --query and --document")
    ((kind, value),) = given.items()
    if kind == "object":
        texts = _texts_of(store, value)
        return Wanted(kind, value, frozenset(map(document_key, texts)), frozenset(texts))
    if not document_key(value):
        raise NothingToForgetError(f"--{kind} is blank: name a text")
    return Wanted(kind, None, frozenset({document_key(value)}), frozenset({value, *_spellings(store, value)}))


def batches(store: Store) -> Iterable[tuple[str, pa.Table]]:
    """Every batch of accepted rows that the store has, named by the log or not."""
    for entry in list(store.entries("batches/")):
        if entry.key.endswith(".parquet"):
            yield entry.key, pq.read_table(pa.BufferReader(store.get(entry.key).body))


def _texts_of(store: Store, key: str) -> set[str]:
    """The texts of an object's rows, whatever state of it they are from, that no other object has."""
    own: dict[str, set[str]] = {}
    for text in indexed.texts_of(store, key):
        own.setdefault(document_key(text), set()).add(text)
    for _, table in batches(store):
        for text in _texts(table.filter(pc.equal(table["object"], key))):
            own.setdefault(document_key(text), set()).add(text)
    if own:
        for text in indexed.other_texts(store, key):
            own.pop(document_key(text), None)
        for _, table in batches(store):
            for text in _texts(table.filter(pc.not_equal(table["object"], key))):
                own.pop(document_key(text), None)
    return {text for spellings in own.values() for text in spellings}


def _spellings(store: Store, text: str) -> set[str]:
    """The ways in which a text is written in any row."""
    key = document_key(text)
    return {found for _, table in batches(store) for found in _texts(table) if document_key(found) == key}


def _texts(table: pa.Table) -> set[str]:
    """Every text of some rows."""
    columns = [table["query"], table["document"], pc.list_flatten(table["negatives"])]
    return {text for column in columns for text in pc.unique(column).to_pylist() if text is not None}


def _unescaped(text: str) -> str:
    r"""A line of JSON with its escapes undone (`\u00e9`, `\n`), as far as that is possible for the start of a line."""
    for end in range(len(text), max(len(text) - 7, -1), -1):  # the cut may be inside an escape
        try:
            return str(orjson.loads(b'"' + text[:end].replace('"', "\x01").encode(errors="replace") + b'"')).replace(
                "\x01", '"'
            )
        except orjson.JSONDecodeError:
            continue
    return text.replace('\\"', '"')


def _cells(record: str) -> list[str]:
    """What may be a text of its own in a line of JSON or CSV."""
    cells = [record]
    for mark in ('"', ",", ";", "\t"):
        cells = [part for cell in cells for part in cell.split(mark)] + cells
    return [cell.strip() for cell in cells]


def _ends_with_start(record: str, key: str) -> bool:
    """Whether a record that may have been cut ends with the start of a text."""
    longest = min(len(record), len(key))
    return any(record.endswith(key[:length]) for length in range(longest, _SUBSTRING_CHARS - 1, -1))
