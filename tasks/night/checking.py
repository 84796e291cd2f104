"""The data checks of a night."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tasks import memory, runs
from tasks.config import Checks
from tasks.night.reading import dataset_of
from tasks.records import Checked, CheckSummary
from tasks.runs import Run
from tasks.storage import Store

if TYPE_CHECKING:
    from data_checks.findings import ChecksResult

_BASE_BYTES: Final = 400 << 20

_TIMES_ROWS: Final = 4
"""Memory of the data checks: the libraries, and so many times what the rows take. A million rows of 200 characters
(310 MiB) were checked in 1.1 GiB."""


def check(store: Store, run_id: str, commit: int, since: int, base_model: str, checks: Checks) -> Checked:
    """Run the data checks on everything up to the commit, and divide the rows where they pass."""
    from data_checks import data_docs, languages, run
    from tasks import dataset, encoding, intake, splits

    def checked() -> Checked:
        supported = languages.model_languages(encoding.resolve_model(base_model))
        rejected = intake.counts(store, commit)["rejected"]
        room = max(1, (memory.available() - _BASE_BYTES) // _TIMES_ROWS)
        try:
            rows = intake.read_rows(store, commit, most_bytes=room)
        except intake.TooLargeError as error:
            result = run.too_large(str(error), commit=commit, rejected=rejected)
            Run(store, run_id).put(runs.DATA_DOCS, data_docs.render(result).encode())
            return _checked(result)
        result = run.run_checks(rows, rejected=rejected, rule=checks, commit=commit, since=since, supported=supported)
        # rows that did not pass are not fit to be divided: a text may be missing
        sides = dataset.sizes(rows, splits.load_split(store)) if result.verdict == "ok" else {}
        Run(store, run_id).put(runs.DATA_DOCS, data_docs.render(result).encode())
        return _checked(result, sides, None if supported is None else sorted(supported))

    return Run(store, run_id).once(runs.CHECKED, checked)


def check_leaks(store: Store, run_id: str, commit: int, checks: Checks) -> Checked:
    """Add to the checks how many test queries the train side nearly repeats: too many make the test worthless."""
    from data_checks import findings, leaks, run

    def checked() -> Checked:
        data = dataset_of(store, commit)
        leaked = leaks.near_duplicates(leaks.nearest_training_query(data.test.queries, data.train["query"].to_pylist()))
        before = findings.ChecksResult.model_validate(Run(store, run_id).read(runs.CHECKED).result.model_dump())
        return _checked(run.check_leaks(before, leaked, data.test.queries, checks))

    return Run(store, run_id).once(runs.LEAKS, checked)


def _checked(
    result: ChecksResult, sides: Mapping[str, int] | None = None, supported: Sequence[str] | None = None
) -> Checked:
    summary = CheckSummary.model_validate(result.model_dump(mode="json"))
    return Checked(summary, result.table(), sides or {}, supported)
