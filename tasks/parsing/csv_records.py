"""Rows of an object of comma-separated values, in which a broken record never takes its neighbours with it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

from tasks.config import Limits
from tasks.parsing.rows import Chunk, Rows, find_columns
from tasks.parsing.unpacking import DamagedError, RefusedError, Text

_CHUNK_ROWS: Final = 20_000
_CHUNK_BYTES: Final = 8 << 20
_LOOKAHEAD: Final = 16 << 20
"""Bytes that unclosed quotes of one CSV file may make us read twice; after that a quoted field ends with its line."""

_NUMBER: Final = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


class _Feed:
    """Lines of a CSV file for `csv.reader`, which can be taken back when a record turns out to be none."""

    def __init__(self, batches: Iterator[list[bytes]], longest: int) -> None:
        self._ahead = chain.from_iterable(batches)
        self._back: list[bytes] = []
        self._longest = longest
        self._wasted = 0
        self.number = 0
        """Number of the first line of the record, from 1."""
        self.record: list[bytes] = []
        """Lines of the record so far."""
        self.size = 0
        """Bytes of the record so far."""
        self.damage: DamagedError | None = None
        """What ended the file, when that was not its end."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.record and (self._wasted > _LOOKAHEAD or self.size > self._longest):
            raise StopIteration  # the reader takes this for the end of the file, and can go on after it
        try:
            line = self._back.pop() if self._back else next(self._ahead)
        except DamagedError as error:
            self.damage = error
            raise StopIteration from error
        self.record.append(line)
        self.size += len(line)
        return line.decode(errors="surrogateescape") + "\n"

    def begin(self) -> None:
        """Leave the lines of the record behind."""
        self.number += len(self.record) if self.number else 1
        self.record, self.size = [], 0

    def give_back(self) -> None:
        """Keep only the first line of the record; the others are read again."""
        self._wasted += self.size
        self._back.extend(reversed(self.record[1:]))
        del self.record[1:]
        self.size = len(self.record[0])


def parse_csv(key: str, body: bytes, limits: Limits) -> Iterator[Chunk]:
    """Comma-separated values with a header, as in RFC 4180: every cell is a text, a blank optional one is none."""
    # process-wide, and its default is shorter than our texts; only ever raised
    csv.field_size_limit(max(csv.field_size_limit(), limits.max_line_bytes + 2))
    text = Text(body, packed=key.lower().endswith(".gz"))
    text.inspect(limits)
    rows = Rows(key, limits)
    feed = _Feed(text.lines(limits.max_line_bytes), limits.max_line_bytes)
    header = next(_records(feed, rows, None), None)
    if header is None:
        raise RefusedError(f"no header: {rows.rejected[0].reason}" if rows.rejected else "no header")
    columns = find_columns(header, rows.kind)
    optional = [name for name in (*columns.negatives, columns.score, columns.slice) if name is not None]
    size = 0
    for cells in _records(feed, rows, len(header)):
        size += feed.size
        if size > _CHUNK_BYTES or len(rows) > _CHUNK_ROWS:
            yield rows.chunk()
            size = 0
        if cells is None:
            continue
        row: dict[str, Any] = dict(zip(header, cells, strict=True))
        for name in optional:
            if not row[name].strip():
                row[name] = None
        if columns.score is not None and row[columns.score] is not None and _NUMBER.fullmatch(row[columns.score]):
            row[columns.score] = float(row[columns.score])
        reason = rows.add(feed.number, row, columns)
        if reason is not None:
            rows.reject(feed.number, reason, feed.record[0])
    if feed.damage is not None:
        rows.reject(feed.number, str(feed.damage), "")
    yield rows.chunk()


def _records(feed: _Feed, rows: Rows, width: int | None) -> Iterator[list[str] | None]:
    """Records of `width` cells, None for one that is rejected. After the header, call anew with its width.

    A quote that is not closed would swallow everything after it: such a record is given back but for its first line.
    """
    reader = csv.reader(feed, strict=True)
    while True:
        feed.begin()
        reason = None
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason, cells = _csv_fault(error), []
        if cells is None:
            return
        if feed.size > rows.limits.max_line_bytes:
            reason = f"longer than {rows.limits.max_line_bytes} bytes"
        elif reason is None and not cells:
            continue
        elif reason is None and width is not None and len(cells) != width:
            if len(feed.record) == 1 and feed.record[0].isspace():
                continue
            reason = f"{len(cells)} cells where the header has {width}"
        elif reason is None and not _is_utf8(feed.record):
            reason = "not UTF-8"
        if reason is None:
            yield cells
            continue
        if len(feed.record) > 1:
            reason = "a quote is not closed"
            feed.give_back()
        rows.reject(feed.number, reason, feed.record[0])
        yield None


def _csv_fault(error: csv.Error) -> str:
    """Why a record is not CSV, in words."""
    known = {"unexpected end of data": "a quote is not closed", "',' expected": "text after a closing quote"}
    return next((words for start, words in known.items() if str(error).startswith(start)), f"not CSV: {error}")


def _is_utf8(lines: list[bytes]) -> bool:
    try:
        for line in lines:
            line.decode()
    except UnicodeDecodeError:
        return False
    return True
