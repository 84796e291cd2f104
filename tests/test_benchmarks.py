"""The benchmarks' figures: goals are judged, files merge, and the published page says what its file says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as run
from tests.benchmarks import page, report
from tests.benchmarks.report import Measured, Result


def result(median: float = 2.0, *, goal: str = "", ratio: float | None = 0.04) -> Result:
    """One way with these figures."""
    return Result("read <objects>", "Ratchet", "s", median, 1.0, 3.0, 3, ratio, goal)


def measured(*results: Result) -> Measured:
    """A benchmark with these results."""
    return Measured(list(results), "a machine", {"numpy": "1"}, "2026-01-01 00:00", notes=["One sentence."])


@pytest.mark.parametrize(
    ("goal", "median", "ratio", "met"),
    [
        ("≥ 400", 400.0, None, True),
        ("≥ 400", 399.9, None, False),
        ("≤ 1,536", 1_536.0, None, True),
        ("≤ 1,536", 1_537.0, None, False),
        ("≤ 1/30 of the first", 9.0, 1 / 30, True),
        ("≤ 1/30 of the first", 0.0, 0.034, False),
        ("≤ 1.3 of the first", 9.0, 1.29, True),
        ("≥ 400", float("nan"), None, False),
        ("≤ 10", float("nan"), None, False),
        ("≤ 1.3 of the first", 1.0, None, False),
        ("", 1.0, 1.0, None),
    ],
)
def test_a_goal_is_judged_by_the_figure_or_by_the_ratio(
    goal: str, median: float, ratio: float | None, met: bool | None
) -> None:
    """What cannot be compared meets no goal."""
    assert result(median, goal=goal, ratio=ratio).met is met


@pytest.mark.parametrize("goal", ["10 s", "> 10", "≤ fast", "≤ 10 of the second"])
def test_a_goal_that_nobody_could_judge_is_refused(goal: str) -> None:
    """Else it would be shown and never be missed."""
    with pytest.raises(ValueError, match="is no goal"):
        result(goal=goal)


def test_ways_take_turns_and_are_compared_with_the_first() -> None:
    """Medians 2 and 6, so 3 times the first; the goal is the last one's."""
    order: list[str] = []
    figures = {"plain": iter([1.0, 2.0, 9.0]), "ours": iter([6.0, 7.0, 5.0])}

    def way(name: str) -> float:
        order.append(name)
        return next(figures[name])

    ways = {"plain": lambda: way("plain"), "ours": lambda: way("ours")}
    plain, ours = report.compare("work", ways, unit="s", repetitions=3, goal="≤ 10")
    assert order == ["plain", "ours"] * 3
    assert (plain.median, plain.lowest, plain.highest, plain.ratio, plain.met) == (2.0, 1.0, 9.0, 1.0, None)
    assert (ours.median, ours.lowest, ours.highest, ours.ratio, ours.met) == (6.0, 5.0, 7.0, 3.0, True)


def test_results_are_kept_beside_those_of_other_benchmarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of some benchmarks replaces their results, and leaves the others'."""
    path = tmp_path / "new" / "found.json"
    chosen = report.arguments("").parse_args(["--json", str(path)])
    report.show("intake", [result(1.0)], chosen, packages=["numpy"], notes=["Said."])
    report.show("gate", [result(5.0, ratio=None)], chosen, packages=["numpy"])
    report.show("intake", [result(2.0, goal="≤ 1")], chosen, packages=["numpy"])
    found = report.read(path)
    assert {name: [one.median for one in kept.results] for name, kept in found.items()} == {
        "gate": [5.0],
        "intake": [2.0],
    }
    assert not found["intake"].results[0].met
    assert "| read <objects> | Ratchet | 2 s | 1 to 3 | 1/25 | ≤ 1 | **no** |" in capsys.readouterr().out


def test_benchmarks_are_named_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown name runs nothing; figures at small sizes are never published."""
    for arguments, said in ((["nothing"], "no benchmark is called nothing"), (["--quick", "--publish"], "--publish")):
        with pytest.raises(SystemExit) as ended:
            run.main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_every_benchmark_has_a_subject_on_the_page() -> None:
    """And there is no subject without one."""
    assert sorted(page.SUBJECTS) == run.NAMES


def test_the_page_shows_figures_goals_and_the_machine() -> None:
    """One table and one plot a benchmark, in the order of a night."""
    found = {"training": measured(result(goal="≤ 1/30 of the first")), "intake": measured(result(goal="≤ 10"))}
    shown = page.render(found)
    assert shown.index(page.SUBJECTS["intake"]) < shown.index(page.SUBJECTS["training"])
    assert "| ≤ 1/30 of the first | **no** |" in shown
    assert "1 of 2 goals are met" in page.summary(found)
    assert "One sentence." in shown
    assert "a machine" in shown
    texts = re.findall(r"<text[^>]*>(.*?)</text>", page.plot(found["intake"].results))
    assert sorted(texts) == ["2 s", "Ratchet", "read &lt;objects&gt;"]


def test_the_published_page_says_what_its_file_says() -> None:
    """Page and plots are made from the file, and nobody edits them by hand or forgets to renew them."""
    found = report.read(page.DATA)
    again = "make them anew: python -m tests.benchmarks.page"
    assert page.PAGE.read_text(encoding="utf-8") == page.render(found), again
    for name, one in found.items():
        assert page.plot_path(name).read_text(encoding="utf-8") == page.plot(one.results), again
        assert not one.quick
