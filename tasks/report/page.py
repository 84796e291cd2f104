"""A run's outcome for people: one Markdown page for the Prefect UI, one self-contained HTML page for the store.

Every text that may come from data or from outside is escaped on its way in: Jinja2 escapes HTML by itself,
`escape_markdown` does it for Markdown. Neither page asks another host for anything.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from tasks.config import DECISIVE, METRIC_LABELS, TARGETS, Delta, GuardResult, Outcome
from tasks.records import Candidate, Trained
from tasks.report import charts
from tasks.report.index import index_rows
from tasks.report.material import Material
from tasks.report.messages import cut

_LINE: Final = 500
"""Characters of a reason or a name that are shown."""

_REASONS: Final = 20
_LANGUAGES: Final = 5

_HEADLINES: Final = {
    "promoted": "The candidate is better and now serves.",
    "held": "The candidate is not significantly better; production stays.",
    "regressed": "The candidate is worse; production stays.",
    "blocked": "The night was blocked; production stays.",
    "skipped": "There was nothing to fine-tune on; production stays.",
    "failed": "The run broke off; production stays.",
}


def _headline(outcome: Outcome) -> str:
    """The verdict in one sentence. That production stays is said only where it did."""
    bounds = [outcome.deltas[name].low for name in DECISIVE if name in outcome.deltas]
    better = outcome.verdict == "held" and len(bounds) == len(DECISIVE) and min(bounds) > 0
    text = "The candidate scores better, but is held; production stays." if better else _HEADLINES[outcome.verdict]
    if not outcome.production_known:
        return text.replace("production stays", "what serves could not be read")
    if outcome.verdict == "promoted" or outcome.production_before == outcome.production_after:
        return text
    return text.replace("production stays", "production changed while it ran")


@dataclass(frozen=True)
class ScoreRow:
    """One metric of both sides, as text."""

    label: str
    base: str
    production: str
    candidate: str
    difference: str
    target: str


def score_rows(outcome: Outcome) -> list[ScoreRow]:
    """The scores of both sides, metric by metric; empty where nothing was scored."""
    if outcome.candidate is None or outcome.production is None or not outcome.candidate.scores:
        return []
    rows = []
    for metric, label in METRIC_LABELS.items():
        after, before = outcome.candidate.scores.get(metric), outcome.production.scores.get(metric)
        delta = outcome.deltas.get(metric)
        difference = "" if before is None or after is None else f"{after - before:+.4f}"
        if delta is not None:  # without queries that nearly repeat a training query
            difference = _difference(delta)
        start = outcome.base.scores.get(metric) if outcome.base else None if outcome.production.version else before
        target = f"{TARGETS[metric]:.2f}" + ("" if after is None else "\u00a0✓" if after >= TARGETS[metric] else "")
        rows.append(ScoreRow(label, _number(start), _number(before), _number(after), difference, target))
    return rows


@dataclass(frozen=True)
class GuardRow:
    """One decisive metric on a guard set, as text; a set that was not judged has one row without figures."""

    name: str
    metric: str
    queries: str
    before: str
    after: str
    difference: str
    verdict: str


def _guard_rows(results: Sequence[GuardResult]) -> list[GuardRow]:
    """What each guard set says, in the order of the outcome."""
    rows = []
    for result in results:
        queries = f"{result.queries:,}" if result.queries else ""
        for metric, delta in result.deltas.items():
            figures = (_number(result.before.get(metric)), _number(result.after.get(metric)), _difference(delta))
            rows.append(GuardRow(result.name, METRIC_LABELS[metric], queries, *figures, result.verdict))
        if not result.deltas:
            rows.append(GuardRow(result.name, "", queries, "", "", "", result.verdict))
    return rows


def dimension_rows(material: Material) -> list[tuple[str, ...]]:
    """Recall@10 at each dimension: dimension, base, production, candidate, storage of a million documents."""
    # the base model is scored apart from production only where production is another model
    sides = {"base": material.by_dimension.get("production", {}), **material.by_dimension}
    dims = sorted({int(dim) for side in sides.values() for dim in side}, reverse=True)
    return [
        (
            str(dim),
            *(
                _number(sides.get(side, {}).get(str(dim), {}).get("recall_at_10"))
                for side in ("base", "production", "candidate")
            ),
            f"{dim * 4 / 1000:.2f} GB",  # 1e6 vectors of float32
        )
        for dim in dims
    ]


def _data_rows(outcome: Outcome, material: Material) -> list[tuple[str, str]]:
    """What the night had to work with: counts, lengths in characters, languages of a sample, each as two texts."""
    rows = [(name.replace("_", " ").capitalize(), f"{count:,}") for name, count in outcome.counts.items()]
    for kind in ("query", "document"):
        median, p95 = (material.measures.get(f"{kind}_chars_{label}") for label in ("median", "p95"))
        if median is not None and p95 is not None:
            rows.append((f"Characters of a {kind}", f"median {median:,.0f}, 95th percentile {p95:,.0f}"))
    if material.languages:
        shares = sorted(material.languages.items(), key=lambda found: -found[1])[:_LANGUAGES]
        rows.append(("Languages of a sample", ", ".join(f"{name} {share:.0%}" for name, share in shares)))
    return rows


def _training_rows(material: Material) -> list[tuple[str, str]]:
    """How the candidate was trained, each as two texts; empty where nothing was trained."""
    trained = material.training
    if trained is None:
        return []
    why = trained.started_why if isinstance(trained, Candidate) else trained.started_from
    stopped = f": {trained.stopped}" if trained.stopped else ""
    return [
        ("Started from", why),
        *([("Trained", "the query side alone")] if trained.side == "query" else []),
        ("Steps", f"{trained.steps:,} of {trained.planned_steps:,}{stopped}"),
        ("Saved", f"the model after step {trained.best_step:,}"),
        ("Rows", ", ".join(f"{count:,} {loss}" for loss, count in trained.rows.items())),
        ("Mined negatives", f"{trained.mined:,}"),
        ("Computed", _computed(trained)),
        *([("Documents cut", str(trained.cuts))] if trained.cuts else []),
        *(("Warning", warning) for warning in (trained.cuts.warnings if trained.cuts else [])),
        ("Resumed", f"from step {trained.resumed:,}" if trained.resumed else "no"),
        (
            f"Distance from {'its start' if trained.side == 'query' else 'the base model'}",
            f"{trained.distance_from_base:.4f} of the weights' length",
        ),
        *([("Averaged", _averaged(trained))] if trained.averaged else []),
    ]


def _averaged(trained: Trained) -> str:
    """Which average of weights was saved, and what dev said of each."""
    tried = ", ".join(f"{alpha}: {mrr:.4f}" for alpha, mrr in trained.averaged.items())
    return f"{trained.alpha:g} of the way from the starting weights (dev MRR {tried})"


def _computed(trained: Trained) -> str:
    """In which precision, whether packed, and on what: a GPU that was not used would be missed here."""
    return ", ".join(filter(None, [trained.precision, "packed" if trained.packed else "padded", trained.device]))


def charts_of(outcome: Outcome, material: Material) -> list[charts.Chart]:
    """The charts that this night has something to show on, in the order of the page.

    A chart that cannot be drawn is left out and logged: production may have changed already, and people must still be
    told.
    """
    wanted: list[Callable[[], charts.Chart]] = []
    if score_rows(outcome) and outcome.candidate and outcome.production:
        sides = {"base": outcome.base, "production": outcome.production, "candidate": outcome.candidate}
        if outcome.production.version is None:  # then production is the base model
            sides["base"] = None
        means = {side: model.scores for side, model in sides.items() if model}
        wanted.append(lambda: charts.scores(means, TARGETS, METRIC_LABELS))
    if any(len(found) > 1 for found in material.by_dimension.values()):
        wanted.append(lambda: charts.dimensions(material.by_dimension))
    trained = material.training
    if trained is not None and len(trained.losses) > 1:
        wanted.append(partial(charts.training, trained.losses, trained.dev, trained.best_step))
    if len(material.history) > 1:
        wanted.append(lambda: charts.history(material.history))
    drawn = []
    for draw in wanted:
        try:
            drawn.append(draw())
        except Exception:  # whatever a drawing library raises, the verdict is worth more than a picture
            logging.getLogger(__name__).exception("a chart of run %s could not be drawn", outcome.run_id)
    return drawn


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no link, no table cell or line broken out of.

    A backslash makes any ASCII punctuation plain (CommonMark 2.4). Entities would not do: the Prefect UI shows the
    numeric ones as they are written.
    """
    flat = " ".join(text.split())
    visible = "".join(c for c in flat if unicodedata.category(c) not in {"Cc", "Cf", "Cs"})
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", visible)


def _difference(delta: Delta) -> str:
    """A change with its bounds."""
    return f"{delta.value:+.4f} ({delta.low:+.4f} to {delta.high:+.4f} at {100 * delta.confidence:.4g}%)"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _render(template: str, context: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "md": escape_markdown,
        "cut": lambda value, longest=_LINE: cut(str(value), longest),
        "number": _number,
        "signed": _signed,
    }
    return environment.get_template(template).render(context)


def _context(outcome: Outcome, material: Material) -> dict[str, Any]:
    unnamed = "the base model" if outcome.production_known else "not known"
    return {
        "outcome": outcome,
        "reasons": outcome.reasons[:_REASONS],
        "more_reasons": max(0, len(outcome.reasons) - _REASONS),
        "headline": _headline(outcome),
        "scores": score_rows(outcome),
        "guards": _guard_rows(outcome.guards),
        "dimensions": dimension_rows(material),
        "training": _training_rows(material),
        "index": index_rows(outcome, material.reindexing),
        "data": _data_rows(outcome, material),
        "material": material,
        "moved": vars(material.moved),
        "candidate": (outcome.candidate and outcome.candidate.version) or "none",
        "before": outcome.production_before or unnamed,
        "after": outcome.production_after or unnamed,
    }


def markdown(outcome: Outcome, material: Material | None = None) -> str:
    """The report as Markdown, for the Prefect UI: the page's tables without its charts and documents."""
    return _render("report.md.jinja", _context(outcome, material or Material()))


def html(outcome: Outcome, material: Material | None = None) -> str:
    """The report as one HTML page that needs nothing else, in light or dark as the reader prefers."""
    found = material or Material()
    drawn = {chart.name: {"title": chart.title, "svg": Markup(chart.svg())} for chart in charts_of(outcome, found)}  # noqa: S704 - drawn here, from numbers
    return _render("report.html.jinja", {**_context(outcome, found), "charts": drawn})
