"""`ratchet read`: what a night would understand of local files, without a store. Rows as JSON, one on a line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer
from rich.table import Table

from deployments.cli.common import UsageError, console, errors
from deployments.terminal.text import escape, is_safe

if TYPE_CHECKING:
    from tasks.parsing import Chunk, Understood

_SHOWN_COLUMNS: Final = 20


def as_json(row: Mapping[str, Any]) -> str:
    """An accepted row as one line of JSON: query, document, negatives, score, slice, object and line.

    Characters that a terminal would obey are written as JSON's escapes, which changes nothing of the text.
    """
    names = ("query", "document", "negatives", "score", "slice", "object", "line")
    return as_line({name: row[name] for name in names} | {"negatives": row["negatives"] or []})


def as_line(record: Mapping[str, Any]) -> str:
    """A record as one line of JSON that is safe to show."""
    text = orjson.dumps(record).decode()
    if is_safe(text):
        return text
    return "".join(char if is_safe(char) else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))


def read(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files, or folders of files. Under golden/ or corpus/ they are what they are in a store."),
    ],
    summary: Annotated[
        bool, typer.Option("--summary", help="A table, one line per file, instead of the rows.")
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option(
            "--as", help="pairs, golden or corpus. Default: by folder or name, else pairs.", show_default=False
        ),
    ] = None,
) -> None:
    """Print the rows that a night would take from local files, as JSON lines; what was understood goes to stderr."""
    from tasks.parsing import KINDS

    if kind is not None and kind not in KINDS:
        raise UsageError(f"--as takes {', '.join(KINDS)}, got {kind!r}")
    made: list[tuple[str, Understood | None]] = []
    for path in files:
        if not path.is_file() and not path.is_dir():
            raise UsageError(f"there is no file or folder {path}")
    for name, chunks in _objects(files, kind):
        made.append((name, _print(name, chunks, quiet=summary)))
    if not made:
        raise UsageError(f"there is no file in {', '.join(map(str, files))}")
    if summary:
        console.print(_table(made))
        for name, understood in made:
            for line in describe(understood) if understood is not None else ():
                console.print(f"{escape(name)}: {escape(line)}")
    if any(understood is not None and not _was_read(understood) for _, understood in made):
        raise typer.Exit(1)


def _objects(files: list[Path], kind: str | None) -> Iterator[tuple[str, Iterator[Chunk] | None]]:
    """Every file by its name, with what is read of it; None for the side files of other programs."""
    from tasks.config import Limits
    from tasks.parsing import is_ignored
    from tasks.trial import key_of, parse_file

    limits = Limits()
    for path in files:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                key = key_of(file, kind, path if path.is_dir() else None)
                yield str(file), None if is_ignored(key) else parse_file(file, key, limits)


def _print(name: str, chunks: Iterator[Chunk] | None, *, quiet: bool) -> Understood | None:
    """Rows to stdout, everything else to stderr."""
    if chunks is None:
        if not quiet:
            errors.print(f"{escape(name)}: ignored: a side file, which holds no rows")
        return None
    understood: Understood | None = None
    for chunk in chunks:
        understood = chunk.understood or understood
        if quiet:
            continue
        lines = [as_json({**row, "object": name}) + "\n" for row in chunk.rows.to_pylist()]
        sys.stdout.write("".join(lines))
        for row in chunk.rejected:
            if row.line:
                errors.print(f"{escape(name)}:{row.line}: {escape(row.reason)}")
    if understood is not None and not quiet:
        for line in describe(understood):
            errors.print(f"{escape(name)}: {escape(line)}")
    return understood


def describe(understood: Understood) -> Iterator[str]:
    """What was understood of a file, in a few lines."""
    if understood.refusal is not None:
        refusal = understood.refusal
        remedy = f"; {refusal.remedy}" if refusal.remedy else ""
        kind = f" ({understood.format})" if understood.format else ""
        yield f"refused{kind}: {refusal.reason}{remedy}; about {_rows(refusal.rows)} not read"
        return
    yield f"{understood.format}; columns used: {_used(understood)}; ignored: {_ignored(understood)}"
    yield f"{_rows(understood.accepted)} accepted, {understood.rejected:,} rejected{_judged(understood)}"
    yield from understood.notes


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _used(understood: Understood) -> str:
    return ", ".join(f"{name} as {role}" if name != role else name for name, role in understood.used.items()) or "none"


def _ignored(understood: Understood) -> str:
    names = [name or "(without a name)" for name in understood.ignored]
    more = f" and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else ""
    return (", ".join(names[:_SHOWN_COLUMNS]) or "none") + more


def _judged(understood: Understood) -> str:
    if not understood.relevant + understood.irrelevant + understood.unjudged:
        return ""
    return (
        f"; judged relevant {understood.relevant:,}, not relevant (negatives) {understood.irrelevant:,}, "
        f"without a judgement {understood.unjudged:,}"
    )


def _was_read(understood: Understood) -> bool:
    """Whether anything of a file was taken."""
    return understood.refusal is None and bool(understood.accepted)


def _table(made: list[tuple[str, Understood | None]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("accepted", "rejected", "judged not relevant"):
        table.add_column(heading, justify="right")
    table.add_column("file", overflow="fold")
    table.add_column("format", overflow="fold")
    for name, found in made:
        figures = (found.accepted, found.rejected, found.irrelevant) if found is not None else (0, 0, 0)
        kind = found.format if found is not None else "a side file, ignored"
        table.add_row(*(f"{figure:,}" for figure in figures), escape(name), escape(kind))
    return table
