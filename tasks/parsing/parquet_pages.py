"""Headers of Parquet pages: how much each page unpacks to, before it is unpacked.

A Parquet file's index only sums up its pages, and whoever wrote it may have lied; the memory that reading takes is
what the pages themselves say. A header is a Thrift struct in the compact protocol (parquet.thrift, PageHeader;
thrift/doc/specs/thrift-compact-protocol.md), of which few numbers matter here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

_UNPACKED, _PACKED = 2, 3
"""Fields of PageHeader: bytes of the page when unpacked, and as stored."""

_DATA, _DATA_V2 = 5, 8
"""Fields of PageHeader: structs of which there is one in a page of values, with their number in field 1."""

_DEEPEST: Final = 4


Fields = dict[int, "int | Fields"]
"""Integers and structs of a struct by field number."""


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
            header, after = _struct(body, start, _DEEPEST)
        except IndexError:
            raise ValueError(f"the page header at {start} ends too early") from None
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


def _struct(data: bytes, at: int, depth: int) -> tuple[Fields, int]:
    """The integers and structs of a struct by field number, and the place after it."""
    if not depth:
        raise ValueError("a page header that is too deep")
    fields: Fields = {}
    number = 0
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        match kind:
            case 1 | 2:  # true and false have no bytes of their own
                pass
            case 3:
                at += 1
            case 4 | 5 | 6:
                fields[number], at = _integer(data, at)
            case 7:
                at += 8
            case 8:
                length, at = _varint(data, at)
                at += length
            case 12:
                fields[number], at = _struct(data, at, depth - 1)
            case _:
                raise ValueError(f"a page header has no field of type {kind}")
    return fields, at + 1


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
