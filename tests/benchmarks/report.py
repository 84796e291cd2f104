"""What benchmarks have in common: ways that take turns, medians with their spread, ratios, goals, one table, one file.

A benchmark is a module `bench_NAME` with a `main` that measures, and ends with `show(NAME, results, ...)`. Its results
are printed as a table and, with `--json FILE`, put into that file beside the results of other benchmarks.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

_GOAL = re.compile(r"(?P<sign>[≥≤]) (?P<figure>[\d.,]+|1/\d+)(?P<first> of the first)?")


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
    ratio: float | None = None
    """Median as a multiple of the median of the first way; None where the ways are not to be compared."""
    goal: str = ""
    """`≥ 400` or `≤ 10`, in `unit`; or of the ratio: `≤ 1/30 of the first`."""

    def __post_init__(self) -> None:
        """Refuse a goal that could not be judged."""
        if self.goal and not _GOAL.fullmatch(self.goal):
            raise ValueError(f"{self.goal!r} is no goal like '≥ 400' or '≤ 1/30 of the first' ({self.what})")

    @property
    def met(self) -> bool | None:
        """Whether the median meets the goal; None without a goal. NaN and a missing ratio meet none."""
        parts = _GOAL.fullmatch(self.goal)
        if parts is None:
            return None
        over, _, under = parts["figure"].replace(",", "").partition("/")
        limit = float(over) / float(under or 1)
        found = (self.ratio if self.ratio is not None else float("nan")) if parts["first"] else self.median
        return found >= limit if parts["sign"] == "≥" else found <= limit


@dataclass(frozen=True)
class Measured:
    """What one run of one benchmark came to."""

    results: list[Result]
    machine: str
    """Processor, cores, load and Python."""
    versions: dict[str, str]
    at: str
    """When it ended, UTC, to the minute."""
    quick: bool = False
    notes: list[str] = field(default_factory=list)
    """What a reader of the figures has to know, one sentence each."""


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """(wall, CPU of this process with all its threads)."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def seconds(run: Callable[[], object]) -> float:
    """Wall time of a call."""
    clock = Clock()
    run()
    return clock.read()[0]


# --- figures ---------------------------------------------------------------------------------------------


def summarise(
    what: str,
    figures: Mapping[str, Sequence[float]],
    *,
    unit: str,
    goals: Mapping[str, str] | None = None,
    compared: bool = True,
) -> list[Result]:
    """Medians and extremes of each way's figures, and their ratios to the first way unless not to be `compared`."""
    medians = {way: statistics.median(found) for way, found in figures.items()}
    first = next(iter(medians.values()))
    return [
        Result(
            what, way, unit, medians[way], min(found), max(found), len(found),
            ratio=medians[way] / first if compared and first else None, goal=(goals or {}).get(way, ""),
        )
        for way, found in figures.items()
    ]  # fmt: skip


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
    return summarise(what, figures, unit=unit, goals={list(ways)[-1]: goal})


# --- words -----------------------------------------------------------------------------------------------


def machine() -> str:
    """Processor, cores, load and Python, in one line."""
    load = os.getloadavg()[0]
    return f"{_processor()}, {os.cpu_count()} cores, load {load:.1f} at the end, Python {platform.python_version()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| what | way | median | spread | times the first | goal | met |", "|---|---|---:|---|---:|---|---|"]
    before = ""
    for r in results:
        what, before = ("" if r.what == before else r.what), r.what
        spread = f"{number(r.lowest)} to {number(r.highest)}" if r.repetitions > 1 and r.lowest != r.highest else ""
        cells = [what, r.way, f"{number(r.median)} {r.unit}".strip(), spread, times(r.ratio), r.goal, _MET[r.met]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_MET = {None: "", True: "yes", False: "**no**"}


def number(value: float) -> str:
    """Three digits that count, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(ratio: float | None) -> str:
    """A ratio as people say it: 3.9 times, 1/35."""
    if ratio is None:
        return ""
    return f"1/{1 / ratio:.3g}" if 0 < ratio < 0.5 else f"{ratio:.3g}"


# --- one file --------------------------------------------------------------------------------------------


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark understands: `--quick`, and `--json FILE`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: does it still run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the results into this file as well")
    return parser


def show(
    name: str,
    results: Sequence[Result],
    chosen: argparse.Namespace,
    *,
    packages: Sequence[str],
    notes: Sequence[str] = (),
) -> None:
    """Print the table, the notes and the machine, and put all of it into the file that was chosen, if one was.

    Args:
        name: of the benchmark, `intake` for `bench_intake`.
        results: in the order in which they are to be read.
        chosen: what `arguments` parsed.
        packages: whose versions matter here.
        notes: one sentence each.
    """
    measured = Measured(
        # goals are of full sizes: a small run neither meets nor misses them
        results=[replace(result, goal="") if chosen.quick else result for result in results],
        machine=machine(),
        versions={package: importlib.metadata.version(package) for package in packages},
        at=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        quick=chosen.quick,
        notes=list(notes),
    )
    versions = ", ".join(f"{package} {version}" for package, version in measured.versions.items())
    sys.stdout.write("\n".join([table(measured.results), "", *notes, f"{measured.machine}, {versions}", ""]))
    if chosen.json is not None:
        write(chosen.json, read(chosen.json) | {name: measured})


def read(path: Path) -> dict[str, Measured]:
    """Every benchmark in a file, by name; none where there is no file."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Measured(**one | {"results": [Result(**result) for result in one["results"]]})
        for name, one in found.items()
    }


def write(path: Path, found: Mapping[str, Measured]) -> None:
    """Write every benchmark into a file, in the order of their names, in the place of what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = json.dumps({name: asdict(found[name]) for name in sorted(found)}, indent=1, ensure_ascii=False)
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(body + "\n", encoding="utf-8")
    beside.replace(path)
