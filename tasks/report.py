"""A run's outcome for people: one Markdown page for the Prefect UI, one self-contained HTML page for the store.

Every text that may come from data or from outside is escaped on its way in: Jinja2 escapes HTML by itself,
`escape_markdown` does it for Markdown. Neither page asks another host for anything.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from tasks.config import Outcome

TARGETS: Final = {"recall_at_10": 0.90, "mrr": 0.70, "ndcg_at_10": 0.75, "map": 0.60}
"""What the design calls a good search, shown beside the scores; no verdict depends on it."""

LABELS: Final = {"recall_at_10": "Recall@10", "mrr": "MRR", "ndcg_at_10": "NDCG@10", "map": "MAP"}

HEADLINES: Final = {
    "promoted": "The candidate is better and now serves.",
    "held": "The candidate is not surely better; production stays.",
    "regressed": "The candidate is worse; production stays.",
    "blocked": "The data checks stopped the night; production stays.",
    "skipped": "There was nothing to fine-tune on; production stays.",
    "failed": "The run broke off; production stays.",
}


@dataclass(frozen=True)
class Material:
    """What the pages are made of, besides the outcome: rows of the checks' table and scores by dimension."""

    checks: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    by_dimension: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """Side ("candidate", "production") -> dimension -> metric -> mean."""


@dataclass(frozen=True)
class ScoreRow:
    """One metric of both sides, as text."""

    label: str
    production: str
    candidate: str
    difference: str
    target: str


def score_rows(outcome: Outcome) -> list[ScoreRow]:
    """The scores of both sides, metric by metric; empty where nothing was scored."""
    if outcome.candidate is None or outcome.production is None or not outcome.candidate.scores:
        return []
    rows = []
    for metric, label in LABELS.items():
        after, before = outcome.candidate.scores.get(metric), outcome.production.scores.get(metric)
        delta = outcome.deltas.get(metric)
        difference = "" if before is None or after is None else f"{after - before:+.4f}"
        if delta is not None:
            difference += f" ({delta.low:+.4f} to {delta.high:+.4f} at {delta.confidence:.0%})"
        rows.append(ScoreRow(label, _number(before), _number(after), difference, f"{TARGETS[metric]:.2f}"))
    return rows


def dimension_rows(material: Material) -> list[tuple[str, str, str, str]]:
    """Recall@10 at each Matryoshka dimension: dimension, production, candidate, storage of a million documents."""
    sides = material.by_dimension
    dims = sorted({int(dim) for side in sides.values() for dim in side}, reverse=True)
    return [
        (
            str(dim),
            _number(sides.get("production", {}).get(str(dim), {}).get("recall_at_10")),
            _number(sides.get("candidate", {}).get(str(dim), {}).get("recall_at_10")),
            f"{dim * 4 / 1000:.2f} GB",  # 1e6 vectors of float32
        )
        for dim in dims
    ]


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no link, no table cell or line broken out of.

    A backslash makes any ASCII punctuation plain (CommonMark 2.4). Entities would not do: the Prefect UI shows the
    numeric ones as they are written.
    """
    flat = " ".join(text.split())
    visible = "".join(c for c in flat if unicodedata.category(c) not in {"Cc", "Cf", "Cs"})
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", visible)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _render(template: str, outcome: Outcome, material: Material) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = escape_markdown
    return environment.get_template(template).render(_context(outcome, material))


def _context(outcome: Outcome, material: Material) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "headline": HEADLINES[outcome.verdict],
        "scores": score_rows(outcome),
        "dimensions": dimension_rows(material),
        "checks": material.checks,
        "candidate": (outcome.candidate and outcome.candidate.version) or "",
        "before": outcome.production_before or "the base model",
        "after": outcome.production_after or "the base model",
    }


def markdown(outcome: Outcome, material: Material | None = None) -> str:
    """The report as Markdown, for the Prefect UI."""
    return _render("report.md.jinja", outcome, material or Material())


def html(outcome: Outcome, material: Material | None = None) -> str:
    """The report as one HTML page that needs nothing else, in light or dark as the reader prefers."""
    return _render("report.html.jinja", outcome, material or Material())
