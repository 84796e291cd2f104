"""The report: what it says, and that hostile texts stay texts."""

from __future__ import annotations

import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from tasks.config import Delta, Model, Outcome
from tasks.records import Reindexing
from tasks.report import Material, html, markdown, material
from tasks.report.index import index_rows
from tasks.report.page import dimension_rows, escape_markdown, score_rows
from tests import report_cases

HOSTILE = '<script>alert(1)</script> | [a](javascript:x) `b` ![i](http://evil/x.png)\n# head "quoted"'


def _outcome(**changes: object) -> Outcome:
    outcome = Outcome(
        run_id="20261123T033000Z-0123abcd",
        verdict="promoted",
        reasons=["Recall@10 rose"],
        commit=3,
        candidate=Model(version="abc", scores={"recall_at_10": 0.92, "mrr": 0.76, "ndcg_at_10": 0.8, "map": 0.7}),
        production=Model(version=None, scores={"recall_at_10": 0.73, "mrr": 0.5, "ndcg_at_10": 0.6, "map": 0.5}),
        deltas={"recall_at_10": Delta(value=0.19, low=0.12, high=0.26, confidence=0.99)},
        production_after="abc",
    )
    return outcome.model_copy(update=changes)


def _rendered(page: str) -> str:
    """Markdown as a browser gets it, by an implementation of CommonMark that lets HTML through."""
    return MarkdownIt("commonmark").enable("table").render(page)


def test_scores_are_shown_side_by_side_with_difference_interval_and_target() -> None:
    """0.73 -> 0.92 is +0.1900; a metric without an interval shows the difference alone."""
    rows = {row.label: row for row in score_rows(_outcome())}
    assert rows["Recall@10"].difference == "+0.1900 (+0.1200 to +0.2600 at 99%)"
    assert (rows["MRR"].production, rows["MRR"].candidate, rows["MRR"].difference) == ("0.5000", "0.7600", "+0.2600")
    assert rows["NDCG@10"].target == "0.75\u00a0✓"
    assert score_rows(_outcome(candidate=Model(version="abc", scores={"ndcg_at_10": 0.7})))[2].target == "0.75"


def test_a_night_without_scores_has_no_table() -> None:
    """Skipped and blocked nights show their reasons and nothing that looks like a score."""
    page = markdown(_outcome(verdict="skipped", candidate=None, production=None, deltas={}))
    assert "Recall@10 |" not in page
    assert "There was nothing to fine-tune on" in page


@pytest.mark.parametrize("render", [markdown, html])
def test_what_becomes_of_an_index_and_what_the_other_side_would_cost(render: object) -> None:
    """36,000 documents at 20 a second are half an hour; a night that promotes nothing leaves the index alone."""
    found = Reindexing("stays", 36_000, 20.0)
    rows = dict(index_rows(_outcome(index="stays"), found))
    assert rows["Index"] == "stays: documents have the vectors that they had"
    assert rows["A new version of both sides"] == "36,000 documents to encode, 0.5 h at the measured 20 a second"
    assert rows["One of the query side alone"] == "no document to encode"
    assert "every document has to be encoded again" in dict(index_rows(_outcome(index="moves"), found))["Index"]
    held = dict(index_rows(_outcome(verdict="held"), Reindexing("moves", 10, 20.0)))
    assert held["Index"] == "stays: nothing was promoted; the candidate's would have moved"
    assert held["A new version of both sides"] == "10 documents to encode, 0.0083 min at the measured 20 a second"
    page = render(_outcome(index="stays"), Material(reindexing=found))  # type: ignore[operator]
    assert "36,000 documents to encode" in (page if render is html else _rendered(page))
    assert index_rows(_outcome(), None) == []


@pytest.mark.parametrize("render", [markdown, html])
def test_hostile_texts_stay_texts(render: object) -> None:
    """Markup in reasons, guidance and check values never becomes an element, a link or an image."""
    checks = [{"check": HOSTILE, "severity": "critical", "result": "failed", "observed": HOSTILE}]
    outcome = _outcome(reasons=[HOSTILE], guidance=HOSTILE, reason=HOSTILE)
    page = render(outcome, Material(checks=checks))  # type: ignore[operator]  # both renderers take the same arguments
    shown = page if render is html else _rendered(page)
    assert "<script" not in shown
    assert "<img" not in shown
    assert "<a " not in shown
    assert "alert(1)" in shown


def test_html_asks_no_other_host() -> None:
    """No address of another host, and a policy that would refuse it."""
    page = html(_outcome())
    assert not re.search(r"src=", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)', page))
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    "text",
    ["a|b", "*x*", "_x_", "`x`", "[x](y)", "<b>", "a\nb", "\u202egnp", "https://x.y", "- a", "1. a", "&lt;", "# a"],
)
def test_escaped_markdown_renders_as_the_same_text(text: str) -> None:
    """What Markdown shows of an escaped text is the text, on one line, without invisible characters."""
    shown = unescape(re.sub(r"</?p>", "", _rendered(escape_markdown(text)))).strip()
    assert shown == " ".join(text.replace("\u202e", "").split())


def test_numbers_and_names_stay_readable() -> None:
    """Recall@10 is shown as Recall@10, in a sentence and in a table cell."""
    assert _rendered(escape_markdown("Recall@10 rose (0.84 to 0.94).")) == "<p>Recall@10 rose (0.84 to 0.94).</p>\n"
    assert "<td>a|b</td>" in _rendered(f"| x |\n|---|\n| {escape_markdown('a|b')} |\n")


def test_the_first_night_shows_the_base_model_as_production() -> None:
    """Nothing served before: what production's column says is the base model's figure, at every dimension too."""
    found = Material(
        by_dimension={"production": {"384": {"recall_at_10": 0.5}}, "candidate": {"384": {"recall_at_10": 0.6}}}
    )
    assert dimension_rows(found) == [("384", "0.5000", "0.5000", "0.6000", "1.54 GB")]


def test_the_report_counts_candidates_since_the_last_promotion() -> None:
    """Two were judged after the promotion, and tonight's: three; nights that judged nothing do not count."""
    verdicts = ("regressed", "promoted", "held", "skipped", "regressed", "failed")
    before = [Outcome(run_id=f"{n}", verdict=verdict, reasons=[], commit=1) for n, verdict in enumerate(verdicts)]
    tonight = Outcome(run_id="9", verdict="held", reasons=[], commit=1)
    assert material._judged_since(before, tonight) == 3
    assert material._judged_since([], tonight) == 1
    assert material._judged_since(before, tonight.model_copy(update={"verdict": "blocked"})) == 2


def test_the_report_shows_the_gain_by_nearness_to_training() -> None:
    """Bands that have queries, on both pages, and how many candidates were judged."""
    shown, text = report_cases.outcome("held"), report_cases.material("held")
    for page in (markdown(shown, text), html(shown, text)):
        assert "0.9 to 1.0" in page
        assert "+0.1420" in page
        assert "0.5 to 0.6" not in page
        assert "Candidates judged since the last promotion: 5" in page


def test_the_report_shows_what_guard_sets_say() -> None:
    """A row for each metric, or one for a set that could not be judged; and that its queries are trained on."""
    shown = report_cases.outcome("held")
    for page in (_rendered(markdown(shown)), html(shown)):
        assert "-0.0810 (-0.1571 to -0.0049 at 99%)" in page
        assert "falls" in page
        assert "&lt;b&gt;|broken" in page
        assert "3 of the 50 queries of general are training queries as well" in page
    assert "uard sets" not in html(report_cases.outcome("promoted"))


def test_a_held_candidate_that_scores_better_is_not_called_otherwise() -> None:
    """A guard set, the serving check or a slice holds it: then the headline must not say that it is no better."""
    bounds = {name: Delta(value=0.1, low=0.05, high=0.15, confidence=0.99) for name in ("recall_at_10", "mrr")}
    assert "scores better, but is held" in markdown(_outcome(verdict="held", deltas=bounds))
    bounds["mrr"] = Delta(value=0.1, low=0.0, high=0.15, confidence=0.99)
    for deltas in (bounds, {}):
        assert "not significantly better" in markdown(_outcome(verdict="held", deltas=deltas))
