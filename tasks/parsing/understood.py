"""What the reader made of one object: its format, what each column is, and how many rows came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PARSER_VERSION: Final = 2
"""Raised whenever the same bytes may be read differently: an object refused by an older parser is read again."""

_COPYING: Final = "._copying_"
_MARKER: Final = "_$folder$"
_OTHER_SIDE_FILES: Final = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing of an object was taken."""

    reason: str
    remedy: str
    """What to do about it; empty where the reason says it."""
    rows: int
    """Rows that the object probably holds, at least 1."""


@dataclass(frozen=True, slots=True)
class Understood:
    """What the reader made of one object."""

    object: str
    format: str
    """Such as "JSON lines" or "CSV, separated by semicolons"."""
    used: dict[str, str]
    """Columns that were used, as they are written, with what each was taken for."""
    ignored: tuple[str, ...] = ()
    """Columns that were left alone, as they are written."""
    accepted: int = 0
    rejected: int = 0
    """Rows that were not taken; of a refused object, how many it probably holds."""
    relevant: int = 0
    """Rows that a judgement column calls relevant."""
    irrelevant: int = 0
    """Rows that a judgement column calls not relevant: negatives of their query."""
    unjudged: int = 0
    """Rows without a judgement, where others have one."""
    notes: tuple[str, ...] = ()
    """Decisions about columns, such as "score is 1.0 in every row, which is no score"."""
    refusal: Refusal | None = None
    """Set when nothing of the object was taken."""


def is_ignored(key: str) -> bool:
    """Whether a key is a side file of some program, which holds no rows.

    As in Hadoop and Spark, files and folders whose name begins with `.` or `_` (`_SUCCESS`, `_temporary/`,
    `_delta_log/`, `.part-0.crc`) hold no data, unless they are partitions (`_day=1/`). The first folder of the key is
    the store's own and is not looked at.
    """
    names = key.split("/")[1:]
    return any(map(_is_hidden, names)) or any(_is_side_file(name.lower()) for name in names[-1:])


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _is_side_file(name: str) -> bool:
    return name.endswith((_COPYING, _MARKER, ".crc")) or name in _OTHER_SIDE_FILES
