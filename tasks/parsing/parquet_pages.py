"""The index of a Parquet file and the headers of its pages: how much each page unpacks to, before it is unpacked.

A Parquet file's index only sums up its pages, and its writer may have lied; the memory that reading takes is what the
pages themselves say. Both are Thrift structs in the compact protocol (parquet.thrift, FileMetaData and PageHeader;
thrift/doc/specs/thrift-compact-protocol.md), of which few numbers matter here. The index is read here because pyarrow's
`RowGroupMetaData.column` ends the process where a column's statistics of sizes are damaged (seen with pyarrow 26).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

_UNPACKED, _PACKED = 2, 3
"""Fields of PageHeader: bytes of the page when unpacked, and as stored."""

_DATA, _DATA_V2 = 5, 8
"""Fields of PageHeader: structs of which there is one in a page of values, with their number in field 1."""

_HEADER: Final[Spec] = {_UNPACKED: None, _PACKED: None, _DATA: {1: None}, _DATA_V2: {1: None}}

_DEEPEST: Final = 6
_MOST_STRUCTS: Final = 2_000_000

_MOST_CHUNKS: Final = 200_000
"""Columns times row groups: an index of 16 MiB can claim many times as many as it can describe."""

_DELTA_LENGTH, _DELTA = 6, 7
"""Encodings by which texts are written as what they have in common with the one before."""

Spec = dict[int, "Spec | None"]
"""Fields of a struct that are wanted, and of a struct or a list of structs, which of its fields."""

_INDEX: Final[Spec] = {4: {1: {3: {2: None, 3: None, 7: None, 9: None, 11: None}}}}
"""Row groups, their columns, and of each: encodings, path, bytes as stored, first page, dictionary page."""

Fields = dict[int, Any]
"""Integers, bytes, lists and structs of a struct by field number."""


class ColumnChunk(NamedTuple):
    """One column of one row group."""

    path: str
    start: int
    size: int
    """Bytes as stored."""
    delta: bool
    """Whether texts may be written as what they have in common with the one before: then they outgrow their bytes."""


def chunks(body: bytes) -> list[list[ColumnChunk]]:
    """The columns of each row group, by the index at the end of a file. Raises ValueError where it is damaged."""
    start = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    try:
        index, _ = _Reader(body, start, _DEEPEST).struct(_INDEX)
        return [[_chunk(column[3]) for column in group.get(1, ())] for group in index.get(4, ())]
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("an index that is damaged") from error


def _chunk(column: Fields) -> ColumnChunk:
    first, dictionary = column[9], column.get(11)
    start = min(first, dictionary or first)
    path = b".".join(column[3]).decode()
    return ColumnChunk(path, start, column[7], not {_DELTA_LENGTH, _DELTA}.isdisjoint(column[2]))


class Page(NamedTuple):
    """One page."""

    unpacked: int
    """Bytes when unpacked."""
    values: int
    """Values, nulls and empty lists among them; 0 for a dictionary."""


def pages(body: bytes, start: int, end: int) -> Iterator[Page]:
    """The pages of one column chunk, which lies in `body[start:end]`. Raises ValueError where that is none."""
    if not 0 <= start < end <= len(body):
        raise ValueError(f"no column from {start} to {end} in {len(body)} bytes")
    while start < end:
        try:
            header, after = _Reader(body, start, _DEEPEST).struct(_HEADER)
        except IndexError:
            raise ValueError(f"the page header at {start} ends too early") from None
        except ValueError as error:
            raise ValueError(f"no page header at {start}: {error}") from None
        unpacked, packed = header.get(_UNPACKED), header.get(_PACKED)
        if not isinstance(unpacked, int) or not isinstance(packed, int) or unpacked < 0 or packed < 0:
            raise ValueError(f"no page header at {start}")
        yield _page(header, unpacked)
        start = after + packed


def _page(header: Fields, unpacked: int) -> Page:
    for kind in (_DATA, _DATA_V2):
        of_values = header.get(kind)
        if isinstance(of_values, dict):
            values = of_values.get(1)
            if not isinstance(values, int) or values < 0:
                raise ValueError("a page header without the number of values")
            return Page(unpacked, values)
    return Page(unpacked, 0)


class _Reader:
    """Reads one struct; what is not wanted is passed over."""

    def __init__(self, data: bytes, start: int, deepest: int) -> None:
        if start < 0:
            raise ValueError("an index that is longer than the file")
        self._data, self._at, self._deepest = data, start, deepest
        self._structs = 0

    def struct(self, wanted: Spec, depth: int = 0) -> tuple[Fields, int]:
        """The wanted fields of the struct, and the place after it."""
        if depth > self._deepest:
            raise ValueError("a struct that is too deep")
        self._structs += 1
        if self._structs > _MOST_STRUCTS:
            raise ValueError(f"more than {_MOST_STRUCTS} structs")
        fields: Fields = {}
        number = 0
        while (head := self._byte()) != 0:
            step = head >> 4
            number = number + step if step else self._integer()
            value = self._value(head & 15, wanted.get(number) or {}, depth)
            if number in wanted:
                fields[number] = value
        return fields, self._at

    def _value(self, kind: int, wanted: Spec, depth: int) -> Any:
        match kind:
            case 1 | 2:  # true and false have no bytes of their own
                return kind == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._integer()
            case 7:
                self._at += 8
                return None
            case 8:
                length, self._at = _varint(self._data, self._at)
                self._at += length
                return self._data[self._at - length : self._at]
            case 9 | 10:
                return self._list(wanted, depth)
            case 12:
                return self.struct(wanted, depth + 1)[0]
        raise ValueError(f"no field is of type {kind}")

    def _list(self, wanted: Spec, depth: int) -> list[Any]:
        head = self._byte()
        count, kind = head >> 4, head & 15
        if count == 15:
            count, self._at = _varint(self._data, self._at)
        if count > len(self._data) - self._at:
            raise ValueError("a list that is longer than the file")
        if kind in {1, 2}:
            self._at += count
            return []
        values: list[Any] = []
        for _ in range(count):
            value = self._value(kind, wanted, depth)
            if len(values) < _MOST_CHUNKS:
                values.append(value)
        return values

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _integer(self) -> int:
        value, self._at = _integer(self._data, self._at)
        return value


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A signed integer (zigzag), and the place after it."""
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned integer of seven bits a byte, the lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("an integer of more than ten bytes")
