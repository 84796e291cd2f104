"""Which test queries a candidate changed most: what people look at first when a night surprises them."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Any, Final

import pyarrow.parquet as pq

from tasks.config import DECISIVE
from tasks.records import Band
from tasks.scoring.sides import CANDIDATE, PRODUCTION

BANDS: Final = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Bounds of the similarities that are shown together."""


@dataclass(frozen=True)
class Moved:
    """One test query, and its metrics by name with production (`before`) and with the candidate (`after`)."""

    query: str
    slice: str | None
    before: dict[str, float]
    after: dict[str, float]

    @property
    def change(self) -> tuple[float, float]:
        """Gain in reciprocal rank, then in Recall@10: the first says how far the first hit moved, at any depth."""
        return self.after["mrr"] - self.before["mrr"], self.after["recall_at_10"] - self.before["recall_at_10"]


def moved(per_query: bytes, count: int) -> tuple[list[Moved], list[Moved]]:
    """The queries that lost most and those that gained most, `count` of each at most, the largest change first.

    Args:
        per_query: What `scoring.per_query_table` made: `query`, `slice`, and `<side>_<metric>` columns.
        count: Most queries of each kind; queries that did not change are in neither.

    Equal changes keep the order of the table, which is the same at every run.
    """
    table = pq.read_table(BytesIO(per_query))
    columns = {name: table[name].to_pylist() for name in ("query", "slice")}
    sides = {side: _metrics(table, f"{side}_") for side in (PRODUCTION, CANDIDATE)}

    def row(place: int) -> Moved:
        before, after = ({name: float(values[place]) for name, values in sides[side].items()} for side in sides)
        return Moved(columns["query"][place], columns["slice"][place], before, after)

    rows = [row(place) for place in range(table.num_rows)]
    lost = sorted((found for found in rows if found.change < (0.0, 0.0)), key=lambda found: found.change)
    gained = sorted(
        (found for found in rows if found.change > (0.0, 0.0)), key=lambda found: found.change, reverse=True
    )
    return lost[:count], gained[:count]


def by_similarity(per_query: bytes) -> list[Band]:
    """The gain by how similar the most similar training query is, the least similar first; bands without queries too.

    A gain on near duplicates alone is memory. Empty where the table does not say how near training came.
    """
    table = pq.read_table(BytesIO(per_query))
    if "similarity" not in table.column_names:
        return []
    similarity = table["similarity"].to_numpy()
    gains = {
        name: table[f"{CANDIDATE}_{name}"].to_numpy() - table[f"{PRODUCTION}_{name}"].to_numpy() for name in DECISIVE
    }
    bands = []
    for low, high in pairwise(BANDS):
        chosen = (similarity >= low) & ((similarity < high) | (high == BANDS[-1]))
        means = {name: float(values[chosen].mean()) for name, values in gains.items()} if chosen.any() else {}
        bands.append(Band(low, high, int(chosen.sum()), means))
    return bands


def _metrics(table: Any, prefix: str) -> dict[str, list[float]]:
    """One side's columns by the name of the metric."""
    return {
        name.removeprefix(prefix): table[name].to_pylist() for name in table.column_names if name.startswith(prefix)
    }
