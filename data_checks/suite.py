"""The expectations, in code: each with its severity and the reason why it is there.

Critical ones block the night (`enough_pairs` skips it), warnings are shown. Parsing refuses single bad rows before;
this is the second line of defence, over all rows that would be trained and tested on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from data_checks.findings import ENOUGH_PAIRS, Severity
from tasks.config import Checks

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

LEAKED: Final = "few_leaked_queries"


@dataclass(frozen=True)
class Check:
    """One expectation and what people need to know about it."""

    name: str
    severity: Severity
    column: str
    expected: str
    why: str
    text: str | None
    """Name of the text to show of a row that fails; None for a measure of the night."""
    make: Callable[..., Expectation]

    def expectation(self) -> Expectation:
        """The check as Great Expectations knows it, with the reason in its `meta`."""
        from great_expectations.expectations.metadata_types import FailureSeverity

        return self.make(severity=FailureSeverity(self.severity), meta={"name": self.name, "why": self.why})


def checks(rule: Checks) -> dict[str, list[Check]]:
    """All checks by the frame they look at: `labels`, `negatives`, `corpus`, `night`."""
    return {
        "labels": [
            _present("query", "A pair without a query teaches nothing, and its row is not what its author meant."),
            _not_blank("query", "A blank query matches everything equally: its gradient is noise."),
            _length("query", rule.max_query_chars, "A query this long is a document in the wrong column."),
            _present("document", "A pair without a document has no positive."),
            _not_blank("document", "A blank document would be found for nothing, and is a wrong negative for all."),
            _length("document", rule.max_document_chars, "Models read its first few hundred tokens only: split it."),
            _never(
                "query_differs_from_document",
                "query_is_document",
                "query",
                "A query that is its own document is found by any model: it inflates scores and teaches nothing.",
            ),
            _range(
                "score_within_0_and_1",
                "score",
                0,
                1,
                "A CoSENT loss compares scores: one on another scale (0 to 5, per cent) outweighs all others.",
                text="score",
            ),
            _never(
                "few_duplicates",
                "repeated",
                "query",
                "Repeated rows are dropped before training; many of them mean that an export is sent again and again.",
                severity="warning",
                most=rule.max_duplicate_share,
            ),
            _never(
                "few_contradictions",
                "contradicted",
                "query",
                "A text that is both right and wrong for one query cancels itself out; many mean swapped columns.",
                most=rule.max_contradictory_share,
            ),
        ],
        "negatives": [
            _present("negative", "A missing negative is not what its author meant."),
            _not_blank("negative", "A blank negative is too easy to teach anything."),
            _length("negative", rule.max_document_chars, "Models read its first few hundred tokens only: split it."),
            _never(
                "negative_differs_from_document",
                "negative_is_document",
                "negative",
                "One text as right and wrong answer of the same row: the columns were filled wrongly.",
            ),
        ],
        "corpus": [
            _present("document", "A corpus row without a text cannot be searched.", name="corpus_document"),
            _not_blank("document", "A blank document would be found for nothing.", name="corpus_document"),
            _length(
                "document",
                rule.max_document_chars,
                "Models read its first few hundred tokens only: split it.",
                name="corpus_document",
            ),
        ],
        "night": [
            _range(
                ENOUGH_PAIRS,
                "distinct_pairs",
                rule.min_pairs,
                None,
                "With fewer pairs fine-tuning memorises them: a model off the shelf does better.",
            ),
            _range(
                "many_pairs",
                "distinct_pairs",
                rule.warn_pairs,
                None,
                "With fewer pairs the gain is small, and the test set too small to show it.",
                severity="warning",
            ),
            _range(
                "few_rejected_rows",
                "rejected_share",
                None,
                rule.max_rejected_share,
                "When parsing refuses many rows the export is broken, and the rows that passed are a biased rest.",
            ),
            *(
                _range(
                    f"{field}_length_is_stable",
                    f"{field}_length_drift",
                    None,
                    rule.max_length_drift,
                    "New texts of quite another length mean another source, a lost field, or markup that came along.",
                    severity="warning",
                )
                for field in ("query", "document")
            ),
            _range(
                "languages_are_supported",
                "foreign_share",
                None,
                rule.max_foreign_share,
                "A model reads other languages than its own as noise: start from a multilingual model.",
                severity="warning",
            ),
        ],
    }


def leak_checks(rule: Checks) -> list[Check]:
    """What is expected of the share of test queries that nearly repeat a training query."""
    return [
        _range(
            LEAKED,
            "leaked_share",
            None,
            rule.max_leaked_share,
            "Test queries that nearly repeat training queries measure memory, so they do not decide; with many of them "
            "little is left to test on, and the split does not separate what it should.",
        )
    ]


def _present(field: str, why: str, *, name: str | None = None) -> Check:
    from great_expectations.expectations.core.expect_column_values_to_not_be_null import ExpectColumnValuesToNotBeNull

    column = f"{field}_chars"
    return Check(
        f"{name or field}_present",
        "critical",
        column,
        "no missing text",
        why,
        field,
        lambda **more: ExpectColumnValuesToNotBeNull(column=column, **more),
    )


def _not_blank(field: str, why: str, *, name: str | None = None) -> Check:
    return _never(f"{name or field}_not_blank", f"{field}_blank", field, why)


def _length(field: str, longest: int, why: str, *, name: str | None = None) -> Check:
    return _range(f"{name or field}_length_within_bounds", f"{field}_chars", None, longest, why, text=field)


def _never(name: str, flag: str, text: str, why: str, *, severity: Severity = "critical", most: float = 0.0) -> Check:
    """Expect a flag to be false, save in a share `most` of the rows."""
    from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet

    return Check(
        name,
        severity,
        flag,
        f"at most {most:.1%} of rows" if most else "no such row",
        why,
        text,
        lambda **more: ExpectColumnValuesToBeInSet(column=flag, value_set=[False], mostly=1 - most, **more),
    )


def _range(
    name: str,
    column: str,
    low: float | None,
    high: float | None,
    why: str,
    *,
    severity: Severity = "critical",
    text: str | None = None,
) -> Check:
    """Expect numbers between two bounds, both included; missing ones are not looked at."""
    from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween

    lowest = None if low is None else f"at least {low:,g}"
    highest = None if high is None else f"at most {high:,g}"
    return Check(
        name,
        severity,
        column,
        " and ".join(bound for bound in (lowest, highest) if bound),
        why,
        text,
        lambda **more: ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, **more),
    )
