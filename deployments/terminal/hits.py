"""What a search found, before and after, side by side in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from rich.table import Table

from deployments.terminal.text import escape

if TYPE_CHECKING:
    from tasks.index.comparison import Comparison, Side
    from tasks.index.targets import Hit

_CHARS: Final = 240
"""Characters of a document that are shown."""


def comparison(found: Comparison) -> Table:
    """One row per rank, one column per model; of the later one's documents it says where the earlier one had them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0), expand=True)
    table.add_column("", justify="right")
    sides = [side for side in (found.before, found.after) if side is not None]
    for side in sides:
        when = "" if found.before is None else "before: " if side is found.before else "after: "
        table.add_column(f"{when}{escape(side.model)}\n[dim]{escape(side.how)}[/]", ratio=1, overflow="fold")
    former = _ranks(found.before)
    for rank, hits in enumerate(zip_longest(*(side.hits for side in sides)), 1):
        *earlier, later = hits
        cells = [_cell(hit, "") for hit in earlier] + [_cell(later, _moved(later, rank, former))]
        table.add_row(str(rank), *cells)
    return table


def notes(found: Comparison) -> Iterator[str]:
    """What there is to say about the comparison, escaped."""
    yield from (f"[yellow]note[/]  {escape(note)}" for note in found.notes)


def _ranks(side: Side | None) -> dict[str, int] | None:
    return None if side is None else {hit.text: rank for rank, hit in enumerate(side.hits, 1)}


def _moved(hit: Hit | None, rank: int, former: dict[str, int] | None) -> str:
    if hit is None or former is None:
        return ""
    before = former.get(hit.text)
    if before == rank:
        return ""
    return f" [green]not among the first {len(former)} before[/]" if before is None else f" [cyan]was {before}[/]"


def _cell(hit: Hit | None, moved: str) -> str:
    if hit is None:
        return ""
    text = hit.text if len(hit.text) <= _CHARS else f"{hit.text[:_CHARS].rstrip()} ..."
    return f"[bold]{hit.score:.3f}[/]{moved}  {escape(text)}"
