"""What the checks found, as plain data: `checks.json`, the table in the UI, the reasons as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

Severity = Literal["critical", "warning"]
Verdict = Literal["ok", "blocked", "skipped"]

ENOUGH_PAIRS: Final = "enough_pairs"
"""The one critical check that skips the night instead of blocking it: nothing is wrong, there is just too little."""

MAX_SAMPLES: Final = 5
_MAX_TEXT: Final = 200


def visible(text: str) -> str:
    """A text as it may be shown: cut, and with control and direction characters spelled out.

    A right-to-left override or a terminal escape in a pair must not rearrange the report that shows it.
    """
    cut = text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sample(_Record):
    """One row that did not meet an expectation: where it came from and what it said (cut)."""

    object: str
    line: int
    text: str


class Finding(_Record):
    """The result of one expectation."""

    name: str
    severity: Severity
    success: bool
    expectation: str
    """Its type in Great Expectations, or the function that took its place."""
    expected: str
    observed: float | None = None
    """A measure of the night (None: it could not be measured). Expectations about rows count them instead."""
    rows: int | None = None
    """How many rows were looked at; None for a measure of the night."""
    unexpected_count: int = 0
    unexpected_percent: float = 0.0
    samples: tuple[Sample, ...] = ()
    why: str = ""
    error: str = ""
    """What went wrong where the expectation could not be evaluated, which counts as a failure."""

    @property
    def title(self) -> str:
        """The name for people."""
        return self.name.replace("_", " ").capitalize()

    @property
    def seen(self) -> str:
        """What was seen, in one cell: a count of rows, or the value of a measure."""
        if self.error:
            return "error"
        if self.rows is not None:
            return f"{self.unexpected_count:,} of {self.rows:,} rows"
        return "not measured" if self.observed is None else f"{self.observed:,.6g}"

    @property
    def reason(self) -> str:
        """The finding as a sentence, with the first place to look at."""
        if self.error:
            return f"{self.title}: could not be evaluated: {self.error}"
        first = f", first in {self.samples[0].object} line {self.samples[0].line}" if self.samples else ""
        return f"{self.title}: {self.seen}{first}; expected {self.expected}. {self.why}"


class ChecksResult(_Record):
    """All findings of a night and what follows from them; `checks.json` is this as JSON."""

    commit: int
    verdict: Verdict
    reasons: tuple[str, ...]
    """Why the night is blocked or skipped; empty when it continues."""
    warnings: tuple[str, ...]
    guidance: str
    counts: dict[str, int]
    measures: dict[str, float | None]
    languages: dict[str, float]
    findings: tuple[Finding, ...]

    @classmethod
    def of(
        cls,
        findings: Sequence[Finding],
        *,
        commit: int = 0,
        guidance: str = "",
        counts: dict[str, int] | None = None,
        measures: dict[str, float | None] | None = None,
        languages: dict[str, float] | None = None,
    ) -> ChecksResult:
        """Draw the verdict: any critical failure blocks, except too few pairs alone, which skips.

        Raises ValueError for no findings at all: checks that did not run have not passed.
        """
        if not findings:
            raise ValueError("no expectation was evaluated: checks that did not run have not passed")
        critical = [f for f in findings if f.severity == "critical" and not f.success]
        blocked = any(f.name != ENOUGH_PAIRS for f in critical)
        return cls(
            commit=commit,
            verdict="blocked" if blocked else "skipped" if critical else "ok",
            reasons=tuple(f.reason for f in critical),
            warnings=tuple(f.reason for f in findings if f.severity == "warning" and not f.success),
            guidance=guidance,
            counts=counts or {},
            measures=measures or {},
            languages=languages or {},
            findings=tuple(findings),
        )

    def with_finding(self, finding: Finding) -> ChecksResult:
        """This result and one more finding, with the verdict drawn again; a finding of that name is replaced."""
        return ChecksResult.of(
            [*(f for f in self.findings if f.name != finding.name), finding],
            commit=self.commit,
            guidance=self.guidance,
            counts=self.counts,
            measures=self.measures,
            languages=self.languages,
        )

    def by_urgency(self) -> list[Finding]:
        """Failures first, critical before warnings."""
        return sorted(self.findings, key=lambda f: (f.success, f.severity != "critical"))

    def table(self) -> list[dict[str, str]]:
        """Rows for a table artifact, failures first."""
        return [
            {
                "check": f.title,
                "severity": f.severity,
                "result": "ok" if f.success else "failed",
                "observed": f.seen,
                "expected": f.expected,
                "why": f.why,
            }
            for f in self.by_urgency()
        ]
