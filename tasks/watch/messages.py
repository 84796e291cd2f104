"""The text of an alert on production.

Drift, once from when it began; a promotion that was wrong, once; standstill, at every multiple of the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.config import DECISIVE, METRIC_LABELS
from tasks.report.messages import Message
from tasks.watch.confirmation import Confirmation
from tasks.watch.fresh import Seen


@dataclass(frozen=True)
class News:
    """One thing to tell about production, and the identity under which it is told once."""

    event: str
    identity: str
    message: Message
    payload: dict[str, Any]


def news(seen: Seen) -> list[News]:
    """What there is to tell of one look at production."""
    serves = f"version {seen.version}" if seen.version else "the base model"
    found = []
    if seen.drifted_since is not None:
        lines = [f"Production, {serves}, finds less on labels that have arrived since it was trained:"]
        for window in seen.windows:
            drop = (
                f"; significantly lower: {', '.join(METRIC_LABELS[name] for name in window.below)}"
                if window.below
                else ""
            )
            figures = (
                f"{METRIC_LABELS[name]} {window.promoted[name]:.3f} to {window.scores[name]:.3f}"
                + (
                    f", {100 * (window.scores[name] - window.base[name]):+.1f} points over the base model"
                    if window.base
                    else ""
                )
                for name in DECISIVE
            )
            lines.append(
                f"- commits {window.first} to {window.last}, {window.queries:,} queries: {', '.join(figures)}{drop}"
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
    if seen.confirmation is not None and seen.confirmation.wrong:
        found.append(_wrong(seen, seen.confirmation))
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


def _wrong(seen: Seen, found: Confirmation) -> News:
    """What serves finds less than the version before it: the figures, and the command that goes back."""
    before = f"version {found.version}" if found.version else "the base model"
    lines = [
        f"On {found.queries:,} queries whose labels arrived after it was trained, version {seen.version} finds less "
        f"than {before}, which served before it:"
    ]
    for name in DECISIVE:
        told = f"; its night told {100 * seen.told[name]:+.1f}" if name in seen.told else ""
        worse = ", significantly lower" if name in found.wrong else ""
        lines.append(f"- {METRIC_LABELS[name]} {100 * found.gains[name]:+.1f} points{worse}{told}")
    lines += ["To go back:", f"ratchet rollback --to {found.version or 'base'} --reason 'worse on fresh labels'"]
    return News(
        "ratchet.production.wrong",
        f"wrong-{seen.version}-{found.first}",
        Message("Ratchet: the promotion was wrong; roll back?", "\n".join(lines)),
        {"version": seen.version, "before": found.version, "queries": found.queries, "gains": found.gains},
    )
