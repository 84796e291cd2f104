"""Bytes to rows: what people upload, one row at a time, so that a bad row never costs its neighbours.

What each column is, is decided from the whole object before its first row is taken. Texts stay as they came: nothing is
stripped, folded or guessed. A row that cannot be taken is named with object, line and reason; an object of which no row
can be taken is one such record, with line 0. What is decided for which input is listed in docs/hostile-input.md and
docs/formats.md, and tested from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa

from tasks.config import Limits
from tasks.parsing.csv_records import CsvRecords
from tasks.parsing.json_lines import JsonArray, JsonLines, json_source
from tasks.parsing.parquet import ParquetRows, count_rows
from tasks.parsing.reading import Reading, Source
from tasks.parsing.rows import KINDS, PARSED, Chunk, Rejected
from tasks.parsing.understood import Refusal, Understood
from tasks.parsing.unpacking import DamagedError, RefusedError, Text

_NO_ROWS: Final = pa.RecordBatch.from_arrays([pa.nulls(0, part.type) for part in PARSED], schema=PARSED)

_ROW_BYTES: Final = 200
"""Bytes that a row takes about, where nothing else says how many an object holds."""

_TABLES: Final = (".xlsx", ".xls", ".ods", ".arrow", ".feather", ".avro", ".orc", ".xml", ".txt", ".zip", ".bz2", ".xz")
"""Ends of names of other kinds of files that hold rows."""


def parse(key: str, body: bytes, limits: Limits | None = None) -> Iterator[Chunk]:
    """Parse an object into chunks of rows, in order; it raises nothing, whatever the bytes are.

    Args:
        key: The object's key under the store's prefix: its first folder says what the rows are, its name's ending
            how they are written.
        body: The object as stored.
        limits: Caps; an object beyond one is refused before its first row is given.

    The last chunk, and no other, says what was made of the whole object.
    """
    caps = limits or Limits()
    refused = refuse_unread(key, len(body), caps)
    if refused is not None:
        yield refused
        return
    ending = _ending(key)
    packing = ending.rpartition(".")[2]
    source: Source | None = None
    accepted = rejected = 0
    try:
        refuse_queries(key)
        source = _SOURCES[ending](body, packing if packing in {"gz", "zst"} else "", caps)
        reading = Reading(key, caps, source)
        for chunk in reading.chunks():
            accepted += chunk.rows.num_rows
            rejected += len(chunk.rejected)
            yield chunk
    except RefusedError as error:
        counted = source.count() if isinstance(source, JsonArray) else None
        rows = _estimate(ending, body, packing, caps) if counted is None else counted
        yield _refusal(key, error, rows, source.format if source else "")
        return
    if accepted + rejected or reading.used:
        yield Chunk(_NO_ROWS, [], reading.understood(accepted, rejected))
    else:
        yield _refusal(key, RefusedError("empty"), 1, source.format)


def refuse_unread(key: str, size: int, limits: Limits) -> Chunk | None:
    """The one record of an object that its name and size in bytes are enough to refuse; None for any other."""
    if not size:
        return _refusal(key, RefusedError("empty"), 1)
    if _ending(key) not in _SOURCES:
        rows = size // _ROW_BYTES if key.lower().endswith(_TABLES) else 1
        return _refusal(key, RefusedError("unknown kind of file", _ENDINGS), rows)
    if size > limits.max_object_bytes:
        remedy = "write several smaller ones, or raise limits.max_object_bytes"
        error = RefusedError(f"larger than {limits.max_object_bytes} bytes", remedy)
        return _refusal(key, error, min(size // _ROW_BYTES, limits.max_object_rows))
    return None


def source_of(key: str, body: bytes, limits: Limits) -> Source:
    """What reads an object, by the end of its name. Raises RefusedError where its name and size tell that nothing can.

    The name must be one of a known kind; it is looked at once more when rows are read.
    """
    refused = refuse_unread(key, len(body), limits)
    if refused is not None:
        raise RefusedError(refused.rejected[0].reason)
    ending = _ending(key)
    packing = ending.rpartition(".")[2]
    return _SOURCES[ending](body, packing if packing in {"gz", "zst"} else "", limits)


def _refusal(key: str, error: RefusedError, rows: int, kind: str = "") -> Chunk:
    refusal = Refusal(error.reason, error.remedy, max(rows, 1))
    understood = Understood(key, kind or _ending(key), {}, rejected=refusal.rows, refusal=refusal)
    return Chunk(_NO_ROWS, [Rejected(key, 0, str(error), "")], understood)


def refuse_queries(key: str) -> None:
    """Raise RefusedError for queries of a folder in BEIR layout: they look like documents; only their name tells."""
    folder, _, rest = key.partition("/")
    if KINDS.get(folder, folder) in {"corpus", "documents"} and rest.rpartition("/")[2].lower().startswith("queries."):
        raise RefusedError(
            "queries in BEIR layout, not documents",
            "`ratchet convert FOLDER pairs.jsonl` joins queries, corpus and qrels into pairs",
        )


def _ending(key: str) -> str:
    """The end of a name that says how the rows are written, in lower case."""
    name = key.rpartition("/")[2].lower()
    return next((ending for ending in _SOURCES if name.endswith(ending)), "")


def _estimate(ending: str, body: bytes, packing: str, limits: Limits) -> int:
    """Rows that a refused object probably holds: its lines, or what its index says."""
    most = limits.max_object_rows
    if ending == ".parquet":
        rows = count_rows(body)
        return min(len(body) // _ROW_BYTES if rows is None else rows, most)
    lines = unpacked = 0
    last = b""
    try:
        for block in Text(body, packing if packing in {"gz", "zst"} else "").blocks():
            lines += block.count(b"\n")
            last = block[-1:]
            unpacked += len(block)
            if lines > most or unpacked > limits.max_object_bytes:
                break
    except (DamagedError, RefusedError):
        lines = max(lines, len(body) // _ROW_BYTES)
    lines += last not in {b"", b"\n"}
    headed = ending.startswith((".csv", ".tsv")) and lines > 1
    return min(lines - headed, most)


def _json_lines(body: bytes, packing: str, limits: Limits) -> Source:
    return JsonLines(Text(body, packing), limits)


def _json(body: bytes, packing: str, limits: Limits) -> Source:
    return json_source(Text(body, packing), limits)


def _csv(body: bytes, packing: str, limits: Limits) -> Source:
    return CsvRecords(Text(body, packing), limits)


def _tsv(body: bytes, packing: str, limits: Limits) -> Source:
    return CsvRecords(Text(body, packing), limits, tabs=True)


def _parquet(body: bytes, _packing: str, limits: Limits) -> Source:
    return ParquetRows(body, limits)


_TEXTS: Final = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _tsv}

_ENDINGS: Final = f"the name must end in {', '.join(_TEXTS)}, each also with .gz or .zst, or in .parquet"

_SOURCES: Final[dict[str, Callable[[bytes, str, Limits], Source]]] = {
    **{ending + packing: source for ending, source in _TEXTS.items() for packing in ("", ".gz", ".zst")},
    ".parquet": _parquet,
}
"""What reads an object, by the end of its name."""
