"""Outcomes and changes of production as Prefect events, with the text that people are told; automations send it on.

The id of every event is derived from what it tells, so a step that is retried, or a run that is repeated,
tells the same event again instead of a second one: the server acts on an id once.

The texts go to Slack, Teams, PagerDuty, mail and webhooks alike, so they use no markup of any of them, and what comes
from data (queries, names of slices and objects) is made plain first. They hold no angle bracket at all: what sends to
Slack takes `!channel|anything up to a bracket` for a mention, wherever the bracket stands.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from tasks.config import Delta, Model, Outcome
from tasks.report import Evidence
from tasks.watch import Seen

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


def quote(text: str, longest: int = _LONGEST_QUOTE) -> str:
    """A text from outside, plain, cut, and in backquotes, so that not even a bare host name becomes a link."""
    text = plain(text[: 4 * longest])  # a text may be a megabyte
    return f"`{text[: longest - 3] + '...' if len(text) > longest else text}`"


# --- what is said ----------------------------------------------------------------------------------------


def message(outcome: Outcome, evidence: Evidence, run_url: str | None) -> Message:
    """What is said of a night: the verdict and its reasons; of a regression, all that is needed to judge it."""
    if outcome.verdict == "regressed":
        return _regression(outcome, evidence, run_url)
    text = _Text(LONGEST - 600)
    for reason in outcome.reasons:
        text.add(_cut(plain(reason), 600))
    titles = {"blocked": "the data checks stopped the night"}
    return _finish(
        f"Ratchet: {titles.get(outcome.verdict, f'the night ended {outcome.verdict}')}", text, outcome, run_url
    )


def _regression(outcome: Outcome, evidence: Evidence, run_url: str | None) -> Message:
    candidate, production = outcome.candidate or Model(), outcome.production or Model()
    serves = f"version {production.version}" if production.version else "the base model"
    text = _Text(LONGEST - 700)  # the end is always said
    text.add(
        f"Candidate {candidate.version or 'without a version'} is surely worse than {serves}. It was not promoted."
    )
    for name, label in (("recall_at_10", "Recall@10"), ("mrr", "MRR")):
        text.add(_compared(label, production.scores.get(name), candidate.scores.get(name), outcome.deltas.get(name)))
    if evidence.slices:
        text.add("Worst slices:")
    for name, queries, values in evidence.slices:
        figures = ", ".join(f"{_label(metric)} {100 * value:+.1f} points" for metric, value in sorted(values.items()))
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
    return _finish("Ratchet: the new model is worse than production", text, outcome, run_url)


def _finish(title: str, text: _Text, outcome: Outcome, run_url: str | None) -> Message:
    """The end that every message has: what serves, and where to look."""
    lines = list(text.lines)
    if text.full:
        lines.append("(More in the report.)")
    lines.append(f"Production is {outcome.production_after or 'the base model'}, as before.")
    lines.append(f"Run: {run_url}" if run_url else f"Run: {outcome.run_id}")
    if outcome.report:
        lines.append(f"Report: {outcome.report}")
    return Message(title, "\n".join(lines)[:LONGEST])


def _compared(label: str, before: float | None, after: float | None, delta: Delta | None) -> str:
    if before is None or after is None or delta is None:
        return f"{label}: not known."
    return (
        f"{label}: {before:.3f} to {after:.3f}, {100 * delta.value:+.1f} points "
        f"({100 * delta.low:+.1f} to {100 * delta.high:+.1f} with {100 * delta.confidence:.4g}% confidence each)"
    )


def _rank(reciprocal: float) -> str:
    return f"{1 / reciprocal:,.0f}" if reciprocal > 0 else "not found"


def _label(metric: str) -> str:
    return {"recall_at_10": "Recall@10", "mrr": "MRR"}.get(metric, metric)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


# --- what the watch of production says -------------------------------------------------------------------


@dataclass(frozen=True)
class News:
    """One thing to tell about production, and the identity under which it is told once."""

    event: str
    identity: str
    message: Message
    payload: dict[str, Any]


def news(seen: Seen) -> list[News]:
    """What there is to tell of one look at production: drift, once from when it began; standstill at every multiple."""
    serves = f"version {seen.version}" if seen.version else "the base model"
    found = []
    if seen.drifted_since is not None:
        lines = [f"Production, {serves}, finds less on labels that have arrived since it was trained:"]
        for window in seen.windows:
            surely = f"; surely lower: {', '.join(map(_label, window.below))}" if window.below else ""
            figures = (
                f"{_label(name)} {window.promoted[name]:.3f} to {window.scores[name]:.3f}"
                for name in ("recall_at_10", "mrr")
            )
            lines.append(
                f"- commits {window.first} to {window.last}, {window.queries:,} queries: {', '.join(figures)}{surely}"
            )
        lines.append("The next night trains on these labels. If it does not promote, look at what is searched for now.")
        found.append(
            News(
                "ratchet.production.drifted",
                f"drifted-{seen.version}-{seen.drifted_since}",
                Message("Ratchet: production has drifted", "\n".join(lines)),
                {"version": seen.version, "windows": [window.model_dump(mode="json") for window in seen.windows]},
            )
        )
    for still in seen.standstill:
        passed = f"{still.passed:.0f} {still.what}"
        text = (
            f"No promotion for {passed} that had something to train on (limit {still.limit:.0f}). "
            f"{serves.capitalize()} serves. The reports of the last nights say what was missing."
            if still.what == "nights"
            else f"{serves.capitalize()} has served for {passed} (limit {still.limit:.0f}). Do new labels still arrive?"
        )
        found.append(
            News(
                "ratchet.production.stale",
                f"stale-{seen.change}-{still.what}-{still.times}",
                Message("Ratchet: production has not moved", text),
                {"version": seen.version, "what": still.what, "passed": still.passed, "limit": still.limit},
            )
        )
    return found


# --- events ----------------------------------------------------------------------------------------------


def announce_outcome(
    store_url: str, outcome: Outcome, evidence: Evidence | None = None, run_url: str | None = None
) -> None:
    """Emit `ratchet.night.<verdict>` with the scores, the differences, where the report lies, and the text."""
    payload = outcome.model_dump(
        mode="json",
        include={
            "run_id",
            "verdict",
            "reasons",
            "commit",
            "counts",
            "candidate",
            "production",
            "deltas",
            "production_before",
            "production_after",
            "guidance",
            "report",
            "reason",
        },
    )
    said = message(outcome, evidence or Evidence(), run_url)
    payload |= {"title": said.title, "message": said.text}
    _emit(f"ratchet.night.{outcome.verdict}", store_url, outcome.run_id, payload)


def announce_production(store_url: str, pointer: Mapping[str, Any]) -> None:
    """Emit `ratchet.production.changed` with the new pointer: version, fingerprint, previous, who and why."""
    _emit("ratchet.production.changed", store_url, str(pointer["promotion"]), dict(pointer))


def announce_news(store_url: str, news: News, run_url: str | None = None) -> None:
    """Emit what the watch of production has found: `ratchet.production.drifted` or `ratchet.production.stale`."""
    text = news.message.text + (f"\nRun: {run_url}" if run_url else "")
    _emit(news.event, store_url, news.identity, {**news.payload, "title": news.message.title, "message": text})


def run_url() -> str | None:
    """Where the running flow is seen in the Prefect UI; None where no address of one is configured."""
    return url_for("flow-run", flow_run.id) if flow_run.id else None


def _emit(name: str, store_url: str, identity: str, payload: dict[str, Any]) -> None:
    emit_event(
        event=name,
        resource={"prefect.resource.id": f"ratchet.store.{store_url}", "prefect.resource.name": store_url},
        payload=payload,
        id=uuid5(NAMESPACE_URL, f"{store_url}#{name}#{identity}"),
    )
