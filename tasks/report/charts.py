"""The charts of a night's report, drawn by matplotlib: as SVG for the page, as PNG for the Prefect UI.

An SVG is put into the page itself and takes its colours from the page's style, so that it is readable in light and
dark. Series differ in shape as well as in colour. No pyplot: figures are objects, and nothing is left behind.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tasks.records import DevScore
    from tasks.report.material import NightRow

_INK: Final = "#1a1f27"
_SOFT: Final = "#4c5665"
_LINE: Final = "#d4d9e1"
_SERIES: Final = {"base": "#6b7280", "production": "#0b62a4", "candidate": "#b45309"}
"""Blue and orange are told apart in all common kinds of colour blindness; the base model is grey."""

_MARKS: Final = {"base": "D", "production": "o", "candidate": "^"}
_STYLES: Final = {"base": ":", "production": "--", "candidate": "-"}
_CLASSES: Final = {_INK: "ink", _SOFT: "soft", _LINE: "line", **{colour: name for name, colour in _SERIES.items()}}
_INCHES: Final = 5.8
_MOST_POINTS: Final = 400
"""Steps of a loss curve that are drawn; a longer one is averaged in runs, which also calms it."""


@dataclass(frozen=True)
class Chart:
    """A figure and what it shows, as text for those who cannot see it."""

    name: str
    title: str
    label: str
    figure: Figure

    def svg(self) -> str:
        """An `svg` element for a page that defines the colours as `--ink`, `--soft`, `--line` and per series."""
        drawn = self._saved("svg").decode()
        drawn = drawn[drawn.index("<svg") :]
        for colour, name in _CLASSES.items():
            drawn = drawn.replace(colour, f"var(--{name})")
        # several figures share one page: every id must be its own
        drawn = re.sub(r'\bid="', f'id="{self.name}-', drawn)
        drawn = re.sub(r"url\(#", f"url(#{self.name}-", drawn)
        drawn = re.sub(r'href="#', f'href="#{self.name}-', drawn)
        # its style would hold for the whole page, which says the same for charts alone
        drawn = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawn, count=1, flags=re.DOTALL)
        drawn = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", drawn, count=1)
        return drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(self.label, quote=True)}" ', 1)

    def png(self) -> bytes:
        """The figure on white."""
        return self._saved("png")

    def _saved(self, kind: str) -> bytes:
        from matplotlib import rc_context

        sink = io.BytesIO()
        # text stays text, in the page's own font; ids and dates do not change from one drawing to the next
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name, "font.family": "sans-serif"}):
            facts = {"Date": None, "Creator": None, "Format": None, "Type": None} if kind == "svg" else None
            self.figure.savefig(sink, format=kind, dpi=110, transparent=kind == "svg", metadata=facts)
        return sink.getvalue()


def scores(sides: Mapping[str, Mapping[str, float]], targets: Mapping[str, float], labels: Mapping[str, str]) -> Chart:
    """Each metric of each side as a mark, and the target as a line.

    Args:
        sides: "base", "production", "candidate" -> metric -> mean.
        targets: metric -> what a good search reaches.
        labels: metric -> its name for people; these metrics are drawn, in this order from the top.
    """
    figure = _figure(2.5)
    axes = _axes(figure, 111)
    places = {metric: len(labels) - 1 - row for row, metric in enumerate(labels)}
    for metric, place in places.items():
        axes.plot([targets[metric]] * 2, [place - 0.35, place + 0.35], color=_INK, linewidth=2)
    for side, means in sides.items():
        known = [metric for metric in places if metric in means]
        axes.plot(
            [means[metric] for metric in known], [places[metric] for metric in known],
            linestyle="", marker=_MARKS[side], markersize=8, color=_SERIES[side], label=side,
        )  # fmt: skip
    axes.plot([], [], color=_INK, linewidth=2, label="target")
    axes.set_yticks(list(places.values()), list(labels.values()))
    axes.set_xlim(0, 1)
    axes.grid(visible=True, axis="x", color=_LINE)
    _legend(axes)
    said = "; ".join(
        f"{side}: " + ", ".join(f"{labels[metric]} {means[metric]:.3f}" for metric in places if metric in means)
        for side, means in sides.items()
    )
    return Chart("scores", "Scores and targets", f"Scores of each model. {said}.", figure)


def dimensions(by_dimension: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Chart:
    """Recall@10 by the number of dimensions that are kept; `by_dimension` is side -> dimension -> metric -> mean."""
    figure = _figure(2.7)
    axes = _axes(figure, 111)
    every = sorted({int(dim) for found in by_dimension.values() for dim in found})
    for side, found in by_dimension.items():
        dims = sorted(int(dim) for dim in found)
        recalls = [found[str(dim)]["recall_at_10"] for dim in dims]
        axes.plot(
            dims, recalls, linestyle=_STYLES[side], marker=_MARKS[side], color=_SERIES[side], label=side, linewidth=1.8
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(dim) for dim in every])
    axes.minorticks_off()
    axes.set_xlabel("dimensions kept", color=_SOFT)
    axes.set_ylabel("Recall@10", color=_SOFT)
    axes.grid(visible=True, axis="y", color=_LINE)
    _legend(axes)
    return Chart(
        "dimensions", "Recall@10 when vectors are cut", "Recall@10 by dimension; the table below says it.", figure
    )


def training(losses: Sequence[float], dev: Sequence[DevScore], best_step: int) -> Chart:
    """Loss of every step, and beside it what dev scored; the step that was saved is marked."""
    figure = _figure(2.6)
    with_dev = len(dev) > 1
    left = _axes(figure, 121 if with_dev else 111)
    run = -(-len(losses) // _MOST_POINTS)
    means = [sum(losses[at : at + run]) / len(losses[at : at + run]) for at in range(0, len(losses), run)]
    left.plot(
        [at + run / 2 + 0.5 for at in range(0, len(losses), run)], means, color=_SERIES["candidate"], linewidth=1.5
    )
    left.set_xlabel("step", color=_SOFT)
    left.set_ylabel("loss", color=_SOFT)
    left.grid(visible=True, axis="y", color=_LINE)
    said = f"Loss from {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps."
    if with_dev:
        right = _axes(figure, 122)
        steps = [score.step for score in dev]
        for name, label, mark in (("recall_at_10", "Recall@10", "s"), ("mrr", "MRR", "v")):
            values = [getattr(score, name) for score in dev]
            colour = _SERIES["candidate" if name == "mrr" else "production"]
            right.plot(steps, values, color=colour, marker=mark, linewidth=1.5, label=f"dev {label}")
        right.axvline(best_step, color=_SOFT, linewidth=1, linestyle=":", label="saved")
        right.set_xlabel("step", color=_SOFT)
        right.grid(visible=True, axis="y", color=_LINE)
        _legend(right)
        said += f" Dev MRR from {dev[0].mrr:.3f} to {dev[-1].mrr:.3f}; step {best_step} was saved."
    return Chart("training", "Training", said, figure)


def history(nights: Sequence[NightRow]) -> Chart:
    """What served after each scored night, oldest first: rows of `recall_at_10`, `mrr` and `verdict`."""
    figure = _figure(2.5)
    axes = _axes(figure, 111)
    places = range(len(nights))
    for name, label, colour, mark in (
        ("recall_at_10", "Recall@10", _SERIES["production"], "o"),
        ("mrr", "MRR", _SERIES["candidate"], "^"),
    ):
        values = [getattr(night, name) for night in nights]
        axes.plot(places, values, color=colour, marker=mark, markersize=4, linewidth=1.5, label=label)
    promoted = [place for place in places if nights[place].verdict == "promoted"]
    for number, place in enumerate(promoted):
        axes.axvline(place, color=_SOFT, linewidth=1, linestyle=":", label=None if number else "promoted")
    axes.set_xlabel("scored nights, the latest on the right; each on its own test set", color=_SOFT)
    axes.set_xticks([])
    axes.grid(visible=True, axis="y", color=_LINE)
    _legend(axes)
    last = nights[-1]
    said = f"Over {len(nights)} nights with {len(promoted)} promotions; last Recall@10 {last.recall_at_10:.3f}."
    return Chart("history", "Production over nights", said, figure)


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, place: int) -> Axes:
    """Axes with a frame on two sides, in the page's ink."""
    axes: Axes = figure.add_subplot(place)
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_LINE)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.set_axisbelow(True)
    return axes


def _legend(axes: Axes) -> None:
    """Above the axes, where it covers nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=9, labelcolor=_INK,
        borderaxespad=0.1, handlelength=1.8, columnspacing=1.2,
    )  # fmt: skip
