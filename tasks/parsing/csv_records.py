"""Rows of an object of separated values, in which a broken record never makes rows of its parts.

How cells are separated, quoted and escaped is recognised from the whole object. A quote that is not closed may begin a
text of many lines, so nothing after it is taken until a line that cannot be the inside of a quoted text.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple

from tasks.config import Limits
from tasks.parsing.columns import Plan, Survey
from tasks.parsing.names import find_pair, plain
from tasks.parsing.reading import Record
from tasks.parsing.unpacking import DamagedError, RefusedError, Text
from tasks.parsing.values import NOTHING, number

_CHUNK_ROWS: Final = 20_000
_CHUNK_BYTES: Final = 8 << 20

_SEPARATORS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_EXCEL: Final = re.compile(rb"sep=(.)\r?", re.IGNORECASE)
"""A first line by which Excel says what separates the cells."""

_ESCAPED: Final = re.compile(rb'(?<!\\)((?:\\\\)*)\\"')
_FAULTS: Final = {
    "unexpected end of data": "a quote is not closed",
    "expected after": "text after a closing quote",
    "new-line": "a carriage return inside a cell",
}


@dataclass(frozen=True)
class _Dialect:
    """How cells are written."""

    separator: str
    quoted: bool = True
    escaped: bool = False
    """Whether a quote inside quotes is written as backslash and quote, rather than as two quotes."""

    def __str__(self) -> str:
        quotes = "" if self.quoted else ", without quotes"
        return f"separated by {_SEPARATORS[self.separator]}" + (", quotes escaped by \\" if self.escaped else quotes)

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """Cells of each record; a fault of quotes raises csv.Error."""
        if not self.quoted:
            return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=self.separator, strict=True)

    def doubled(self, raw: bytes) -> bytes:
        """A line with its quotes as RFC 4180 has them."""
        return _ESCAPED.sub(rb'\1""', raw) if self.escaped else raw

    def record(self) -> re.Pattern[bytes]:
        """A record that is written as it should be: quotes are doubled or around a cell."""
        mark = re.escape(self.separator.encode())
        cell = rb'(?:"(?:[^"]++|"")*+"|[^"\n%s]*+)' % mark
        return re.compile(rb"%s(?:%s%s)*+\r?" % (cell, mark, cell))

    def sure_beginning(self, width: int) -> re.Pattern[bytes]:
        """A line that is a whole record, and cannot be the inside of a quoted text.

        The quote that opens its first cell is followed by a text: inside of quotes it would be neither doubled nor the
        end. Texts may hold single quotes where quoting is broken, but hardly at the beginning of a line.
        """
        mark = re.escape(self.separator.encode())
        cell = rb'(?:"(?:[^"]++|"")*+"|[^"%s]*+)' % mark
        return re.compile(rb'(?="[^"%s])%s(?:%s%s){%d}\r?' % (mark, cell, mark, cell, width - 1))


class _Cells(NamedTuple):
    """One record, or the line that is not one."""

    line: int
    cells: list[str] | None
    reason: str | None
    raw: bytes
    size: int


class _Feed:
    """Lines for `csv.reader`, which can be taken back when a record turns out to be none."""

    def __init__(self, batches: Iterator[list[bytes]], longest: int, *, escaped: bool, skip: int = 0) -> None:
        self._ahead = chain.from_iterable(batches)
        self._back: list[bytes] = []
        self._longest = longest
        self._escaped = escaped
        self.number = 0
        """Number of the last line that was read."""
        self.record: list[bytes] = []
        """Lines of the record so far."""
        self.size = 0
        """Bytes of the record so far."""
        self.damage: DamagedError | None = None
        """What ended the file, when that was not its end."""
        for _ in range(skip):
            self.line()
        self.begin()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.record and self.size > self._longest:
            raise StopIteration  # the reader takes this for the end of the file, and can go on after it
        line = self.line()
        if line is None:
            raise StopIteration
        if self._escaped:
            line = _ESCAPED.sub(rb'\1""', line)
        return line.decode(errors="surrogateescape") + "\n"

    def line(self) -> bytes | None:
        """The next line as it is, as a part of the record; None at the end."""
        try:
            line = self._back.pop() if self._back else next(self._ahead, None)
        except DamagedError as error:
            self.damage = error
            line = None
        if line is not None:
            self.number += 1
            self.record.append(line)
            self.size += len(line)
        return line

    def begin(self) -> None:
        """Leave the lines of the record behind."""
        self.record, self.size = [], 0

    def give_back(self, kept: int) -> None:
        """Read all lines of the record but the first ones again."""
        self._back.extend(reversed(self.record[kept:]))
        self.number -= len(self.record) - kept
        del self.record[kept:]


@dataclass
class CsvRecords:
    """Separated values with a header."""

    text: Text
    limits: Limits
    tabs: bool = False
    """Whether the name says that tabs separate the cells."""
    _dialect: _Dialect = field(default_factory=lambda: _Dialect(","))
    _header: list[str] = field(default_factory=list)
    _skipped: int = 0
    _quoting: bool = False
    """Whether cells are put in quotes at all; where none is, a quote is a character like any other."""
    _several: bool = False
    """Whether texts have several lines: then a line that is not a record may be a part of one."""
    _doubtful: list[tuple[int, int, int]] = field(default_factory=list)
    """First and last line of records without quotes right before a broken one, and its line: they may be its parts."""

    @property
    def format(self) -> str:
        """What it was recognised as."""
        return f"CSV, {self._dialect}"

    def survey(self, survey: Survey) -> None:
        """Recognise the dialect, and look at every cell. Raises RefusedError for whatever exceeds a cap."""
        # process-wide, and its default is shorter than our texts; only ever raised
        csv.field_size_limit(max(csv.field_size_limit(), self.limits.max_line_bytes + 2))
        self.text.inspect(self.limits)
        self._find_separator(survey.kind)
        self._find_quotes()
        watched = dict(survey.watch(self._header, texts=True))
        places = [(place, watched[name]) for place, name in enumerate(self._header) if name in watched]
        sound = broken = 0
        for found in self._sure_records():
            if found.cells is None:
                broken += 1
                continue
            sound += 1
            for place, column in places:
                column.add(found.cells[place])
        if broken:
            self.text.check_encoding(broken, sound)

    def records(self, plan: Plan) -> Iterator[Record | None]:
        r"""Every record, cells as texts: blank optional ones and \N are none."""
        columns = plan.columns(self._header)
        if isinstance(columns, str):
            raise RefusedError(columns, "each name may be there once")
        optional = columns.others
        size = rows = 0
        for found in self._sure_records():
            size += found.size
            rows += 1
            if size > _CHUNK_BYTES or rows > _CHUNK_ROWS:
                yield None
                size = rows = 0
            if found.cells is None:
                yield found.line, {}, found.reason or "", found.raw
                continue
            row: dict[str, Any] = dict(zip(self._header, found.cells, strict=True))
            for name in optional:
                if not row[name].strip() or row[name] == NOTHING:
                    row[name] = None
            if columns.score is not None and row[columns.score] is not None:
                score = number(row[columns.score])
                row[columns.score] = row[columns.score] if score is None else score
            yield found.line, row, columns, found.raw

    # --- what the whole object says of its dialect ---

    def _find_separator(self, kind: str) -> None:
        """Under which separator the header names what is expected."""
        lines = (line for batch in self.text.lines(self.limits.max_line_bytes) for line in batch)
        first = next((line for line in lines if line.strip()), b"")
        said = _EXCEL.fullmatch(first)
        candidates = ["\t", *_SEPARATORS] if self.tabs else list(_SEPARATORS)
        if said:
            self._skipped = 1
            candidates = [said[1].decode(errors="replace")]
            if candidates[0] not in _SEPARATORS:
                raise RefusedError(f"cells separated by {candidates[0]}", "separate them by commas, with a header")
        headers: dict[str, list[str]] = {}
        faults: list[str] = []
        for separator in dict.fromkeys(candidates):
            header = self._read_header(_Dialect(separator))
            if isinstance(header, str):
                faults.append(header)
            else:
                headers[separator] = header
        if not headers:
            raise RefusedError(f"no header: {faults[0]}", "name the columns in the first line")
        named = [separator for separator, header in headers.items() if _is_header(header, kind)]
        if not named:  # the survey says what is missing
            named = sorted(headers, key=lambda separator: -len(headers[separator]))
        self._dialect, self._header = _Dialect(named[0]), headers[named[0]]

    def _read_header(self, dialect: _Dialect) -> list[str] | str:
        """The names of the columns, or why there are none."""
        feed = self._feed(dialect)
        try:
            header = _header_of(dialect.reader(feed), feed)
        except csv.Error as error:
            return _fault(error)
        if header and feed.size <= self.limits.max_line_bytes:
            return header if _is_utf8(feed.record) else "not UTF-8"
        return "a line that is too long" if header else "empty"

    def _find_quotes(self) -> None:
        """How quotes are written: as in RFC 4180, unless another way leaves fewer records broken."""
        opened = re.compile(rb'(?:^|%s)"' % re.escape(self._dialect.separator.encode()), re.MULTILINE)
        self._quoting = any(opened.search(block) for block in self._sound_blocks())
        if not self._quoting:
            return
        broken, several = self._broken(self._dialect)
        if self._dialect.separator == "\t":
            plainly = _Dialect("\t", quoted=False)
            if (broken or several) and not self._broken(plainly)[0]:
                self._dialect, self._quoting = plainly, False
                return
        if broken and any(b'\\"' in block for block in self._sound_blocks()):
            escaped = _Dialect(self._dialect.separator, escaped=True)
            found = self._broken(escaped)
            if found[0] < broken:
                self._dialect, (broken, several) = escaped, found
        if broken and self._has_parts():
            self._several = True
            self._doubtful = list(self._find_doubtful())

    def _has_parts(self) -> bool:
        """Whether some line is, by its quotes, no record of its own: then texts have several lines, or are broken."""
        whole = self._dialect.record()
        try:
            for lines in self.text.lines(self.limits.max_line_bytes):
                for line in lines:
                    if b'"' in line and not whole.fullmatch(self._dialect.doubled(line)):
                        return True
        except DamagedError:
            pass  # named where the rows are read
        return False

    def _find_doubtful(self) -> Iterator[tuple[int, int, int]]:
        """Records that may be the beginning of the broken one after them, whose opening quote is missing."""
        mark = re.escape(self._dialect.separator.encode())
        opening = re.compile(rb'(?:^|%s)"[^"\r%s]' % (mark, mark))  # so it begins here
        first = 0
        for found in self._records():
            if found.cells is None and found.reason != "not UTF-8":
                if first and not opening.search(found.raw.partition(b"\n")[0]):
                    yield first, found.line - 1, found.line
                first = 0
            elif found.raw.rstrip(b"\r").endswith(b'"'):
                first = 0
            elif b'"' in found.raw or not first:
                first = found.line

    def _sound_blocks(self) -> Iterator[bytes]:
        try:
            yield from self.text.blocks()
        except DamagedError:
            return

    def _broken(self, dialect: _Dialect) -> tuple[int, int]:
        """Lines that a dialect leaves broken, and records of several lines."""
        broken = several = 0
        for found in self._records(dialect):
            broken += found.cells is None and found.reason != "not UTF-8"
            several += found.cells is not None and b"\n" in found.raw
        return broken, several

    # --- records ---

    def _feed(self, dialect: _Dialect) -> _Feed:
        lines = self.text.lines(self.limits.max_line_bytes)
        return _Feed(lines, self.limits.max_line_bytes, escaped=dialect.escaped, skip=self._skipped)

    def _sure_records(self) -> Iterator[_Cells]:
        """Every record, and every line that is none or may belong to another."""
        doubtful = iter([*self._doubtful, (1 << 62, 0, 0)])
        first, last, broken = next(doubtful)
        for found in self._records():
            while found.line > max(last, first):
                first, last, broken = next(doubtful)
            if first <= found.line <= last and found.cells is not None:
                yield found._replace(cells=None, reason=_belongs(broken))
            else:
                yield found

    def _records(self, dialect: _Dialect | None = None) -> Iterator[_Cells]:
        """Every record after the header, and every line that is none, with the reason."""
        chosen = dialect or self._dialect
        feed = self._feed(chosen)
        reader = chosen.reader(feed)
        sure = chosen.sure_beginning(len(self._header))
        try:
            _header_of(reader, feed)
        except csv.Error as error:
            raise RefusedError(f"no header: {_fault(error)}") from error
        feed.begin()
        while True:
            first = feed.number + 1
            cells, reason, unsure = self._next(reader, feed, chosen)
            if not feed.record:
                break
            if unsure:
                feed.give_back(1)
            if reason is not None or cells:
                yield _Cells(first, None if reason else cells, reason, b"\n".join(feed.record), feed.size)
            feed.begin()
            if unsure:
                yield from _skip(feed, sure, first)
                reader = chosen.reader(feed)
        if feed.damage is not None:
            yield _Cells(feed.number + 1, None, str(feed.damage), b"", 0)

    def _next(self, reader: Iterator[list[str]], feed: _Feed, dialect: _Dialect) -> tuple[list[str], str | None, bool]:
        """The next record, what is wrong with it, and whether it is unknown where it ends."""
        longest, width = self.limits.max_line_bytes, len(self._header)
        fault = None
        try:
            cells = next(reader, [])
        except csv.Error as error:
            fault = _fault(error)
        if feed.size > longest:
            fault = f"longer than {longest} bytes"
        if fault is None and self._quoting and dialect.quoted and not _is_written_well(feed, dialect):
            fault = "a quote inside a cell that is not in quotes"
        if fault is not None:
            return [], fault, self._several or _has_quote(feed)
        if not cells or _is_blank(feed):
            return [], None, False
        if len(cells) != width:
            said = f"{len(cells)} cells where the header has {width}"
            return [], "a quote is not closed" if len(feed.record) > 1 else said, self._several or _has_quote(feed)
        return cells, None if _is_utf8(feed.record) else "not UTF-8", False


def _skip(feed: _Feed, sure: re.Pattern[bytes], broken: int) -> Iterator[_Cells]:
    """The lines after a broken record up to the next one that begins another for sure; it is left to be read."""
    while (line := feed.line()) is not None:
        if sure.fullmatch(line):
            feed.give_back(0)
            return
        if line.strip():
            yield _Cells(feed.number, None, _belongs(broken), line, len(line))
        feed.begin()


def _header_of(reader: Iterator[list[str]], feed: _Feed) -> list[str] | None:
    """The first record that is not blank."""
    return next((cells for cells in reader if cells and not _is_blank(feed)), None)


def _is_header(header: Sequence[str], kind: str) -> bool:
    try:
        return not isinstance(find_pair({plain(name) for name in header}, kind), str)
    except RefusedError:
        return True  # it names more than one


def _belongs(broken: int) -> str:
    return f"may belong to the broken record of line {broken}"


def _is_written_well(feed: _Feed, dialect: _Dialect) -> bool:
    """Whether every quote of a record is doubled or around a cell."""
    if not _has_quote(feed):
        return True
    return dialect.record().fullmatch(dialect.doubled(b"\n".join(feed.record))) is not None


def _has_quote(feed: _Feed) -> bool:
    return any(b'"' in line for line in feed.record)


def _is_blank(feed: _Feed) -> bool:
    return not any(line.strip() for line in feed.record)


def _fault(error: csv.Error) -> str:
    """Why a record is not CSV."""
    return next((said for part, said in _FAULTS.items() if part in str(error)), f"not CSV: {error}")


def _is_utf8(lines: Sequence[bytes]) -> bool:
    try:
        for line in lines:
            line.decode()
    except UnicodeDecodeError:
        return False
    return True
