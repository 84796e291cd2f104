"""Run the suite over the rows of a night."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_checks import suite
from data_checks.findings import MAX_SAMPLES, ChecksResult, Finding, Sample, visible
from data_checks.guidance import foreign_languages, guide
from data_checks.languages import language_shares
from data_checks.measures import Frame, corpus_frame, label_frame, language_sample, negative_frame, night_measures
from data_checks.suite import Check
from tasks.config import Checks

if TYPE_CHECKING:
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.data_context.data_context.ephemeral_data_context import EphemeralDataContext


def run_checks(
    rows: pa.Table,
    *,
    rejected: int,
    rule: Checks,
    commit: int = 0,
    since: int = 0,
    supported: Collection[str] | None = None,
    baseline_recall: float | None = None,
    target: float = 0.90,
) -> ChecksResult:
    """Check all rows of a commit (schema `tasks.intake.ROWS`), and draw the verdict.

    Rows that earlier nights have seen are checked too: what blocked last night must block tonight.
    `rejected` counts the pair rows that parsing refused, of the objects that are live; `since` is the commit up to
    which rows are history, to compare the newer ones with (0: no history); `supported` holds the languages of the
    base model (`model_languages`); `baseline_recall` and `target` are for the guidance.

    An expectation that cannot be evaluated counts as failed.
    """
    labels = label_frame(rows)
    measures = night_measures(rows, labels, rejected=rejected, since=since)
    languages = language_shares(language_sample(labels))
    foreign = foreign_languages(languages, supported)
    measures["foreign_share"] = sum(foreign.values()) if languages and supported is not None else None
    checks = suite.checks(rule)
    findings = [
        *_evaluate(checks["labels"], labels, rows),
        *_evaluate(checks["negatives"], negative_frame(rows), rows),
        *_evaluate(checks["corpus"], corpus_frame(rows), rows),
        *_evaluate_measures(checks["night"], measures),
    ]
    pairs = int(measures["distinct_pairs"] or 0)
    guidance = guide(
        pairs,
        baseline_recall=baseline_recall,
        target=target,
        languages=languages,
        supported=supported,
        rule=rule,
    )
    kinds = {kind: int(pc.sum(pc.equal(rows["kind"], kind)).as_py() or 0) for kind in ("pair", "golden", "corpus")}
    return ChecksResult.of(
        findings,
        commit=commit,
        guidance=guidance.text,
        counts={**kinds, "distinct_pairs": pairs, "rejected": rejected},
        measures=measures,
        languages=languages,
    )


def too_large(why: str, *, commit: int, rejected: int) -> ChecksResult:
    """The result where the rows do not fit into memory: nothing was checked, so the night is blocked."""
    finding = Finding(
        name="fits_in_memory",
        severity="critical",
        success=False,
        expectation="too_large",
        expected="rows that fit into this worker's memory",
        error=f"{why}. Give the workers more memory, or move old objects out of the store.",
    )
    return ChecksResult.of([finding], commit=commit, counts={"rejected": rejected})


def check_leaks(result: ChecksResult, leaked: NDArray[np.bool_], queries: list[str], rule: Checks) -> ChecksResult:
    """The result with one more finding: how many test queries nearly repeat a training query.

    `leaked` is of shape (n_queries,), from `data_checks.leaks.near_duplicates`. Raises ValueError when the lengths
    differ.
    """
    if len(leaked) != len(queries):
        raise ValueError(f"{len(leaked)} flags for {len(queries)} test queries")
    share = float(leaked.mean()) if len(leaked) else 0.0
    [finding] = _evaluate_measures(suite.leak_checks(rule), {"leaked_share": share})
    places = np.flatnonzero(leaked)[:MAX_SAMPLES]
    samples = tuple(Sample(object="test queries", line=int(i) + 1, text=visible(queries[i])) for i in places)
    return result.with_finding(finding.model_copy(update={"samples": samples}))


def _evaluate_measures(checks: list[Check], measures: dict[str, float | None]) -> list[Finding]:
    """Evaluate expectations about measures, each of which is a column with one row.

    What could not be measured passes as a warning, and fails as a critical expectation.
    """
    columns = {name: pa.array([value], pa.float64()) for name, value in measures.items()}
    found = _evaluate(checks, Frame(columns, np.zeros(1, dtype=np.int64), {}), None)
    observed = [None if value is None or math.isnan(value) else value for value in (measures[c.column] for c in checks)]
    return [
        finding.model_copy(
            update={
                "rows": None,
                "observed": value,
                "success": finding.success and (value is not None or finding.severity == "warning"),
            }
        )
        for finding, value in zip(found, observed, strict=True)
    ]


def _evaluate(checks: list[Check], frame: Frame, rows: pa.Table | None) -> list[Finding]:
    """Evaluate expectations on a frame with Great Expectations; one finding for each, in their order.

    Raises KeyError when one of them has no result: a check that did not run has not passed.
    """
    import great_expectations as gx
    import pandas as pd

    numbers = {name: column.to_numpy(zero_copy_only=False) for name, column in frame.columns.items()}
    batch = (
        _context()
        .data_sources.add_pandas("night")
        .add_dataframe_asset("frame")
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": pd.DataFrame(numbers, copy=False)})
    )
    built = {check.name: check.expectation() for check in checks}
    expectations = gx.ExpectationSuite("suite", expectations=list(built.values()))
    results = {
        str(result.expectation_config.meta["name"]): result
        for result in batch.validate(expectations, result_format="BASIC").results
        if result.expectation_config is not None
    }
    return [
        _finding(results[check.name], check, type(built[check.name]).__name__, numbers, frame, rows) for check in checks
    ]


def _finding(
    result: ExpectationValidationResult,
    check: Check,
    expectation: str,
    numbers: dict[str, NDArray[Any]],
    frame: Frame,
    rows: pa.Table | None,
) -> Finding:
    """One result of Great Expectations as a finding, with the first rows that failed."""
    seen = result.result
    errors = [e["exception_message"] for e in _exceptions(result.exception_info) if e["raised_exception"]]
    return Finding(
        name=check.name,
        severity=check.severity,
        success=bool(result.success) and not errors,
        expectation=expectation,
        expected=check.expected,
        rows=seen.get("element_count", 0),
        unexpected_count=seen.get("unexpected_count", 0),
        unexpected_percent=seen.get("unexpected_percent") or 0.0,
        samples=_samples(check, seen.get("partial_unexpected_list", []), numbers, frame, rows),
        why=check.why,
        error="; ".join(dict.fromkeys(errors)),
    )


def _exceptions(info: dict[str, Any]) -> list[dict[str, Any]]:
    """What was raised: Great Expectations gives one record, or one for each metric that failed."""
    return [info] if "raised_exception" in info else list(info.values())


def _samples(
    check: Check,
    unexpected: list[Any],
    numbers: dict[str, NDArray[Any]],
    frame: Frame,
    rows: pa.Table | None,
) -> tuple[Sample, ...]:
    """The first rows that failed. The report of unexpected values names no rows: find them by their values."""
    if rows is None or check.text is None or not unexpected:
        return ()
    column = numbers[check.column]
    # missing values are all that `ExpectColumnValuesToNotBeNull` reports, and nothing else reports them
    missing = [value for value in unexpected if value is None or value != value]
    failed = np.isnan(column) if missing else np.isin(column, unexpected)
    places = np.flatnonzero(failed)[:MAX_SAMPLES]
    lines = rows.select(["object", "line"]).take(pa.array(frame.rows[places])).to_pylist()
    texts = frame.texts[check.text].take(pa.array(places)).to_pylist()
    return tuple(
        Sample(object=visible(line["object"]), line=line["line"], text=visible(text or ""))
        for line, text in zip(lines, texts, strict=True)
    )


def _context() -> EphemeralDataContext:
    """A context of Great Expectations in memory, without progress bars and without sending usage statistics."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    config = DataContextConfig(
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
        store_backend_defaults=InMemoryStoreBackendDefaults(),
    )
    return gx.get_context(mode="ephemeral", project_config=config)
