"""A run for people: the page, its charts, and the evidence of a regression."""

from tasks.report.evidence import Evidence, Fallen
from tasks.report.material import Material
from tasks.report.page import charts_of, html, markdown
from tasks.report.question import question

__all__ = ["Evidence", "Fallen", "Material", "charts_of", "html", "markdown", "question"]
