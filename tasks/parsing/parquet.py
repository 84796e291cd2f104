"""Rows of a Parquet object, read so that a small file that stands for a huge table stays small.

Parquet stores repeated values once: 12 KB can stand for 50 GB. Texts are therefore read as dictionaries (each
distinct value once, and a number per row), their lengths are summed before any row is made, and rows are made a few
megabytes at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.config import Limits
from tasks.parsing.parquet_pages import pages
from tasks.parsing.rows import Chunk, Columns, Rows, find_columns
from tasks.parsing.unpacking import HARMLESS, RefusedError

Counts = npt.NDArray[np.int64]

_READ_ROWS: Final = 10_000
_READ_BYTES: Final = 32 << 20
"""Rows, and bytes of their texts in pages of the longest ones, that are read at once."""

_MADE_BYTES: Final = 4 << 20
"""Bytes of texts that are made at once."""

_MOST_COLUMNS: Final = 10_000
_MOST_INDEX_BYTES: Final = 1 << 24
"""What the index at the end of a file takes in memory is many times its size."""

_DELTAS: Final = {"DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"}

_MOST_VALUES_A_ROW: Final = 16
"""Negatives per row on average: what a whole object of the most rows may hold."""

_MEMORY_BYTES: Final = 360 << 20
"""What the object and its largest page may take together. Most writers make pages of a megabyte, some of a hundred."""

_COPIES: Final = 4
"""How often the values of a page are in memory while Arrow grows its arrays."""


def parse_parquet(key: str, body: bytes, limits: Limits) -> Iterator[Chunk]:
    """Rows of a Parquet object, numbered from 1.

    Raises RefusedError when nothing can be taken: no Parquet, beyond a cap, or columns of other types. A row group
    that cannot be read is one rejected row; the others are taken.
    """
    rows = Rows(key, limits)
    try:
        file, columns = _open(body, rows.kind)
        steps = _check_pages(body, file.metadata, columns, limits)
        _check_lengths(file, steps, columns, len(body), limits)
        line = 0
        for group, step in enumerate(steps):
            end = line + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(step, row_groups=[group], columns=_names(columns)):
                    _add(rows, line, batch, columns)
                    line += batch.num_rows
                    yield rows.chunk()
            except (pa.ArrowException, OSError) as error:
                rows.reject(line + 1, f"the rest of its row group is not readable: {_first_line(error)}", "")
            line = end
        yield rows.chunk()
    finally:
        pa.default_memory_pool().release_unused()  # the next object may be as large


def _open(body: bytes, kind: str) -> tuple[pq.ParquetFile, Columns]:
    """The file, opened so that texts are read as dictionaries, and which of its columns is what."""
    if int.from_bytes(body[-8:-4], "little") > _MOST_INDEX_BYTES:
        raise RefusedError(f"not readable as Parquet: an index of more than {_MOST_INDEX_BYTES} bytes")
    try:
        plain = pq.ParquetFile(pa.BufferReader(body))
        if len(plain.schema) > _MOST_COLUMNS:
            raise RefusedError(f"more than {_MOST_COLUMNS} columns")
        columns = find_columns(plain.schema_arrow.names, kind)
        for name in _names(columns):
            _check_type(name, plain.schema_arrow.field(name).type, columns)
        texts = _text_paths(plain, columns)
        return pq.ParquetFile(pa.BufferReader(body), read_dictionary=texts, page_checksum_verification=True), columns
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RefusedError(f"not readable as Parquet: {_first_line(error)}") from error


def _names(columns: Columns) -> list[str]:
    parts = (columns.query, columns.document, *columns.negatives, columns.score, columns.slice)
    return [name for name in parts if name is not None]


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:100]


def _value(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    kind = _value(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _check_type(name: str, kind: pa.DataType, columns: Columns) -> None:
    """Refuse a column that does not hold what it should: then no row of it does."""
    if name == columns.score:
        sound = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)
    elif name in columns.negatives:
        sound = _is_text(kind) or pa.types.is_null(kind) or (_is_list(kind) and _is_text(kind.value_type))
    else:
        sound = _is_text(kind) or (name == columns.slice and pa.types.is_null(kind))
    if not sound:
        raise RefusedError(
            f"column {name.strip().lower()} holds {kind}, not {'numbers' if name == columns.score else 'texts'}"
        )


def _text_paths(file: pq.ParquetFile, columns: Columns) -> list[str]:
    """Where the file keeps the texts that can be read as dictionaries; of lists, writers name the items differently."""
    names = set(_names(columns)) - {columns.score}
    found = [file.schema.column(number) for number in range(len(file.schema))]
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    return [
        column.path
        for number, column in enumerate(found)
        if column.path.split(".")[0] in names
        and column.physical_type == "BYTE_ARRAY"
        and not any(_is_delta(group.column(number)) for group in groups)
    ]


def _is_delta(column: pq.ColumnChunkMetaData) -> bool:
    """Whether texts may be written as what they have in common with the one before: then they outgrow their bytes.

    Arrow cannot read such columns as dictionaries; where the index does not tell, reading fails.
    """
    return not _DELTAS.isdisjoint(column.encodings)


def _check_pages(body: bytes, metadata: pq.FileMetaData, columns: Columns, limits: Limits) -> list[int]:
    """Refuse by what the file's index and its pages say of themselves, before anything is unpacked.

    Returns, for each row group, how many of its rows can be read at once.
    """
    if metadata.num_rows > limits.max_object_rows:
        raise RefusedError(f"more than {limits.max_object_rows} rows")
    names = set(_names(columns))
    unpacked = 0
    steps = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        longest = 1
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.split(".")[0] in names:
                size, longest_here = _check_column(body, column, limits)
                unpacked += size
                longest = max(longest, longest_here)
                _check_unpacked(unpacked, len(body), limits)
        steps.append(min(max(_READ_BYTES // longest, 1), _READ_ROWS))
    return steps


def _check_column(body: bytes, column: pq.ColumnChunkMetaData, limits: Limits) -> tuple[int, int]:
    """Bytes that one column of one row group unpacks to, and bytes that each of its values takes at most.

    Where texts do not outgrow their bytes, the second is the average of the page with the longest ones: a number of
    values takes at most that many times as much, and two pages.
    """
    start = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
    in_lists = "." in column.path_in_schema
    delta = _is_delta(column)
    most = max((_MEMORY_BYTES - len(body)) // _COPIES, _READ_BYTES)
    unpacked = values = longest = 0
    try:
        for page in pages(body, start, start + column.total_compressed_size):
            unpacked += page.unpacked
            values += page.values
            if delta:
                longest = max(longest, page.unpacked)
            elif page.values:
                longest = max(longest, page.unpacked // page.values)
            # a list is read in one piece as well, however long it is
            if (unpacked if in_lists else page.unpacked) > most:
                piece = "row group of negatives" if in_lists else "page"
                raise RefusedError(f"a {piece} unpacks to more than {most >> 20} MiB: write smaller ones")
    except ValueError as error:
        raise RefusedError(f"not readable as Parquet: {error}") from error
    if values > _MOST_VALUES_A_ROW * limits.max_object_rows:
        raise RefusedError(f"more than {_MOST_VALUES_A_ROW * limits.max_object_rows} negatives")
    if in_lists and delta and longest * values > most:
        raise RefusedError("many negatives in a delta encoding: write them as PLAIN")
    return unpacked, 1 if in_lists else longest


def _check_lengths(file: pq.ParquetFile, steps: Sequence[int], columns: Columns, size: int, limits: Limits) -> None:
    """Refuse by the length of all texts, without making them."""
    unpacked = 0
    for group, step in enumerate(steps):
        try:
            for batch in file.iter_batches(step, row_groups=[group], columns=_names(columns)):
                unpacked += int(_row_bytes(batch).sum())
                _check_unpacked(unpacked, size, limits)
        except (pa.ArrowException, OSError):
            continue  # found again, and named, when the rows are made


def _check_unpacked(unpacked: int, size: int, limits: Limits) -> None:
    if unpacked > limits.max_decompressed_bytes:
        raise RefusedError(f"unpacks to more than {limits.max_decompressed_bytes} bytes")
    if unpacked > max(HARMLESS, limits.max_compression_ratio * size):
        raise RefusedError(f"unpacks to more than {limits.max_compression_ratio:g} times its size")


def _row_bytes(batch: pa.RecordBatch) -> Counts:
    """Bytes of all texts of each row, of shape (n_rows,)."""
    total = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if _is_list(column.type):
            offsets = _offsets(column)
            sums = np.concatenate([[0], np.cumsum(_text_bytes(column.values))])
            total += sums[offsets[1:]] - sums[offsets[:-1]]
        elif _is_text(column.type):
            total += _text_bytes(column)
    return total


def _text_bytes(texts: pa.Array) -> Counts:
    """Bytes of each text, 0 where there is none; of dictionaries, without looking at repeated texts again."""
    if pa.types.is_dictionary(texts.type):
        lengths = np.append(_text_bytes(texts.dictionary), 0)
        indices: Counts = pc.fill_null(texts.indices, -1).to_numpy(zero_copy_only=False)
        return lengths[indices]  # -1 is the appended one
    return np.asarray(pc.fill_null(pc.binary_length(texts), 0), dtype=np.int64)


def _negative_counts(batch: pa.RecordBatch) -> Counts:
    """Values in lists of each row, of shape (n_rows,)."""
    total = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if _is_list(column.type):
            total += np.diff(_offsets(column))
    return total


def _offsets(lists: pa.Array) -> Counts:
    return np.asarray(lists.offsets, dtype=np.int64)


def _add(rows: Rows, before: int, batch: pa.RecordBatch, columns: Columns) -> None:
    """Add the rows of a batch, of which the first is number `before` + 1."""
    lengths, negatives = _row_bytes(batch), _negative_counts(batch)
    overlong = lengths > rows.limits.max_line_bytes
    crowded = negatives > rows.limits.max_negatives
    start = 0
    while start < batch.num_rows:
        if overlong[start] or crowded[start]:
            limits = rows.limits
            rows.reject(
                before + start + 1,
                f"longer than {limits.max_line_bytes} bytes"
                if overlong[start]
                else f"more than {limits.max_negatives} negatives",
                "",
            )
            start += 1
            continue
        # as many rows as stay within the bytes to be made at once
        size, end = 0, start
        while end < batch.num_rows and size <= _MADE_BYTES and not overlong[end] and not crowded[end]:
            size += int(lengths[end])
            end += 1
        _add_made(rows, before + start, batch.slice(start, end - start), columns)
        start = end


def _add_made(rows: Rows, before: int, batch: pa.RecordBatch, columns: Columns) -> None:
    """Make the rows of a small batch, and add them."""
    names = batch.schema.names
    made = [_values(column) for column in batch.columns]
    for line, values in enumerate(zip(*made, strict=True), before + 1):
        row = dict(zip(names, values, strict=True))
        reason = "not UTF-8" if _UNDECODABLE in values else rows.add(line, row, columns)
        if reason is not None:
            rows.reject(line, reason, _shown(row))


class _Undecodable:
    """In place of a value that is not UTF-8: Arrow does not look when it reads."""


_UNDECODABLE: Final = _Undecodable()


def _values(column: pa.Array) -> list[Any]:
    """The values of a column; one that is not UTF-8 costs only itself."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    elif _is_list(column.type) and pa.types.is_dictionary(column.type.value_type):
        column = _decoded_lists(column)
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_one(value) for value in column]


def _decoded_lists(lists: pa.Array) -> pa.Array:
    """Lists of numbered texts as lists of texts."""
    flat = lists.flatten().dictionary_decode()
    offsets = _offsets(lists) - int(_offsets(lists)[0])
    kept = pa.array(offsets.astype(np.int64), mask=np.append(np.asarray(lists.is_null()), False))
    return pa.LargeListArray.from_arrays(kept, flat)


def _one(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _UNDECODABLE


def _shown(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in row.items() if value is not _UNDECODABLE)
