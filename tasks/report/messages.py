"""The text of an alert on a night: its verdict and reasons, and of a regression all that is needed to judge it.

The texts go to Slack, Teams, PagerDuty, mail and webhooks alike, so they use no markup of any of them, and what comes
from data (queries, names of slices and objects) is made plain first. They hold no angle bracket at all: what sends to
Slack takes `!channel|anything up to a bracket` for a mention, wherever the bracket stands.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Final

from tasks.config import METRIC_LABELS, Delta, GuardResult, Model, Outcome, Pending
from tasks.report.evidence import Evidence

LONGEST: Final = 3_000
"""Characters of a message: what a Slack block, the narrowest of the channels, takes."""

REPLACEMENTS: Final = (
    ("<", "("), (">", ")"),  # Slack's mentions and links
    ("[", "("), ("]", ")"),  # Markdown's links
    ("|", "/"),  # the rest of them
    ("`", "'"),  # the end of the code span that quotes are in
    ("{", "("), ("}", ")"),  # placeholders of the webhook's template
    ("@", "@\u200b"), ("://", ":\u200b//"),  # mentions and addresses that are made links without any markup
)  # fmt: skip
"""What makes a text from outside plain in every channel; nothing in it can then notify, link or hide anything."""

_LONGEST_QUOTE: Final = 120

_NAMED: Final = 3
"""Unreadable and refused objects that an alert on a regression names, of each."""


@dataclass(frozen=True)
class Message:
    """What people are told: a line, and a text of at most `LONGEST` characters."""

    title: str
    text: str


@dataclass
class _Text:
    """Lines up to a length; a line that does not fit is left out with all after it."""

    room: int
    lines: list[str] = field(default_factory=list)
    full: bool = False

    def add(self, line: str) -> None:
        self.full = self.full or len(line) + 1 > self.room
        if not self.full:
            self.lines.append(line)
            self.room -= len(line) + 1


def plain(text: str) -> str:
    """A text from outside as one line that no channel takes for markup, a mention or a link."""
    text = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
    for old, new in REPLACEMENTS:
        text = text.replace(old, new)
    return re.sub(" +", " ", text).strip()


def cut(text: str, longest: int) -> str:
    """A text of at most `longest` characters; one that is longer ends in an ellipsis."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def quote(text: str, longest: int = _LONGEST_QUOTE) -> str:
    """A text from outside, plain, cut, and in backquotes, so that not even a bare host name becomes a link."""
    text = plain(text[: 4 * longest])  # a text may be a megabyte
    return f"`{cut(text, longest)}`"


def message(outcome: Outcome, evidence: Evidence, run_url: str | None) -> Message:
    """What is said of a night: the verdict and its reasons; of a regression, all that is needed to judge it."""
    if outcome.verdict == "regressed":
        return _regression(outcome, evidence, run_url)
    text = _Text(LONGEST - 600)
    for reason in outcome.reasons:
        text.add(cut(plain(reason), 600))
    titles = {"blocked": "the night was blocked"}
    return _finish(
        f"Ratchet: {titles.get(outcome.verdict, f'the night ended {outcome.verdict}')}", text, outcome, run_url
    )


def pending_message(pending: Pending, run_url: str | None) -> Message:
    """What is said of an object that several nights in a row could not read."""
    lines = [
        f"{quote(pending.key, 200)} could not be read for {pending.nights} nights in a row:",
        cut(plain(pending.reason), 600),
        "Its rows are missing from the training and the test. Fix the object or its permissions, or remove it.",
        *([f"Run: {run_url}"] if run_url else []),
    ]
    return Message("Ratchet: an object cannot be read", "\n".join(lines)[:LONGEST])


def guard_message(found: GuardResult, run_url: str | None) -> Message:
    """What is said of a guard set that could not be judged."""
    lines = [
        *(cut(plain(reason), 600) for reason in found.reasons),
        "Until it can be judged nothing is promoted: mend the set, or remove it. `ratchet doctor` reads every set.",
        *([f"Run: {run_url}"] if run_url else []),
    ]
    return Message("Ratchet: a guard set cannot be judged", "\n".join(lines)[:LONGEST])


def unpublished_message(target: str, name: str, serves: str, error: str, run_url: str | None) -> Message:
    """What is said where what serves could not be made known to a registry outside."""
    lines = [
        f"What serves, {serves}, could not be published to {target} as {quote(name)}:",
        cut(plain(error), 600),
        "Production is what it is. The next run tries again; to try now: ratchet publish",
        *([f"Run: {run_url}"] if run_url else []),
    ]
    return Message("Ratchet: what serves is not published", "\n".join(lines)[:LONGEST])


def _regression(outcome: Outcome, evidence: Evidence, run_url: str | None) -> Message:
    candidate, production = outcome.candidate or Model(), outcome.production or Model()
    serves = f"version {production.version}" if production.version else "the base model"
    text = _Text(LONGEST - 700)  # the end is always said
    text.add(
        f"Candidate {candidate.version or 'without a version'} is significantly worse than {serves}. "
        "It was not promoted."
    )
    for name, label in (("recall_at_10", "Recall@10"), ("mrr", "MRR")):
        text.add(_compared(label, production.scores.get(name), candidate.scores.get(name), outcome.deltas.get(name)))
    lines = [cut(plain(sentence), 400) for sentence in evidence.blamed[:_NAMED]]
    for line in [*lines, *(["Worst slices:"] if evidence.slices else [])]:
        text.add(line)
    for name, queries, values in evidence.slices:
        figures = ", ".join(
            f"{METRIC_LABELS.get(metric, metric)} {100 * value:+.1f} points" for metric, value in sorted(values.items())
        )
        text.add(f"- {quote(name)} ({queries:,} queries): {figures}")
    if evidence.queries:
        text.add("Worst queries, with the rank of the first right document:")
    for fallen in evidence.queries:
        text.add(f"- {quote(fallen.query)}: {_rank(fallen.before)}, now {_rank(fallen.after)}")
    accepted = sum(rows for _, rows, _ in evidence.objects)
    rejected = sum(bad for _, _, bad in evidence.objects)
    if evidence.objects:
        since = (
            f"since run {evidence.since}, the last good night" if evidence.since else "so far: no night was good yet"
        )
        count = len(evidence.objects)
        objects = f"{count:,} object{'s' * (count != 1)}"
        text.add(f"New data {since}: {objects}, {accepted:,} rows, {rejected:,} rejected.")
    for key, rows, bad in sorted(evidence.objects, key=lambda one: -one[1])[:5]:
        text.add(f"- {quote(key, 200)}: {rows:,} rows, {bad:,} rejected")
    for pending in outcome.pending[:_NAMED]:
        text.add(f"- {quote(pending.key, 200)} could not be read: {cut(plain(pending.reason), 200)}")
    for refused in outcome.refused[:_NAMED]:
        text.add(f"- {quote(refused.key, 200)} was refused: {cut(plain(refused.reason), 200)}")
    return _finish("Ratchet: the new model is worse than production", text, outcome, run_url)


def recovery(outcome: Outcome, run_url: str | None) -> Message:
    """What is said when a streak of nights that regressed has ended."""
    text = _Text(LONGEST - 600)
    text.add(f"This night was {outcome.verdict}; those before it had regressed.")
    return _finish("Ratchet: nights no longer regress", text, outcome, run_url)


def _finish(title: str, text: _Text, outcome: Outcome, run_url: str | None) -> Message:
    """The end that every message has: what serves, and where to look."""
    lines = list(text.lines)
    if text.full:
        lines.append("(More in the report.)")
    lines.append(production_line(outcome))
    lines.append(f"Run: {run_url}" if run_url else f"Run: {outcome.run_id}")
    if outcome.report:
        lines.append(f"Report: {outcome.report}")
    return Message(title, "\n".join(lines)[:LONGEST])


def production_line(outcome: Outcome) -> str:
    """What serves after a run, beside what served before it."""
    if not outcome.production_known:
        return "What serves now is not known: the record of it could not be read."
    compared = outcome.production.version if outcome.production else None
    before = outcome.production_before or compared or "the base model"
    after = outcome.production_after or "the base model"
    if before == after:
        return f"Production is {after}, as before."
    index = {"stays": " An index of documents stays.", "moves": " An index of documents must be built anew.", None: ""}
    return f"Production is {after} now; when the run began it was {before}.{index[outcome.index]}"


def _compared(label: str, before: float | None, after: float | None, delta: Delta | None) -> str:
    if before is None or after is None or delta is None:
        return f"{label}: not known."
    return (
        f"{label}: {before:.3f} to {after:.3f}, {100 * delta.value:+.1f} points "
        f"({100 * delta.low:+.1f} to {100 * delta.high:+.1f} with {100 * delta.confidence:.4g}% confidence each)"
    )


def _rank(reciprocal: float) -> str:
    return f"{1 / reciprocal:,.0f}" if reciprocal > 0 else "not found"
