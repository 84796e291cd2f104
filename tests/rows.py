"""Rows of a night for tests: sound ones, and the same with one broken cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tasks.intake import ROWS


def table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows with every column that a test does not name filled in; lines are numbered from 1."""
    return pa.Table.from_pylist([row_of(line, **row) for line, row in enumerate(rows, 1)], ROWS)


def row_of(line: int, **given: Any) -> dict[str, Any]:
    """One row of kind pair, with what is given."""
    row = {
        "query": None,
        "document": None,
        "negatives": [],
        "score": None,
        "slice": None,
        "kind": "pair",
        "object": "pairs/a.jsonl",
        "line": line,
        "commit": 1,
    }
    return row | given


def sound_rows(n: int = 200) -> list[dict[str, Any]]:
    """Rows that pass every critical check: triplets, scored pairs, golden ones, and a further document."""
    rows: list[dict[str, Any]] = [
        {
            "query": f"How do I repair pump number {i}?",
            "document": f"To repair pump number {i}, close the valve and replace the seal.",
            "negatives": [f"Pump number {i} is painted blue."] if i % 3 == 0 else [],
            "score": 0.9 if i % 3 == 1 else None,
        }
        for i in range(n)
    ]
    rows.append({"query": "Who made the pump?", "document": "The pump was made by Smith.", "kind": "golden"})
    rows.append({"document": "Valves are closed clockwise.", "kind": "corpus"})
    return rows


def broken_cells() -> Iterator[tuple[str, str, pa.Table]]:
    """Each critical check about cells: what is broken, the check that must see it, and sound rows with that cell."""
    corpus = len(sound_rows()) - 1
    long_query, long_text = "why " * 1_001, "pump " * 20_001
    cells: list[tuple[str, str, int, dict[str, Any]]] = [
        ("query missing", "query_present", 5, {"query": None}),
        ("query empty", "query_not_blank", 5, {"query": ""}),
        ("query of no-break spaces", "query_not_blank", 5, {"query": "\u00a0\u3000\t"}),
        ("query of zero-width spaces", "query_not_blank", 5, {"query": "\u200b\ufeff"}),
        ("query too long", "query_length_within_bounds", 5, {"query": long_query}),
        ("document missing", "document_present", 5, {"document": None}),
        ("document blank", "document_not_blank", 5, {"document": " \n"}),
        ("document too long", "document_length_within_bounds", 5, {"document": long_text}),
        ("query is document", "query_differs_from_document", 5, {"document": " How do I repair pump number 5? "}),
        ("golden document blank", "document_not_blank", 200, {"document": ""}),
        ("negative missing", "negative_present", 6, {"negatives": [None]}),
        ("negative blank", "negative_not_blank", 6, {"negatives": ["sound", " "]}),
        ("negative too long", "negative_length_within_bounds", 6, {"negatives": [long_text]}),
        (
            "negative is document",
            "negative_differs_from_document",
            6,
            {"negatives": ["sound", "To repair pump number 6, close the valve and replace the seal."]},
        ),
        ("score over 1", "score_within_0_and_1", 7, {"score": 1.0001}),
        ("score under 0", "score_within_0_and_1", 7, {"score": -0.0001}),
        ("score not a number", "score_within_0_and_1", 7, {"score": float("nan")}),
        ("score infinite", "score_within_0_and_1", 7, {"score": float("-inf")}),
        ("corpus document missing", "corpus_document_present", corpus, {"document": None}),
        ("corpus document blank", "corpus_document_not_blank", corpus, {"document": "\x00"}),
        ("corpus document too long", "corpus_document_length_within_bounds", corpus, {"document": long_text}),
    ]
    for what, check, place, cell in cells:
        rows = sound_rows()
        rows[place] = rows[place] | cell
        yield what, check, table(rows)


BROKEN_CELLS = list(broken_cells())
