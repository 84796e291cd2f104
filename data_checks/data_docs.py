"""The findings as one HTML page that is safe to open: every value is escaped, nothing is loaded from outside.

Great Expectations' own Data Docs put cell values into the page as they are (a `<script>` in a pair runs in the
reader's browser) and load from eight hosts.
"""

from __future__ import annotations

from pathlib import Path

from data_checks.findings import ChecksResult


def render(result: ChecksResult) -> str:
    """The page, complete in itself. Failures come first; texts of rows are shown as far as they were kept (cut)."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("data_docs.html.jinja").render(result=result, findings=result.by_urgency())
