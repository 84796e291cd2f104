"""What benchmarks have in common: ways that take turns, medians with their spread, ratios, the machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """One way of doing one thing: the median over the repetitions, and the extremes."""

    what: str
    way: str
    unit: str
    median: float
    lowest: float
    highest: float
    repetitions: int
    ratio: float
    """Median as a multiple of the median of the first way."""
    goal: str = ""


def compare(
    what: str, ways: Mapping[str, Callable[[], float]], *, unit: str, repetitions: int, goal: str = ""
) -> list[Result]:
    """Let the ways take turns, so that a busy machine slows all of them; each returns its figure in `unit`.

    The first way is what the others are compared with; `goal` is said of the last.
    """
    figures: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repetitions):
        for way, run in ways.items():
            figures[way].append(run())
    first = statistics.median(next(iter(figures.values())))
    return [
        Result(
            what, way, unit, median, min(found), max(found), repetitions,
            ratio=median / first if first else float("nan"), goal=goal if way == list(ways)[-1] else "",
        )
        for way, found in figures.items()
        for median in [statistics.median(found)]
    ]  # fmt: skip


def machine(*packages: str) -> str:
    """Processor, cores, load, Python and the versions of packages, in one line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    load = os.getloadavg()[0]
    return f"{_processor()}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, {versions}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| what | way | median | lowest to highest | times the first | goal |", "|---|---|---:|---|---:|---|"]
    lines += [
        f"| {r.what} | {r.way} | {_figure(r.median)} {r.unit} | {_figure(r.lowest)} to {_figure(r.highest)} "
        f"| {r.ratio:.2f} | {r.goal} |"
        for r in results
    ]
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(results: Sequence[Result], *, packages: Sequence[str], path: Path | None = None) -> None:
    """Print the table and the machine, and write both as JSON where a path is given."""
    where = machine(*packages)
    sys.stdout.write(f"{table(results)}\n\n{where}\n")
    if path is not None:
        path.write_text(json.dumps({"machine": where, "results": [asdict(result) for result in results]}, indent=2))
