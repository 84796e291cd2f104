"""Rows of an object that holds one JSON object per line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import orjson

from tasks.config import Limits
from tasks.parsing.rows import Chunk, Columns, Rows, find_columns
from tasks.parsing.unpacking import DamagedError, RefusedError, Text


def parse_json_lines(key: str, body: bytes, limits: Limits) -> Iterator[Chunk]:
    """One JSON object per line. Of a name that is there twice the last value counts, as in most JSON parsers."""
    text = Text(body, packed=key.lower().endswith(".gz"))
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
