"""Files of an export in the schema of User Behavior Insights, as the documents of an index.

JSON lines, an array, answers of a search, bulk requests, lines of elasticdump, CSV, Parquet; packed by gzip or
Zstandard; in one file or several.
"""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from tasks.parsing.exports import ConvertError
from tasks.parsing.shapes import join_title
from tasks.parsing.unpacking import DamagedError, RefusedError, Text
from tasks.parsing.values import spelt_list

_NESTED: Final = ("event_attributes", "query_response_hit_ids")
"""Fields that a table may hold as text."""

_BULK: Final = {"index", "create"}


def find(folder: Path, part: str) -> list[Path]:
    """The files of an export that hold `ubi_queries` or `ubi_events`: by their names, or those of their folders."""
    named = (path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_beside(path.name))
    return [path for path in named if any(piece.startswith(part) for piece in path.relative_to(folder).parts)]


def read(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """The documents of one index.

    Raises ConvertError that names the file; also where answers of a search hold fewer documents than it found.
    """
    held = total = 0
    for path in paths:
        for value in _values(path):
            hits = value.get("hits") if isinstance(value, dict) else None
            if isinstance(hits, dict) and isinstance(hits.get("hits"), list):
                total = max(total, _total(hits))
                held += len(hits["hits"])
                yield from (_document(hit, path) for hit in hits["hits"])
            elif not _is_bulk(value):
                yield _document(value, path)
    if held < total:
        names = ", ".join(path.name for path in paths[:8])
        raise ConvertError(f"{names}: {held:,} of the {total:,} documents that the search found: export all of them")


def texts(path: Path) -> dict[str, str]:
    """Texts by id of a file of documents; a title goes before its text.

    Raises ConvertError for a document without either, and for an id with two texts.
    """
    found: dict[str, str] = {}
    for number, record in enumerate(read([path]), 1):
        identity = name_of(record.get("id", record.get("_id")))
        if identity is None or not is_text(record.get("text")):
            raise ConvertError(f"{path.name}: document {number} has no id or no text")
        text = str(join_title(record.get("title"), record["text"]))
        if found.setdefault(identity, text) != text:
            raise ConvertError(f"{path.name}: document {number} has the id {identity!r} of another one")
    return found


def name_of(value: Any) -> str | None:
    """An id as a text; None for what is not an id. Tables with gaps have whole numbers as floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip() or None


def is_text(value: object) -> bool:
    """Whether it is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def _is_beside(name: str) -> bool:
    return name.startswith((".", "_")) or name.endswith(".crc")


def _total(hits: Mapping[str, Any]) -> int:
    """How many documents a search found, as its answer says."""
    total = hits.get("total")
    value = total.get("value") if isinstance(total, dict) else total
    return value if isinstance(value, int) else 0


def _is_bulk(value: Any) -> bool:
    """Whether it is the line before a document in a bulk request."""
    return isinstance(value, dict) and len(value) == 1 and _BULK.issuperset(value)


def _document(value: Any, path: Path) -> dict[str, Any]:
    """One document as it was indexed, with its `_id`."""
    inner = value.get("_source", value) if isinstance(value, dict) else None
    if not isinstance(inner, dict):
        raise ConvertError(f"{path.name} holds something that is not an object: {str(value)[:80]}")
    inner = {"_id": value.get("_id"), **inner}
    return inner | {name: _unfolded(inner[name]) for name in _NESTED if isinstance(inner.get(name), str)}


def _unfolded(cell: str) -> Any:
    """An object or a list that a table holds as text, in JSON or as Python writes it; None for any other text."""
    for load in (orjson.loads, spelt_list if cell.lstrip().startswith("[") else ast.literal_eval):
        try:
            found = load(cell)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, dict | list) else None
    return None


def _values(path: Path) -> Iterator[Any]:
    """The values in a file, however they are written."""
    name = path.name.lower()
    ending = name.rpartition(".")[2]
    body = path.read_bytes()
    try:
        if ending == "parquet":
            yield from _parquet(body)
            return
        packing = ending if ending in {"gz", "zst"} else ""
        text = b"".join(Text(body, packing).blocks())
        yield from (_csv if name.removesuffix(f".{packing}").endswith((".csv", ".tsv")) else _json)(text)
    except (ValueError, csv.Error, RefusedError, DamagedError) as error:
        raise ConvertError(f"{path.name} is not JSON, CSV or Parquet, or is damaged: {error}") from error


def _json(body: bytes) -> Iterator[Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        yield from (orjson.loads(line) for line in body.splitlines() if line.strip())
        return
    yield from value if isinstance(value, list) else [value]


def _csv(body: bytes) -> Iterator[Any]:
    """Rows by the names of the header, without empty cells; the separator is the one that the header has most of."""
    text = body.decode()
    separator = max(",;\t", key=text.partition("\n")[0].count)
    for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
        if None in row or None in row.values():
            raise ValueError(f"a row has another number of cells than the header: {str(list(row.values()))[:80]}")
        yield {name: cell for name, cell in row.items() if cell}


def _parquet(body: bytes) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(pa.BufferReader(body)).iter_batches(10_000):
        yield from batch.to_pylist()
