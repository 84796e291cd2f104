"""Data Docs with hostile rows: every value escaped, nothing loaded from outside, readable all the same."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from data_checks.data_docs import render
from data_checks.findings import ChecksResult
from data_checks.run import run_checks
from tasks.config import Checks
from tests.rows import sound_rows, table

HOSTILE = [
    "<script>alert(1)</script>",
    "</samp></td></table><h1>promoted</h1>",
    '"><img src=https://evil.example/x onerror=alert(1)>',
    "javascript:alert(1)",
    "[click](javascript:alert(1)) `code` | cell | **bold**",
    "{{ 7 * 7 }} {% for x in () %} ${7*7} #{7*7}",
    "' onmouseover='alert(1)",
    "&lt;script&gt; &amp; &#60;b&#62;",
    "\u202etxt.exe \x1b[31mred\x00",
    "<!-- --><![CDATA[<b>]]>",
    "</title></style><style>@import url(//evil.example/a.css);</style>",
]


class Page(HTMLParser):
    """Tags, attributes and texts of a page, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.append(data)


def hostile_result(text: str) -> ChecksResult:
    """Findings whose sample rows and objects are hostile: the query is the document, so the row is shown."""
    rows = sound_rows()
    for i in range(3):
        rows[i] = {"query": text, "document": text, "negatives": [text], "object": f"pairs/{text}.jsonl"}
    return run_checks(table(rows), rejected=0, rule=Checks(), commit=7)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_rows_are_text(text: str) -> None:
    """The page has the tags and attributes of a page about sound rows, and shows what the row says."""
    result = hostile_result(text)
    [sample, *_] = next(f for f in result.findings if f.name == "query_differs_from_document").samples
    page = Page(render(result))
    assert page.tags <= {
        *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "ul", "li", "div", "table"),
        *("thead", "tbody", "tr", "th", "td", "span", "br", "samp"),
    }
    assert {name for name, _ in page.attributes} <= {
        *("lang", "charset", "name", "content", "http-equiv", "class", "scope", "tabindex", "role", "aria-label"),
    }
    assert sample.text in page.texts
    assert sample.object in page.texts
    assert page.texts.count("promoted") == 0


def test_nothing_is_loaded_from_outside() -> None:
    """No address, no import, no script; and a policy that would refuse them."""
    html = render(hostile_result("plain"))
    assert not re.search(r"https?:|//|@import|url\(|<script|<link|<img|<iframe|\bsrc=|\bhref=", html)
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_the_page_says_what_happened() -> None:
    """Verdict, reasons, guidance, each expectation with its reason, and the rows that failed."""
    result = hostile_result("same")
    texts = " ".join(Page(render(result)).texts)
    assert "Data checks of commit 7: blocked" in texts
    assert result.guidance in texts
    for finding in result.findings:
        assert finding.title in texts
        assert finding.why in texts
    assert "3 of 201 rows" in texts


def test_a_page_without_failures_says_so() -> None:
    """A thousand sound pairs meet every expectation."""
    result = run_checks(table(sound_rows(1_000)), rejected=0, rule=Checks())
    assert "All expectations are met." in render(result)
