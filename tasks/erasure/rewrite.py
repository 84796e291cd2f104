"""Bytes of an object without what is to be forgotten, in the format that they have; the rest stays byte for byte."""

from __future__ import annotations

import csv
import gzip
import html
import io
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import Limits
from tasks.erasure.wanted import ERASED, Wanted
from tasks.parsing import KINDS, parse

_GENEROUS: Final = Limits(
    max_object_bytes=1 << 40,
    max_line_bytes=1 << 30,
    max_object_rows=1 << 40,
    max_decompressed_bytes=1 << 40,
    max_compression_ratio=1e9,
    max_text_chars=1 << 30,
    max_negatives=1 << 30,
)
"""Whatever was taken under some limits is read again without."""

_DROP: Final = object()
_NO_TEXT: Final = frozenset({"slice", "split", "label", "language", "lang", "source", "labeller", "id", "_id"})
"""Names of fields whose values are not texts of a row, though they may be spelt as one."""

_TEXT_FIELDS: Final = frozenset({"query", "text", "document", "returned_before", "returned_after", "other"})
"""Names of fields of records that hold texts of rows, and no words of their own."""

_DELIMITERS: Final = ",;\t|"
_NODE: Final = re.compile(r"[^<>]+")


class CannotRewriteError(Exception):
    """The object holds a text to forget and is in a format that is not rewritten."""


# --- what others uploaded --------------------------------------------------------------------------------


def source_without(key: str, body: bytes, wanted: Wanted) -> bytes | None:
    """An uploaded object without the records that hold a text to forget; None when it has none of them.

    Empty when no record is left. Raises CannotRewriteError for a format that is not known here.
    """
    packed = next((ending for ending in (".gz", ".zst") if key.lower().endswith(ending)), "")
    name = key.lower().removesuffix(packed) if packed else key.lower()
    try:
        plain = _unpack(body, packed)
    except (OSError, EOFError, pa.ArrowInvalid):
        plain, name = body, ""
    rewrite = _REWRITERS.get(name.rpartition(".")[2], _unknown)
    done = rewrite(plain, wanted, _lines(key, body, wanted))
    return None if done is None else _pack(done, packed) if done else b""


def _unpack(body: bytes, packed: str) -> bytes:
    if packed == ".gz":
        return gzip.decompress(body)
    if packed == ".zst":
        return bytes(pa.input_stream(pa.BufferReader(body), compression="zstd").read())
    return body


def _pack(body: bytes, packed: str) -> bytes:
    if packed == ".gz":
        return gzip.compress(body, mtime=0)
    if packed == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(body)
        return bytes(sink.getvalue())
    return body


def _lines(key: str, body: bytes, wanted: Wanted) -> set[int]:
    """Numbers of the lines or rows of which the reader makes a row with a text to forget."""
    if key.partition("/")[0] not in KINDS:
        return set()
    lines: set[int] = set()
    for chunk in parse(key, body, _GENEROUS):
        texts = zip(*(chunk.rows.column(name).to_pylist() for name in ("query", "document", "line")), strict=True)
        lines.update(line for query, text, line in texts if any(map(wanted.equals, filter(None, (query, text)))))
        lines.update(row.line for row in chunk.rejected if wanted.is_in_record(row.text))
    return lines - {0}


def _json_lines(body: bytes, wanted: Wanted, lines: set[int]) -> bytes | None:
    kept: list[bytes] = []
    changed = False
    for number, line in enumerate(body.split(b"\n"), 1):
        done = _json_line(line, wanted) if number not in lines else None
        changed |= done is not line
        kept += [] if done is None else [done]
    if not changed:
        return None
    return b"\n".join(kept) if any(line.strip() for line in kept) else b""


def _json_line(line: bytes, wanted: Wanted) -> bytes | None:
    """A line as it may stay; None when it may not."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None if wanted.is_in_record(line.decode(errors="replace")) else line
    pruned = _pruned(value, wanted)
    if pruned is _DROP:
        return None
    return line if pruned == value else orjson.dumps(pruned)


def _json(body: bytes, wanted: Wanted, lines: set[int]) -> bytes | None:
    """One JSON value, such as an array of rows or an export; or JSON lines under the ending of one value."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _json_lines(body, wanted, lines)
    pruned = _pruned(value, wanted)
    if pruned is _DROP or pruned == []:
        return b""
    return None if pruned == value else orjson.dumps(pruned)


def _pruned(value: Any, wanted: Wanted, name: str = "") -> Any:
    """A JSON value without what is to be forgotten; a record that is about it is dropped as a whole."""
    if isinstance(value, str):
        return _DROP if wanted.equals(value) else value
    if isinstance(value, dict):
        fields = {key: part if key.lower() in _NO_TEXT else _pruned(part, wanted, key) for key, part in value.items()}
        return _DROP if any(part is _DROP for part in fields.values()) else fields
    if isinstance(value, list):
        parts = [part for part in (_pruned(part, wanted) for part in value) if part is not _DROP]
        return _DROP if value and not parts and name and not name.lower().startswith(("neg", "hard")) else parts
    return value


def _csv(body: bytes, wanted: Wanted, lines: set[int]) -> bytes | None:
    encoding = _encoding(body)
    text = body.decode(encoding, errors="surrogateescape" if encoding == "utf-8" else "strict")
    rows = text.splitlines(keepends=True)
    delimiter = max(_DELIMITERS, key=rows[0].count) if rows else ","
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(iter(rows), delimiter=delimiter)
    kept, start, changed, records = [], 0, False, 0
    for cells in reader:
        numbers = range(start + 1, reader.line_num + 1)
        held = any(map(wanted.equals, cells)) or any(number in lines for number in numbers)
        if held and start:  # the header stays
            changed = True
        else:
            kept += rows[start : reader.line_num]
            records += 1
        start = reader.line_num
    if not changed:
        return None
    done = "".join(kept).encode(encoding, errors="surrogateescape" if encoding == "utf-8" else "strict")
    return done if records > 1 else b""


def _encoding(body: bytes) -> str:
    """One that gives back the same bytes."""
    if body.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16-le" if body.startswith(b"\xff\xfe") else "utf-16-be"
    try:
        body.decode()
    except UnicodeDecodeError:
        try:
            body.decode("cp1252")
        except UnicodeDecodeError:
            return "utf-8"
        return "cp1252"
    return "utf-8"


def _parquet(body: bytes, wanted: Wanted, lines: set[int]) -> bytes | None:
    try:
        table = pq.read_table(pa.BufferReader(body))
    except (pa.ArrowInvalid, OSError):
        return _unknown(body, wanted, lines)
    kept = [
        number not in lines and _pruned(row, wanted) is not _DROP for number, row in enumerate(_python_rows(table), 1)
    ]
    if all(kept):
        return None
    return _as_parquet(table.filter(pa.array(kept, pa.bool_()))) if any(kept) else b""


def _python_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows with the columns that may hold text, few at a time."""
    texts = [f.name for f in table.schema if not pa.types.is_primitive(f.type)]
    for batch in table.select(texts).to_batches(max_chunksize=10_000):
        yield from batch.to_pylist() if texts else ({} for _ in range(batch.num_rows))


def _as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _unknown(body: bytes, wanted: Wanted, _lines: set[int]) -> bytes | None:
    """A format that is not rewritten: fit to stay when its bytes do not show a text to forget."""
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", "cp1252"):
        text = body.decode(encoding, errors="replace")
        if wanted.is_in_record(text):
            raise CannotRewriteError
    return None


_REWRITERS: Final[dict[str, Callable[[bytes, Wanted, set[int]], bytes | None]]] = {
    "jsonl": _json_lines,
    "ndjson": _json_lines,
    "json": _json,
    "csv": _csv,
    "tsv": _csv,
    "parquet": _parquet,
}


# --- what Ratchet wrote ----------------------------------------------------------------------------------


def record_without(key: str, body: bytes, wanted: Wanted) -> bytes | None:
    """What a run or the watch wrote, without the texts; None when there is nothing of them in it."""
    ending = key.rpartition(".")[2]
    if ending == "json":
        return _record(body, wanted)
    if ending == "parquet":
        table = pq.read_table(pa.BufferReader(body))
        kept = [not wanted.equals(row.get("query") or "") for row in _python_rows(table)]
        return None if all(kept) else _as_parquet(table.filter(pa.array(kept, pa.bool_())))
    if ending == "jsonl":
        lines = [_record(line, wanted, 0) or line for line in body.splitlines()]
        done = b"".join(line + b"\n" for line in lines)
        return None if lines == body.splitlines() else done
    if ending in {"html", "svg", "md", "txt"}:
        return _page(body, wanted)
    return None


def _record(body: bytes, wanted: Wanted, option: int = orjson.OPT_INDENT_2) -> bytes | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _page(body, wanted)
    done = _blanked(value, wanted)
    return None if done == value else orjson.dumps(done, option=option)


def _blanked(value: Any, wanted: Wanted, name: str = "") -> Any:
    """A JSON value with a mark for every text to forget; a short word counts only in fields of texts."""
    if isinstance(value, str):
        return ERASED if wanted.is_in(value, words=name in _TEXT_FIELDS) else value
    if isinstance(value, list):
        return [_blanked(part, wanted, name) for part in value]
    if isinstance(value, dict):
        of_object = wanted.object is not None and value.get("object") == wanted.object
        return {
            key: ERASED if of_object and key == "text" else _blanked(part, wanted, key) for key, part in value.items()
        }
    return value


def _page(body: bytes, wanted: Wanted) -> bytes | None:
    """A page: its texts between tags, and inside of them (titles, labels of charts)."""
    page = body.decode(errors="surrogateescape")

    def blank(match: re.Match[str]) -> str:
        text = match[0]
        return f" {ERASED} " if text.strip() and wanted.is_in(html.unescape(text)) else text

    done = re.sub(r'(?<==")[^"<>]*(?=")', blank, _NODE.sub(_outside_tags(page, blank), page))
    return None if done == page else done.encode(errors="surrogateescape")


def _outside_tags(page: str, blank: Callable[[re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
    """The same for stretches that no tag encloses."""

    def replace(match: re.Match[str]) -> str:
        inside = match.start() > 0 and page[match.start() - 1] == "<"
        return match[0] if inside else blank(match)

    return replace
