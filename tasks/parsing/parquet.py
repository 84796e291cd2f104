"""Rows of a Parquet object, read so that a small file that stands for a huge table stays small.

Parquet stores repeated values once: 12 KB can stand for 50 GB. Texts are therefore read as dictionaries (each
distinct value once, and a number per row), their lengths are summed before any row is made, and rows are made a few
megabytes at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.config import Limits
from tasks.parsing.columns import Columns, Plan, Survey
from tasks.parsing.names import JUDGEMENTS, LISTS, SCORES, TITLES, is_negatives, may_judge, plain
from tasks.parsing.parquet_pages import ColumnChunk, chunks, pages
from tasks.parsing.reading import Record
from tasks.parsing.unpacking import HARMLESS, RefusedError
from tasks.parsing.values import Column

Counts = npt.NDArray[np.int64]

_READ_ROWS: Final = 10_000
_READ_BYTES: Final = 32 << 20
"""Rows, and bytes of their texts in pages of the longest ones, that are read at once."""

_MADE_BYTES: Final = 4 << 20
"""Bytes of texts that are made at once."""

_GROUPS: Final = frozenset({"slice", "source", "labeller"})
"""Columns that name what a row belongs to."""

_MOST_COLUMNS: Final = 10_000
_MOST_INDEX_BYTES: Final = 1 << 24
"""What the index at the end of a file takes in memory is many times its size."""

_MOST_VALUES_A_ROW: Final = 16
"""Negatives per row on average: what a whole object of the most rows may hold."""

_MEMORY_BYTES: Final = 360 << 20
"""What the object and its largest page may take together. Most writers make pages of a megabyte, some of a hundred."""

_MOST_DOCUMENTS: Final = 1_000
"""Documents in the lists of one row."""

_COPIES: Final = 4
"""How often the values of a page are in memory while Arrow grows its arrays."""


@dataclass
class ParquetRows:
    """A Parquet object: rows are numbered from 1. A row group that cannot be read is one rejected row."""

    body: bytes
    limits: Limits
    format: str = "Parquet"
    every: bool = False
    """Whether rows hold every column of texts, numbers, dates or lists of texts, not only what bears on the meaning."""
    _file: pq.ParquetFile | None = None
    _steps: list[int] = field(default_factory=list)
    """For each row group, how many of its rows can be read at once."""
    _looked_at: list[str] = field(default_factory=list)
    """Columns that may bear on the meaning of a row."""
    left_out: list[str] = field(default_factory=list)
    """With `every`: columns that rows do not hold all the same, each with its type."""

    def survey(self, survey: Survey) -> None:
        """Look at every column that may bear on the meaning.

        Raises RefusedError when nothing can be taken: not Parquet, beyond a cap, or columns of other types.
        """
        try:
            self._survey(survey, _open(self.body))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise RefusedError(f"not readable as Parquet: {_first_line(error)}") from error

    def _survey(self, survey: Survey, plain_file: pq.ParquetFile) -> None:
        schema = plain_file.schema_arrow
        watched = dict(survey.watch(schema.names, texts=True))
        if not survey.pairs or not plain_file.metadata.num_rows:
            return  # the survey says what is missing; without a row there are no pages to look at
        texts = {plain(name) for pair in survey.pairs for name in (pair.query, pair.document) if name is not None}
        types = {name: schema.field(schema.names.index(name)).type for name in schema.names}
        for name, kind in types.items():
            if plain(name) in texts or _may_matter(name, kind):
                _check_type(name, kind, is_text=plain(name) in texts)
                self._looked_at.append(name)
            elif name in watched:
                watched[name].many = True  # what it holds is of no account
                if self.every and _is_plain(kind):
                    self._looked_at.append(name)
                elif self.every:
                    self.left_out.append(f"{name} ({str(kind)[:40]})")
        self._file, self._steps = _checked(self.body, plain_file, self._looked_at, self.limits)
        self._look({name: column for name, column in watched.items() if not column.many}, texts)

    def _look(self, watched: dict[str, Column], texts: set[str]) -> None:
        """Note the values of columns; of documents only whether they are lists."""
        for name in list(watched):
            if plain(name) in texts and _is_text(self._type(name)):
                watched[name].many, watched[name].texts = True, 1
                del watched[name]
        if not watched or self._file is None:
            return
        for group, step in enumerate(self._steps):
            try:
                for batch in self._file.iter_batches(step, row_groups=[group], columns=list(watched)):
                    for name, column in watched.items():
                        _note(column, _usual(batch.column(batch.schema.names.index(name))))
            except (pa.ArrowException, OSError):
                continue  # found again, and named, when the rows are made

    def _type(self, name: str) -> pa.DataType:
        if self._file is None:
            raise TypeError("the survey comes first")
        return self._file.schema_arrow.field(name).type

    def records(self, plan: Plan) -> Iterator[Record | None]:
        """Every row in order."""
        if self._file is None:
            return
        columns = plan.columns(self._file.schema_arrow.names)
        if isinstance(columns, str):
            raise RefusedError(columns, "each name may be there once")
        wanted = self._looked_at if self.every else _names(columns)
        line = 0
        try:
            for group, step in enumerate(self._steps):
                end = line + self._file.metadata.row_group(group).num_rows
                try:
                    for batch in self._file.iter_batches(step, row_groups=[group], columns=wanted):
                        made = [_usual(column) for column in batch.columns]
                        yield from _made(
                            pa.RecordBatch.from_arrays(made, batch.schema.names), line, columns, self.limits
                        )
                        line += batch.num_rows
                except (pa.ArrowException, OSError) as error:
                    yield line + 1, {}, f"the rest of its row group is not readable: {_first_line(error)}", ""
                line = end
        finally:
            pa.default_memory_pool().release_unused()  # the next object may be as large


def count_rows(body: bytes) -> int | None:
    """Rows of a Parquet object by its index; None where that cannot be read."""
    try:
        return int(_open(body).metadata.num_rows)
    except RefusedError:
        return None


def read_columns(body: bytes, wanted: AbstractSet[str], limits: Limits) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every row of a Parquet object by its number from 1, with those of the wanted columns that there are.

    Raises RefusedError when it cannot be read to its end, or is beyond a cap; a row that is not UTF-8 counts as such.
    """
    file = _open(body)
    names = [name for name in file.schema_arrow.names if name in wanted]
    if not names:
        raise RefusedError(f"has none of the columns {', '.join(sorted(wanted))}")
    if not file.metadata.num_rows:
        return
    try:
        file, steps = _checked(body, file, names, limits)
        number = 0
        for group, step in enumerate(steps):
            for batch in file.iter_batches(step, row_groups=[group], columns=names):
                for values in zip(*(_values(_usual(column)) for column in batch.columns), strict=True):
                    number += 1
                    if _UNDECODABLE in values:
                        raise RefusedError(f"row {number} is not UTF-8")
                    yield number, dict(zip(batch.schema.names, values, strict=True))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RefusedError(f"not readable as Parquet: {_first_line(error)}") from error


def _checked(body: bytes, opened: pq.ParquetFile, names: list[str], limits: Limits) -> tuple[pq.ParquetFile, list[int]]:
    """The file with its texts as dictionaries, and for each row group how many of its rows can be read at once.

    Raises RefusedError where some of its columns are beyond a cap, ValueError where its index is damaged.
    """
    groups = chunks(body)
    if len(groups) != opened.num_row_groups:
        raise ValueError("an index that is damaged")
    paths = _text_paths(opened, set(names), groups)
    file = pq.ParquetFile(pa.BufferReader(body), read_dictionary=paths, page_checksum_verification=True)
    steps = _check_pages(body, groups, opened.metadata.num_rows, set(names), limits)
    _check_lengths(file, steps, names, len(body), limits)
    return file, steps


def _open(body: bytes) -> pq.ParquetFile:
    """The file, by its index alone."""
    if int.from_bytes(body[-8:-4], "little") > _MOST_INDEX_BYTES:
        raise RefusedError(f"not readable as Parquet: an index of more than {_MOST_INDEX_BYTES} bytes")
    try:
        file = pq.ParquetFile(pa.BufferReader(body))
        if len(file.schema) > _MOST_COLUMNS:
            raise RefusedError(f"more than {_MOST_COLUMNS} columns")
        names = [plain(name) for name in file.schema_arrow.names]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RefusedError(f"not readable as Parquet: {_first_line(error)}") from error
    twice = [name for name in file.schema_arrow.names if names.count(plain(name)) > 1]
    if twice:
        raise RefusedError(f"{plain(twice[0])} is there twice", "each name may be there once")
    return file


def _may_matter(name: str, kind: pa.DataType) -> bool:
    """Whether the values of a column have to be looked at, to know what the rows mean."""
    name = plain(name)
    named = name in JUDGEMENTS or name in SCORES or name in TITLES or name in _GROUPS or is_negatives(name)
    may_tell = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or _is_text(kind)
    return named or name == "answer" or (may_judge(name) and may_tell)


def _note(column: Column, values: pa.Array) -> None:
    """Note the values of a column of one batch."""
    if _is_list(values.type):
        nulls = len(values) - (pc.sum(pc.greater(pc.fill_null(pc.list_value_length(values), 0), 0)).as_py() or 0)
        column.missing += nulls
        column.lists += len(values) - nulls
    elif pa.types.is_dictionary(values.type):
        column.missing += values.null_count
        for value in _values(values.dictionary):
            column.add(value)
    else:
        for value in _values(values):
            column.add(value)


def _usual(column: pa.Array) -> pa.Array:
    """Decimals as numbers, and every kind of list as one with offsets. Raises ArrowInvalid for damaged dictionaries."""
    numbered = column.flatten() if _is_list(column.type) else column
    if pa.types.is_dictionary(numbered.type):
        last = pc.min_max(numbered.indices).as_py()
        if last["max"] is not None and (last["max"] >= len(numbered.dictionary) or last["min"] < 0):
            raise pa.ArrowInvalid("a value that is not in its dictionary")
    if pa.types.is_decimal(column.type):
        return column.cast(pa.float64())
    if _is_list(column.type) and not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return _with_offsets(column)
    return column


def _with_offsets(lists: pa.Array) -> pa.Array:
    """Lists of fixed size and list views as lists with offsets; Arrow's own cast leaves some with one offset less."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0), dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    kept = pa.array(offsets, pa.int64(), mask=np.append(np.asarray(lists.is_null()), False))
    return pa.LargeListArray.from_arrays(kept, lists.flatten())


def _names(columns: Columns) -> list[str]:
    return [name for name in (columns.query, columns.document, *columns.others) if name is not None]


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:100]


def _value(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    kind = _value(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    views = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind) or views)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values of a column can be a document's metadata; lists of fractions are vectors, and cannot."""
    kind = _value(kind)
    if _is_list(kind):
        item = kind.value_type
        return _is_text(item) or bool(pa.types.is_integer(item) or pa.types.is_boolean(item))
    temporal = pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind)
    return _is_text(kind) or _is_number(kind) or temporal or bool(pa.types.is_boolean(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _check_type(name: str, kind: pa.DataType, *, is_text: bool) -> None:
    """Refuse a column that does not hold what it should: then no row of it does."""
    called, wanted = plain(name), "texts"
    of_texts = _is_list(kind) and _is_text(kind.value_type)
    if is_text:
        sound = _is_text(kind) or (of_texts and called in LISTS)
    elif called in SCORES:
        sound, wanted = _is_number(kind) or pa.types.is_null(kind), "numbers"
    elif is_negatives(called):
        sound = _is_text(kind) or pa.types.is_null(kind) or of_texts
    elif called in TITLES or called in _GROUPS:
        sound = _is_text(kind) or pa.types.is_null(kind)
    else:
        sound, wanted = not pa.types.is_nested(kind) and not pa.types.is_binary(kind), "judgements"
    if not sound:
        nested = _is_list(kind) and pa.types.is_struct(kind.value_type)
        remedy = (
            "write the texts of the objects, title first, as a list of texts, or write JSON lines" if nested else ""
        )
        raise RefusedError(f"column {called} holds {kind}, not {wanted}", remedy)


def _text_paths(file: pq.ParquetFile, names: AbstractSet[str], groups: Sequence[Sequence[ColumnChunk]]) -> list[str]:
    """Where the file keeps the texts that can be read as dictionaries; of lists, writers name the items differently.

    Arrow cannot read columns in a delta encoding as dictionaries; where the index does not tell, reading fails.
    """
    found = [file.schema.column(number) for number in range(len(file.schema))]
    delta = {chunk.path for group in groups for chunk in group if chunk.delta}
    return [
        column.path
        for column in found
        if column.path.split(".")[0] in names and column.physical_type == "BYTE_ARRAY" and column.path not in delta
    ]


def _check_pages(
    body: bytes, groups: Sequence[Sequence[ColumnChunk]], rows: int, names: AbstractSet[str], limits: Limits
) -> list[int]:
    """Refuse by what the file's index and its pages say of themselves, before anything is unpacked.

    Returns, for each row group, how many of its rows can be read at once.
    """
    if rows > limits.max_object_rows:
        raise RefusedError(f"more than {limits.max_object_rows} rows")
    unpacked = 0
    steps = []
    for group in groups:
        longest = 1
        for chunk in group:
            if chunk.path.split(".")[0] in names:
                size, longest_here = _check_column(body, chunk, limits)
                unpacked += size
                longest = max(longest, longest_here)
                _check_unpacked(unpacked, len(body), limits)
        steps.append(min(max(_READ_BYTES // longest, 1), _READ_ROWS))
    return steps


def _check_column(body: bytes, chunk: ColumnChunk, limits: Limits) -> tuple[int, int]:
    """Bytes that one column of one row group unpacks to, and bytes that each of its values takes at most.

    Where texts do not outgrow their bytes, the second is the average of the page with the longest ones: a number of
    values takes at most that many times as much, and two pages.
    """
    in_lists = "." in chunk.path
    most = max((_MEMORY_BYTES - len(body)) // _COPIES, _READ_BYTES)
    unpacked = values = longest = 0
    try:
        for page in pages(body, chunk.start, chunk.start + chunk.size):
            unpacked += page.unpacked
            values += page.values
            if chunk.delta:
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
    if in_lists and chunk.delta and longest * values > most:
        raise RefusedError("many negatives in a delta encoding: write them as PLAIN")
    return unpacked, 1 if in_lists else longest


def _check_lengths(file: pq.ParquetFile, steps: Sequence[int], names: list[str], size: int, limits: Limits) -> None:
    """Refuse by the length of all texts, without making them."""
    unpacked = 0
    for group, step in enumerate(steps):
        try:
            for batch in file.iter_batches(step, row_groups=[group], columns=names):
                unpacked += int(_row_bytes(batch.columns).sum())
                _check_unpacked(unpacked, size, limits)
        except (pa.ArrowException, OSError):
            continue  # found again, and named, when the rows are made


def _check_unpacked(unpacked: int, size: int, limits: Limits) -> None:
    if unpacked > limits.max_decompressed_bytes:
        raise RefusedError(f"unpacks to more than {limits.max_decompressed_bytes} bytes")
    if unpacked > max(HARMLESS, limits.max_compression_ratio * size):
        raise RefusedError(f"unpacks to more than {limits.max_compression_ratio:g} times its size")


def _row_bytes(columns: Sequence[pa.Array]) -> Counts:
    """Bytes of all texts of each row, of shape (n_rows,)."""
    total = np.zeros(len(columns[0]), dtype=np.int64)
    for column in map(_usual, columns):
        if _is_list(column.type):
            if _is_text(column.type.value_type):
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


def _list_lengths(batch: pa.RecordBatch) -> Counts:
    """Values in lists of each row, of shape (n_rows,)."""
    total = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if _is_list(column.type):
            total += np.diff(_offsets(column))
    return total


def _offsets(lists: pa.Array) -> Counts:
    return np.asarray(lists.offsets, dtype=np.int64)


def _made(batch: pa.RecordBatch, before: int, columns: Columns, limits: Limits) -> Iterator[Record | None]:
    """The rows of a batch, of which the first is number `before` + 1, a few megabytes at a time."""
    lengths = _row_bytes(batch.columns)
    overlong = lengths > limits.max_line_bytes
    crowded = _list_lengths(batch) > limits.max_negatives + _MOST_DOCUMENTS
    start = 0
    while start < batch.num_rows:
        if overlong[start] or crowded[start]:
            reason = f"longer than {limits.max_line_bytes} bytes" if overlong[start] else "too many texts in its lists"
            yield before + start + 1, {}, reason, ""
            start += 1
            continue
        # as many rows as stay within the bytes to be made at once
        size, end = 0, start
        while end < batch.num_rows and size <= _MADE_BYTES and not overlong[end] and not crowded[end]:
            size += int(lengths[end])
            end += 1
        yield from _cells(batch.slice(start, end - start), before + start, columns)
        yield None
        start = end


def _cells(batch: pa.RecordBatch, before: int, columns: Columns) -> Iterator[Record]:
    """The rows of a small batch."""
    names = batch.schema.names
    made = [_values(column) for column in batch.columns]
    for line, values in enumerate(zip(*made, strict=True), before + 1):
        row = dict(zip(names, values, strict=True))
        if _UNDECODABLE in values:
            shown = {name: value for name, value in row.items() if value is not _UNDECODABLE}
            yield line, shown, "not UTF-8", None
        else:
            yield line, row, columns, None


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
