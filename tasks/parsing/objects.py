"""Bytes to rows: what people upload, one row at a time, so that a bad row never costs its neighbours.

Texts stay as they came: nothing is stripped, folded or guessed. A row that cannot be taken is named with object,
line and reason; an object of which no row can be taken is one such record, with line 0. What is decided for which
input is listed in docs/hostile-input.md, and tested from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa

from tasks.config import Limits
from tasks.parsing.csv_records import parse_csv
from tasks.parsing.json_lines import parse_json_lines
from tasks.parsing.parquet import parse_parquet
from tasks.parsing.rows import PARSED, Chunk, Rejected
from tasks.parsing.understood import Refusal, Understood
from tasks.parsing.unpacking import RefusedError

_NO_ROWS: Final = pa.RecordBatch.from_pylist([], PARSED)


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
    accepted = rejected = 0
    try:
        for chunk in _PARSERS[_ending(key)](key, body, caps):
            accepted += chunk.rows.num_rows
            rejected += len(chunk.rejected)
            yield chunk
    except RefusedError as error:
        yield _refusal(key, str(error))
    else:
        if accepted + rejected:
            yield Chunk(_NO_ROWS, [], Understood(key, _ending(key), {}, accepted=accepted, rejected=rejected))
        else:
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
    refusal = Refusal(reason, "", 1)
    understood = Understood(key, _ending(key), {}, rejected=refusal.rows, refusal=refusal)
    return Chunk(_NO_ROWS, [Rejected(key, 0, reason, "")], understood)


def _ending(key: str) -> str:
    """The end of a name that says how the rows are written, in small letters."""
    name = key.rpartition("/")[2].lower()
    return next((ending for ending in _PARSERS if name.endswith(ending)), "")


_PARSERS: Final[dict[str, Callable[[str, bytes, Limits], Iterator[Chunk]]]] = {
    ".jsonl": parse_json_lines,
    ".jsonl.gz": parse_json_lines,
    ".csv": parse_csv,
    ".csv.gz": parse_csv,
    ".parquet": parse_parquet,
}
"""How a name may end, and what reads such an object."""
