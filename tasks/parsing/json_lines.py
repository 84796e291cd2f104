"""Rows of an object that holds one JSON object per line, or one array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import orjson

from tasks.config import Limits
from tasks.parsing.columns import Columns, Plan, Survey
from tasks.parsing.reading import Record
from tasks.parsing.unpacking import BLOCK, DamagedError, RefusedError, Text
from tasks.parsing.values import Column

_MOST_NAMES: Final = 1_000
"""Sets of names that are remembered: names made up for every row must not fill the memory."""

_MOST_ARRAY_BYTES: Final = 64 << 20
"""An array is decoded in one piece."""

_ARRAY: Final = "JSON array"
_LINES_ARE_SAFER: Final = "write one JSON object per line, and let the name end in .jsonl"


@dataclass(frozen=True)
class JsonLines:
    """One JSON object per line. Of a name that is there twice the last value counts, as in most JSON parsers."""

    text: Text
    limits: Limits
    format: str = "JSON lines"
    strict: bool = False
    """Whether an object without a single row on a line is refused as a whole."""

    def survey(self, survey: Survey) -> None:  # noqa: C901 # a call for each of a million lines would cost seconds
        """Look at every line. Raises RefusedError for whatever exceeds a cap, or is another format altogether."""
        self.text.inspect(self.limits)
        known: dict[tuple[str, ...], list[tuple[str, Column]]] = {}
        longest, loads = self.limits.max_line_bytes, orjson.loads
        sound = 0
        other: str | None = None
        try:
            for lines in self.text.lines(longest):
                for line in lines:
                    try:
                        row = loads(line)
                    except ValueError:
                        continue
                    if type(row) is not dict or len(line) > longest:
                        other = other or _ARRAY if type(row) is list else other
                        continue
                    sound += 1
                    names = tuple(row)
                    watched = known.get(names)
                    if watched is None:
                        if len(known) >= _MOST_NAMES:
                            known.clear()
                        watched = known[names] = survey.watch(names)
                    for name, column in watched:
                        column.add(row[name])
        except DamagedError:
            pass  # the records say so
        if not sound and other:
            raise RefusedError(
                "not one JSON object per line, but arrays",
                'write {"query": ..., "document": ...} on each line, or let the name of one whole array end in .json',
            )
        if self.strict and not sound:
            raise RefusedError("neither a JSON array nor one JSON object per line", _LINES_ARE_SAFER)

    def records(self, plan: Plan) -> Iterator[Record | None]:
        """Every line that is not blank."""
        known: dict[tuple[str, ...], Columns | str] = {}
        longest, loads = self.limits.max_line_bytes, orjson.loads
        number = 0
        try:
            for lines in self.text.lines(longest):
                for line in lines:
                    number += 1
                    if len(line) > longest:
                        yield number, {}, f"longer than {longest} bytes", line
                        continue
                    try:
                        row = loads(line)
                    except ValueError as error:
                        if line.strip():
                            yield number, {}, _fault(line, error), line
                        continue
                    if type(row) is not dict:
                        yield number, {}, "not a JSON object", line
                        continue
                    names = tuple(row)
                    columns = known.get(names)
                    if columns is None:
                        if len(known) >= _MOST_NAMES:
                            known.clear()
                        columns = known[names] = plan.columns(names)
                    yield number, row, columns, line
                yield None
        except DamagedError as error:
            yield number + 1, {}, str(error), ""


@dataclass(frozen=True)
class JsonArray:
    """One array of JSON objects; one that is broken anywhere is refused, as nothing says where a row begins."""

    text: Text
    limits: Limits
    format: str = _ARRAY

    def survey(self, survey: Survey) -> None:
        """Look at every row. Raises RefusedError when the whole is not an array of objects."""
        for _, row in self._rows():
            if isinstance(row, dict):
                for name, column in survey.watch(tuple(row), texts=True):
                    column.add(row[name])

    def records(self, plan: Plan) -> Iterator[Record | None]:
        """Every element of the array, by the line on which it begins."""
        longest = self.limits.max_line_bytes
        size = 0
        for line, row in self._rows():
            if isinstance(row, str):
                yield line, {}, row, ""
                continue
            raw = orjson.dumps(row)
            long = len(raw) > longest
            yield line, row, f"longer than {longest} bytes" if long else plan.columns(tuple(row)), raw
            size += len(raw)
            if size > BLOCK:
                yield None
                size = 0

    def count(self) -> int | None:
        """How many elements the array has; None where it is broken."""
        try:
            return sum(1 for _ in self._rows())
        except RefusedError:
            return None

    def _rows(self) -> Iterator[tuple[int, dict[str, object] | str]]:
        """Line and content of every element; a text says why it is not a row."""
        self.text.inspect(self.limits)
        body = self._decoded()
        decoder = json.JSONDecoder(parse_constant=_refuse_constant)
        counted = body.index("[")
        place, line = _blanks(body, counted + 1), 1 + body.count("\n", 0, counted)
        count = 0
        while body[place : place + 1] != "]":
            line += body.count("\n", counted, place)
            counted = place
            try:
                _, end = decoder.raw_decode(body, place)
                row = orjson.loads(body[place:end].encode())
            except (ValueError, RecursionError) as error:
                said = str(error).partition(": line ")[0]
                raise RefusedError(f"line {line}: not a JSON array: {said}", _LINES_ARE_SAFER) from error
            count += 1
            if count > self.limits.max_object_rows:
                raise RefusedError(f"more than {self.limits.max_object_rows} rows", "write several objects")
            yield line, row if isinstance(row, dict) else "not a JSON object"
            place = _blanks(body, end)
            if body[place : place + 1] == ",":
                place = _blanks(body, place + 1)
            elif body[place : place + 1] != "]":
                raise RefusedError(f"line {line}: not a JSON array: no comma after an element", _LINES_ARE_SAFER)

    def _decoded(self) -> str:
        try:
            if sum(map(len, self.text.blocks())) > _MOST_ARRAY_BYTES:
                raise RefusedError(f"a JSON array of more than {_MOST_ARRAY_BYTES >> 20} MiB", _LINES_ARE_SAFER)
            return b"".join(self.text.blocks()).decode()
        except UnicodeDecodeError as error:
            raise RefusedError("not UTF-8", "save it as UTF-8") from error
        except DamagedError as error:
            raise RefusedError(str(error)) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _blanks(body: str, place: int) -> int:
    """The place of the next character that is not blank."""
    while body[place : place + 1] in {" ", "\n", "\r", "\t"} and place < len(body):
        place += 1
    return place


def json_source(text: Text, limits: Limits) -> JsonLines | JsonArray:
    """A name that ends in .json may hold either: an array begins with a bracket."""
    for block in text.blocks():
        start = block.lstrip()[:1]
        if start:
            return JsonArray(text, limits) if start == b"[" else JsonLines(text, limits, strict=True)
    return JsonLines(text, limits)


def _fault(line: bytes, error: ValueError) -> str:
    """Why a line is not JSON; without the position, so that equal faults are counted together."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    return f"not JSON: {getattr(error, 'msg', str(error)).partition(': line ')[0]}"
