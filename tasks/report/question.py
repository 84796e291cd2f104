"""What a person is asked who may approve a candidate: the figures in short, and where all of them are."""

from __future__ import annotations

from datetime import datetime

from tasks.config import Outcome
from tasks.records import Question
from tasks.report.messages import LONGEST, cut, plain
from tasks.report.page import escape_markdown, score_rows

_SHOWN = 4


def question(outcome: Outcome, until: datetime, report_url: str | None) -> Question:
    """The form's Markdown and the text of the alert. `report_url` is the report in the Prefect UI, if it is there."""
    candidate = outcome.candidate.version if outcome.candidate else None
    serves = outcome.production_before or "the base model"
    moment = f"{until:%Y-%m-%d %H:%M} UTC"
    where = f"[The report]({report_url})" if report_url else f"The report: `{outcome.report}`"
    rows = [
        f"| {escape_markdown(row.label)} | {row.production} | {row.candidate} | {escape_markdown(row.difference)} |"
        for row in score_rows(outcome)[:_SHOWN]
    ]
    form = [
        f"Candidate `{candidate}` passed the gate against {escape_markdown(serves)}. Approve it until {moment}; "
        "otherwise it is held.",
        "",
        "| metric | production | candidate | difference (interval) |",
        "|---|---:|---:|---|",
        *rows,
        "",
        where,
    ]
    lines = [
        f"Candidate {candidate} passed the gate, and waits for a person until {moment}. Then it is held.",
        *(cut(plain(reason), 400) for reason in outcome.reasons[:_SHOWN]),
        f"Production is {serves} until then.",
        f"Report: {outcome.report}",
        f"To answer: ratchet approve {outcome.run_id}, with --reject to hold it; or Resume in the Prefect UI:",
    ]
    return Question(until, "\n".join(form), "\n".join(lines)[: LONGEST - 300])
