"""Bytes to rows: what people upload, one row at a time, so that a bad row never costs its neighbours.

Texts stay as they came: nothing is stripped, folded or guessed. A row that cannot be taken is named with object,
line and reason; an object of which no row can be taken is one such record, with line 0. What is decided for which
input is listed in docs/hostile-input.md, and tested from there.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple

import orjson
import pyarrow as pa

from tasks.config import Limits
from tasks.parsing.unpacking import DamagedError, RefusedError, Text

KINDS: Final = {"pairs": "pair", "golden": "golden", "corpus": "corpus"}
"""What the rows of an object are, by the first folder of its key."""

PARSED: Final = pa.schema(
    [
        ("query", pa.string()),
        ("document", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("score", pa.float64()),
        ("slice", pa.string()),
        ("line", pa.int64()),
    ]
)
"""Columns of the rows that parsing accepts."""

SPELLINGS: Final = (
    ("query", "document"),
    ("anchor", "positive"),
    ("question", "answer"),
    ("sentence1", "sentence2"),
    ("text_a", "text_b"),
)
"""Names of query and document; the first pair of which a row has both is the one that counts."""

SCORED: Final = frozenset({"sentence1", "text_a"})
"""Spellings of scored pairs: without a score nothing says that the two texts belong together."""

SHOWN_CHARS: Final = 200
"""Characters of a rejected row that its record keeps."""

_CHUNK_ROWS: Final = 20_000
_CHUNK_BYTES: Final = 8 << 20
_LOOKAHEAD: Final = 16 << 20
"""Bytes that unclosed quotes of one CSV file may make us read twice; after that a quoted field ends with its line."""

_UNSEEN: Final = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
"""Characters that are no white space and yet show nothing."""

_NUMBER: Final = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was not taken: which (line 0: the whole object), why, and the start of its text."""

    object: str
    line: int
    reason: str
    text: str


class Chunk(NamedTuple):
    """Some rows of an object in order (schema PARSED), and the rows among them that were rejected."""

    rows: pa.RecordBatch
    rejected: list[Rejected]


def kind_of(key: str) -> str:
    """The kind of an object's rows: "pair", "golden" or "corpus". Raises KeyError for any other folder."""
    return KINDS[key.partition("/")[0]]


def parse(key: str, body: bytes, limits: Limits | None = None) -> Iterator[Chunk]:
    """Parse an object into chunks of rows, in order; it raises nothing, whatever the bytes are.

    Args:
        key: The object's key under the store's prefix: its first folder says what the rows are, its name's ending
            how they are written.
        body: The object as stored.
        limits: Caps; an object beyond one is refused before its first row is given.
    """
    caps = limits or Limits()
    refused = refuse_unread(key, len(body), caps)
    if refused is not None:
        yield refused
        return
    found = 0
    try:
        for chunk in _PARSERS[_ending(key)](key, body, caps):
            found += len(chunk.rejected) + chunk.rows.num_rows
            yield chunk
    except RefusedError as error:
        yield _refusal(key, str(error))
    else:
        if not found:
            yield _refusal(key, "empty")


def refuse_unread(key: str, size: int, limits: Limits) -> Chunk | None:
    """The one record of an object that its name and size in bytes are enough to refuse; None for any other."""
    if not size:
        return _refusal(key, "empty")
    if _ending(key) not in _PARSERS:
        return _refusal(key, f"unknown kind of file: the name must end in {', '.join(_PARSERS)}")
    if size > limits.max_object_bytes:
        return _refusal(key, f"larger than {limits.max_object_bytes} bytes")
    return None


def _refusal(key: str, reason: str) -> Chunk:
    return Chunk(pa.RecordBatch.from_pylist([], PARSED), [Rejected(key, 0, reason, "")])


def _ending(key: str) -> str:
    """The end of a name that says how the rows are written, in small letters."""
    name = key.rpartition("/")[2].lower()
    return next((ending for ending in _PARSERS if name.endswith(ending)), "")


# --- which column is what --------------------------------------------------------------------------------


class Columns(NamedTuple):
    """The names under which a row holds its parts; empty or None where there is no such part."""

    query: str | None
    document: str
    negatives: tuple[str, ...]
    score: str | None
    slice: str | None
    scored: bool
    """Whether every row needs a score."""


def find_columns(names: Sequence[str], kind: str) -> Columns:
    """Which of the names hold what. Case and blanks around a name do not matter; other columns are left alone.

    Raises RefusedError when a part is missing, or there twice.
    """
    found: dict[str, str] = {}
    for name in names:
        plain = name.strip().lower()
        if plain in found and plain in _KNOWN:
            raise RefusedError(f"{plain} is there twice")
        found[plain] = name
    if kind == "corpus":
        if "text" not in found and "document" not in found:
            raise RefusedError("no text")
        return Columns(None, found["text"] if "text" in found else found["document"], (), None, None, scored=False)
    query, document = next((pair for pair in SPELLINGS if found.keys() >= set(pair)), (None, None))
    if query is None or document is None:
        raise RefusedError(_what_is_missing(found.keys()))
    if query in SCORED and "score" not in found:
        raise RefusedError(f"{query} and {document} without a score")
    negatives = tuple(found[name] for name in ("negative", "negatives") if name in found)
    scored = query in SCORED
    return Columns(found[query], found[document], negatives, found.get("score"), found.get("slice"), scored)


_KNOWN: Final = frozenset(chain(*SPELLINGS, ("negative", "negatives", "score", "slice", "text")))


def _what_is_missing(names: Iterable[str]) -> str:
    present = set(names)
    for query, document in SPELLINGS:
        if query in present:
            return f"{query} without {document}"
        if document in present:
            return f"{document} without {query}"
    return "neither query and document nor another spelling of them"


# --- one row ---------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Rows of one object as they are gathered: accepted ones by column, rejected ones by record."""

    key: str
    limits: Limits
    kind: str = ""
    query: list[str | None] = field(default_factory=list)
    document: list[str] = field(default_factory=list)
    negatives: list[list[str]] = field(default_factory=list)
    score: list[float | None] = field(default_factory=list)
    slice: list[str | None] = field(default_factory=list)
    line: list[int] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kind = kind_of(self.key)

    def __len__(self) -> int:
        return len(self.line) + len(self.rejected)

    def add(self, line: int, row: Mapping[str, Any], columns: Columns) -> str | None:
        """Accept a row, or say why not."""
        document = row[columns.document]
        most = self.limits.max_text_chars
        # _fault spelt out, because two calls for every row cost a tenth of the time
        suspect = type(document) is not str or not document or document.isspace() or document[0] in _UNSEEN
        if suspect or len(document) > most or "\0" in document:
            reason = _fault("document", document, most)
            if reason is not None:
                return reason
        query = None
        if columns.query is not None:
            query = row[columns.query]
            suspect = type(query) is not str or not query or query.isspace() or query[0] in _UNSEEN
            if suspect or len(query) > most or "\0" in query:
                reason = _fault("query", query, most)
                if reason is not None:
                    return reason
        negatives: list[str] = []
        for name in columns.negatives:
            value = row[name]
            if value is not None:
                negatives += value if type(value) is list else (value,)
        if negatives:
            if len(negatives) > self.limits.max_negatives:
                return f"more than {self.limits.max_negatives} negatives"
            for text in negatives:
                reason = _fault("negative", text, most)
                if reason is not None:
                    return reason
        score = None if columns.score is None else row[columns.score]
        if score is not None:
            if type(score) is not float and type(score) is not int:
                return "score is not a number"
            if not 0.0 <= score <= 1.0:
                return "score is not within 0 to 1"
        elif columns.scored:
            return "no score"
        cut = None if columns.slice is None else row[columns.slice]
        if cut is not None:
            reason = _fault("slice", cut, most)
            if reason is not None:
                return reason
        self.query.append(query)
        self.document.append(document)
        self.negatives.append(negatives)
        self.score.append(score)
        self.slice.append(cut)
        self.line.append(line)
        return None

    def reject(self, line: int, reason: str, text: str | bytes) -> None:
        """Record a row that is not taken, with the start of its text."""
        if isinstance(text, bytes):
            # a character is at most four bytes: enough for all that are shown
            text = text[: 4 * SHOWN_CHARS].decode(errors="replace")
        self.rejected.append(Rejected(self.key, line, reason, text[:SHOWN_CHARS].strip("\r\n")))

    def chunk(self) -> Chunk:
        """Everything since the last chunk."""
        columns = [self.query, self.document, self.negatives, self.score, self.slice, self.line]
        arrays = [pa.array(column, part.type) for column, part in zip(columns, PARSED, strict=True)]
        done = Chunk(pa.RecordBatch.from_arrays(arrays, schema=PARSED), self.rejected)
        self.query, self.document, self.negatives, self.score, self.slice, self.line = [], [], [], [], [], []
        self.rejected = []
        return done


def _fault(part: str, text: object, most: int) -> str | None:
    """What is wrong with a text, or None."""
    if text is None:
        return f"no {part}"
    if type(text) is not str:
        return f"{part} is not a text"
    if not text.strip().strip(_UNSEEN):
        return f"empty {part}"
    if len(text) > most:
        return f"{part} longer than {most} characters"
    if "\0" in text:
        return f"NUL in {part}"
    return None


# --- JSON lines ------------------------------------------------------------------------------------------


def _json_lines(key: str, body: bytes, limits: Limits) -> Iterator[Chunk]:
    """One JSON object per line. Of a name that is there twice the last value counts, as in most JSON parsers."""
    text = Text(body, packed=_ending(key).endswith(".gz"))
    text.inspect(limits)
    rows = Rows(key, limits)
    known: dict[tuple[str, ...], Columns | str] = {}
    longest, loads, add = limits.max_line_bytes, orjson.loads, rows.add
    number = 0
    try:
        for lines in text.lines(longest):
            for line in lines:
                number += 1
                if len(line) > longest:
                    rows.reject(number, f"longer than {longest} bytes", line)
                    continue
                try:
                    row = loads(line)
                except ValueError as error:
                    if line.strip():
                        rows.reject(number, _json_fault(line, error), line)
                    continue
                if type(row) is not dict:
                    rows.reject(number, "not a JSON object", line)
                    continue
                names = tuple(row)
                columns = known.get(names)
                if columns is None:
                    if len(known) >= 1_000:  # names made up for every row must not fill the memory
                        known.clear()
                    columns = known[names] = _columns_or_reason(names, rows.kind)
                reason = columns if type(columns) is str else add(number, row, columns)  # type: ignore[arg-type]
                if reason is not None:
                    rows.reject(number, reason, line)
            yield rows.chunk()
    except DamagedError as error:
        rows.reject(number + 1, str(error), "")
    yield rows.chunk()


def _columns_or_reason(names: Sequence[str], kind: str) -> Columns | str:
    try:
        return find_columns(names, kind)
    except RefusedError as error:
        return str(error)


def _json_fault(line: bytes, error: ValueError) -> str:
    """Why a line is not JSON; without the position, so that equal faults are counted together."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    return f"not JSON: {getattr(error, 'msg', str(error)).partition(': line ')[0]}"


# --- CSV -------------------------------------------------------------------------------------------------


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


def _csv(key: str, body: bytes, limits: Limits) -> Iterator[Chunk]:
    """Comma-separated values with a header, as in RFC 4180: every cell is a text, a blank optional one is none."""
    # process-wide, and its default is shorter than our texts; only ever raised
    csv.field_size_limit(max(csv.field_size_limit(), limits.max_line_bytes + 2))
    text = Text(body, packed=_ending(key).endswith(".gz"))
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


def _parquet(key: str, body: bytes, limits: Limits) -> Iterator[Chunk]:
    from tasks.parsing.parquet import parse_parquet

    return parse_parquet(key, body, limits)


_PARSERS: Final[dict[str, Callable[[str, bytes, Limits], Iterator[Chunk]]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".parquet": _parquet,
}
"""How a name may end, and what reads such an object."""
