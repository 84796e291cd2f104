"""The page of the benchmarks, `docs/benchmarks.md` with its plots, made from `docs/benchmarks.json` alone.

`python -m tests.benchmarks.page` makes it anew.
"""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks import report
from tests.benchmarks.report import Measured, Result

DOCS = Path(__file__).parents[2] / "docs"
DATA = DOCS / "benchmarks.json"
PAGE = DOCS / "benchmarks.md"

SUBJECTS = {
    "intake": "Reading, parsing, and a night with nothing new",
    "checks": "Checking new rows",
    "training": "Fine-tuning",
    "query": "Both sides, or queries alone",
    "query_night": "A night of the query side",
    "encoding": "Scoring two models",
    "ranking": "Exact ranking",
    "gate": "How often the gate promotes",
    "audit": "How often a bad upload is named",
    "reindex": "Embedding documents for an index",
}
"""Benchmarks in the order of a night, and what each is about."""

INTRODUCTION = """\
# Benchmarks

Every figure stands beside a straightforward way of doing the same on the same data, and the ways took turns on one
machine: trust the ratios more than the times. *Times the first* is the median as a multiple of that of the first way;
*spread* is the lowest and the highest of the repetitions. What each way does is said at the top of its module in
`tests/benchmarks/`.

This page is made from [benchmarks.json](benchmarks.json). `python -m tests.benchmarks --publish` measures all of it
again and renews the page; with names (`intake`, `training`, ...) it measures only these.

All figures are of a CPU. No machine with a GPU was to be had for this version: how fast Ratchet is on one is not known.
"""

_COLOURS = ("#8a8f98", "#c58b2a", "#4c8fbf", "#2f7d4f", "#7a5ea8", "#b4546a")
_INK, _PAPER = "#1f2328", "#ffffff"


def _ordered(found: Mapping[str, Measured]) -> list[tuple[str, Measured]]:
    """The benchmarks in the order of a night; those without a subject last."""
    names = [name for name in SUBJECTS if name in found]
    return [(name, found[name]) for name in [*names, *sorted(set(found) - set(names))]]


def summary(found: Mapping[str, Measured]) -> str:
    """One table of all figures, with the goals that were met and the machine."""
    results = [result for _, one in _ordered(found) for result in one.results]
    goals = [result for result in results if result.met is not None]
    lines = [report.table(results), ""]
    if goals:
        lines.append(f"{sum(bool(result.met) for result in goals)} of {len(goals)} goals are met.")
    lines += [f"{name}: {_where(one)}" for name, one in _ordered(found)]
    return "\n".join(lines)


def _where(one: Measured) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in one.versions.items())
    return f"{one.at} UTC, {one.machine}, {versions}{', small sizes only' if one.quick else ''}"


def render(found: Mapping[str, Measured]) -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION] if found else [INTRODUCTION, "Nothing has been published yet.\n"]
    for name, one in _ordered(found):
        subject = SUBJECTS.get(name, name)
        parts.append(f"## {subject}\n\n![{subject}: the figures of the table as bars]({plot_path(name).name})\n")
        parts.append(f"{report.table(one.results)}\n")
        parts.extend(f"{note}\n" for note in one.notes)
        parts.append(f"Measured {_where(one)}.\n")
    return "\n".join(parts)


def plot_path(name: str) -> Path:
    """Where the plot of a benchmark lies."""
    return DOCS / f"benchmarks-{name}.svg"


def plot(results: Sequence[Result]) -> str:
    """One row of bars per question, one bar per way with its figure; lines show the spread. An SVG of its own paper."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    groups = [list(rows) for _, rows in itertools.groupby(results, lambda result: result.what)]
    heights = [len(rows) + 1.3 for rows in groups]
    with mpl.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, and compared by a test
            "svg.hashsalt": "ratchet",
            "text.color": _INK,
            "text.parse_math": False,
        }
    ):
        figure = Figure(figsize=(8.6, 0.26 * sum(heights)), layout="constrained", facecolor=_PAPER)
        axes = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for ax, rows in zip(axes, groups, strict=True):
            places = range(len(rows))
            longest = 100 if rows[0].unit == "%" else max(row.highest for row in rows) or 1
            ax.barh(places, [r.median for r in rows], color=[_COLOURS[i % len(_COLOURS)] for i in places], height=0.7)
            ax.hlines(places, [r.lowest for r in rows], [r.highest for r in rows], color=_INK, linewidth=1.2)
            for place, row in enumerate(rows):
                said = f"{report.number(row.median)} {row.unit}".strip()
                said += f"  ({report.times(row.ratio)} of the first)" if row.ratio is not None and place else ""
                ax.text(max(row.median, row.highest) + 0.01 * longest, place, said, va="center", fontsize=8)
            ax.set_yticks(places, [row.way for row in rows], fontsize=8, color=_INK)
            ax.set_title(rows[0].what, loc="left", fontsize=9, fontweight="bold", color=_INK)
            ax.set_xlim(0, 1.3 * longest)
            ax.set_xticks([])
            ax.invert_yaxis()
            ax.tick_params(length=0)
            ax.spines[["top", "right", "bottom"]].set_visible(False)
        body = io.StringIO()
        figure.savefig(body, format="svg", metadata={"Date": None, "Creator": None})
    drawn = "\n".join(line.rstrip() for line in body.getvalue().splitlines()) + "\n"
    # these names are hashes of places whose last bits the layout does not always compute alike
    for number, name in enumerate(dict.fromkeys(re.findall(r'id="(p[0-9a-f]{10})"', drawn))):
        drawn = drawn.replace(name, f"clip{number}")
    return drawn


def publish() -> None:
    """Write the page and its plots anew from the published results."""
    found = report.read(DATA)
    for name, one in found.items():
        plot_path(name).write_text(plot(one.results), encoding="utf-8")
    PAGE.write_text(render(found), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")


if __name__ == "__main__":
    publish()
