"""What is on a Prefect server compared with what should be there, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

_LONGEST: Final = 120
"""Characters of a value that are shown."""


def changes(what: str, before: Any, after: Any) -> list[str]:
    """One line for every value that differs: `what: key.key: before -> after`. Nothing where there is none."""
    return [f"{what}: {line}" for line in _walk("", before, after)]


def _walk(where: str, before: Any, after: Any) -> Iterator[str]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}, key=str):
            yield from _walk(f"{where}.{key}" if where else str(key), before.get(key), after.get(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _walk(f"{where}[{place}]", old, new)
    else:
        yield f"{where}: {_shown(before)} -> {_shown(after)}"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, set | frozenset):
        value = sorted(value)
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
