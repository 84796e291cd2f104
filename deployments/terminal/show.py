"""How outcomes and the ledger look in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table

from deployments.terminal.text import escape
from tasks.config import METRIC_LABELS

if TYPE_CHECKING:
    from tasks.config import Delta, GuardResult, Outcome
    from tasks.parsing import Rejected
    from tasks.registry import Change
    from tasks.trial import Trial

_COLOURS: Final = {
    "promoted": "green",
    "held": "yellow",
    "skipped": "cyan",
    "regressed": "red",
    "blocked": "red",
    "failed": "red",
}


def outcome(found: Outcome) -> RenderableType:
    """The verdict with its reasons, the scores of both sides with the differences, and the seconds of each step."""
    parts: list[RenderableType] = []
    if found.candidate and found.candidate.scores:
        parts.append(scores(found))
    if found.guards:
        parts += ["", guards(found.guards), ""]
    if found.seconds:
        parts.append("Seconds    " + ", ".join(f"{escape(name)} {taken:.1f}" for name, taken in found.seconds.items()))
    parts.append(f"Verdict    [bold {_COLOURS[found.verdict]}]{found.verdict}[/]  (run {escape(found.run_id)})")
    parts += [f"           {escape(reason)}" for reason in found.reasons]
    if found.index:
        parts.append(f"Index      {found.index}")
    return Group(*parts)


def scores(found: Outcome) -> Table:
    """Metric by metric: what served, the candidate, and the difference with its interval."""
    served = (found.production.version if found.production else None) or "base model"
    table = _table("metric", served, "candidate", "difference", "interval")
    before = found.production.scores if found.production else {}
    after = found.candidate.scores if found.candidate else {}
    for name, label in METRIC_LABELS.items():
        if name in before and name in after:
            delta = found.deltas.get(name)
            figures = f"{before[name]:.3f}", f"{after[name]:.3f}", f"{after[name] - before[name]:+.3f}"
            table.add_row(label, *figures, _interval(delta))
    return table


def guards(results: Iterable[GuardResult]) -> Table:
    """What each guard set says of the candidate, metric by metric."""
    table = _table("guard set", "metric", "queries", "before", "after", "difference", "interval", "result")
    for result in results:
        queries = f"{result.queries:,}" if result.queries else ""
        for name, delta in result.deltas.items():
            figures = f"{result.before[name]:.3f}", f"{result.after[name]:.3f}", f"{delta.value:+.3f}"
            row = (METRIC_LABELS[name], queries, *figures, _interval(delta), result.verdict)
            table.add_row(escape(result.name), *row)
        if not result.deltas:
            table.add_row(escape(result.name), "", queries, "", "", "", "", result.verdict)
    return table


def trial(found: Trial) -> RenderableType:
    """Base and fine-tuned model side by side, what a night would say to it, and how far to trust it."""
    table = _table("metric", "base model", "fine-tuned", "difference", "interval")
    for name, label in METRIC_LABELS.items():
        delta = found.decision.deltas.get(name)
        before, after = found.base[name], found.tuned[name]
        table.add_row(label, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}", _interval(delta))
    held_out = (
        "the split of a night"
        if found.folds == 1
        else f"{found.folds} models, each tested on the queries that it was not trained on"
    )
    lines = [
        f"Tested     {found.queries:,} queries among {found.documents:,} documents ({held_out})",
        f"Trained    on {found.trained:,} rows, {found.steps:,} step{'s' * (found.steps != 1)}",
        f"Verdict    [bold {_COLOURS[found.decision.verdict]}]{found.decision.verdict}[/], by the rule of a night",
        *(f"           {escape(reason)}" for reason in found.decision.reasons),
        f"Guidance   {escape(found.guidance)}",
        *(f"Note       {escape(text)}" for text in (*found.checks.warnings, *found.cautions)),
    ]
    seen = [
        f"Note       {result.trained:,} of the {result.queries:,} queries of the guard set {escape(result.name)} are "
        "trained on, so it guards less than it seems to."
        for result in found.guards
        if result.trained
    ]
    guarded: list[RenderableType] = [guards(found.guards), ""] if found.guards else []
    return Group(table, "", *guarded, *lines, *seen)


def ledger(changes: Iterable[Change]) -> Table:
    """Every change of production, the latest first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "version", "when (UTC)", "what", "index", "by", "Recall@10", "MRR", "reason"):
        table.add_column(heading, no_wrap=heading == "version")  # for copying: never cut
    for change in sorted(changes, key=lambda change: -change.promotion):
        figures = (f"{change.scores[name]:.3f}" if name in change.scores else "" for name in ("recall_at_10", "mrr"))
        table.add_row(
            str(change.promotion), escape(change.version or "base model"), f"{change.at:%Y-%m-%d %H:%M}",
            escape(change.action), change.index,
            escape(change.who), *figures, escape(change.reason),
        )  # fmt: skip
    return table


def runs(outcomes: Iterable[Outcome]) -> Table:
    """How runs ended, in the order in which they come."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("run", "verdict", "commit", "Recall@10", "MRR", "reasons"):
        table.add_column(heading, min_width=25 if heading == "run" else None)  # a run id is for copying: never cut
    for found in outcomes:
        after = found.candidate.scores if found.candidate else {}
        figures = (f"{after[name]:.3f}" if name in after else "" for name in ("recall_at_10", "mrr"))
        verdict = f"[{_COLOURS[found.verdict]}]{found.verdict}[/]"
        table.add_row(escape(found.run_id), verdict, str(found.commit), *figures, escape("; ".join(found.reasons)))
    return table


def rejected(rows: Iterable[Rejected]) -> Table:
    """How often each reason was given, the most frequent first, and where it was given first."""
    counts: Counter[str] = Counter()
    first: dict[str, Rejected] = {}
    for row in rows:
        counts[row.reason] += 1
        first.setdefault(row.reason, row)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("rows", "reason", "first in", "text"):
        table.add_column(heading)
    for reason, count in counts.most_common():
        row = first[reason]
        table.add_row(str(count), escape(reason), escape(f"{row.object}:{row.line}"), escape(row.text[:80]))
    return table


def _interval(delta: Delta | None) -> str:
    """The bounds of a change, if they are known."""
    if delta is None:
        return ""
    return f"{delta.low:+.3f} to {delta.high:+.3f} at {100 * delta.confidence:.4g}%"


def _table(first: str, *figures: str) -> Table:
    """A table of figures, with a name before them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first)
    for heading in figures:
        table.add_column(heading, justify="right")
    return table


def to(console: Console, found: RenderableType) -> None:
    """Print, with an empty line before."""
    console.print()
    console.print(found)
