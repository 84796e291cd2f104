"""The suite as a gate: sound rows pass, each broken cell blocks, shares and drift are measured as they are."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_checks import run, suite
from data_checks.findings import ENOUGH_PAIRS, ChecksResult, Finding, visible
from data_checks.run import check_leaks, run_checks
from tasks.config import Checks
from tests.rows import BROKEN_CELLS, sound_rows, table

RULE = Checks()


def checked(rows: list[dict[str, Any]] | pa.Table, **more: Any) -> ChecksResult:
    """Rows through all checks, as a night does it."""
    given = {"rejected": 0, "rule": RULE, "supported": frozenset({"en"})} | more
    return run_checks(rows if isinstance(rows, pa.Table) else table(rows), **given)


def finding(result: ChecksResult, name: str) -> Finding:
    """One finding by name."""
    [found] = [f for f in result.findings if f.name == name]
    return found


def failed(result: ChecksResult) -> set[str]:
    """Names of all findings that failed."""
    return {f.name for f in result.findings if not f.success}


@pytest.fixture(scope="module")
def sound() -> ChecksResult:
    """The findings on 200 sound pairs."""
    return checked(sound_rows())


def test_sound_rows_pass(sound: ChecksResult) -> None:
    """Nothing critical; 200 pairs are few, which is a warning and the guidance."""
    assert sound.verdict == "ok"
    assert sound.reasons == ()
    assert failed(sound) == {"many_pairs"}
    assert "200 distinct pairs are enough to try" in sound.guidance
    assert sound.counts == {"pair": 200, "golden": 1, "corpus": 1, "distinct_pairs": 200, "rejected": 0}


@pytest.mark.parametrize(("what", "name", "rows"), BROKEN_CELLS, ids=[what for what, _, _ in BROKEN_CELLS])
def test_one_broken_cell_blocks(what: str, name: str, rows: pa.Table) -> None:
    """One cell among 200 rows: its check fails, alone among the critical ones, names the row, and blocks."""
    result = checked(rows)
    assert result.verdict == "blocked"
    assert failed(result) == {"many_pairs", name}
    found = finding(result, name)
    assert found.severity == "critical"
    assert found.unexpected_count == 1
    [sample] = found.samples
    assert sample.object == "pairs/a.jsonl"
    assert f"line {sample.line};" in result.reasons[0]
    places = {"query": 6, "score": 8, "negative": 7, "golden": 201, "document": 6, "corpus": 202}
    assert sample.line == places["query" if what == "query is document" else what.split()[0]]


def test_every_critical_check_of_cells_has_a_broken_cell() -> None:
    """A critical check without a test of its own is one that may never fail."""
    cells = {name for _, name, _ in BROKEN_CELLS}
    checks = suite.checks(RULE)
    critical = {
        c.name for c in [*checks["labels"], *checks["negatives"], *checks["corpus"]] if c.severity == "critical"
    }
    assert critical - cells == {"few_contradictions"}  # about many rows: see below


def test_every_check_says_why(sound: ChecksResult) -> None:
    """In the finding for people, and in the expectation's own `meta`."""
    for check in [*chain(*suite.checks(RULE).values()), *suite.leak_checks(RULE)]:
        assert len(check.why) > 30
        assert check.expectation().meta == {"name": check.name, "why": check.why}
    assert all(f.why and f.expected for f in sound.findings)


@pytest.mark.parametrize(("pairs", "verdict"), [(99, "skipped"), (100, "ok")])
def test_too_few_pairs_skip(pairs: int, verdict: str) -> None:
    """99 distinct pairs skip with the guidance, 100 go on; golden rows do not count."""
    result = checked(sound_rows(pairs))
    assert result.verdict == verdict
    assert finding(result, ENOUGH_PAIRS).observed == pairs


def test_repetitions_do_not_make_enough_pairs() -> None:
    """60 pairs sent three times are 60 pairs, whatever the case of their letters."""
    rows = sound_rows(60)
    upper = [row | {"query": str(row["query"]).upper()} for row in rows[:60]]
    result = checked([*rows, *upper, *rows[:60]])
    assert result.verdict == "skipped"
    assert finding(result, ENOUGH_PAIRS).observed == 60
    assert finding(result, "few_duplicates").unexpected_count == 120


def test_no_rows_skip() -> None:
    """An empty store is too little data, not an error."""
    result = checked([])
    assert result.verdict == "skipped"
    assert "off the shelf" in result.guidance


def test_bad_rows_block_also_when_they_are_few() -> None:
    """Too few pairs do not hide a broken one."""
    rows = sound_rows(10)
    rows[3]["query"] = " "
    result = checked(rows)
    assert result.verdict == "blocked"
    assert len(result.reasons) == 2


@pytest.mark.parametrize(("rejected", "verdict"), [(50, "ok"), (51, "blocked")])
def test_many_rejected_rows_block(rejected: int, verdict: str) -> None:
    """50 of 250 rows are the 20 per cent that are allowed, 51 of 251 are more."""
    assert checked(sound_rows(), rejected=rejected).verdict == verdict


def test_rejected_rows_alone_block() -> None:
    """A night whose every row was refused is not one with too little data."""
    assert checked([], rejected=10).verdict == "blocked"


def contradicting(n: int) -> list[dict[str, Any]]:
    """200 sound rows, of which `n` have the document of another row of the same query as negative."""
    rows = sound_rows()[:200]
    for i in range(n):
        rows[2 * i + 1]["query"] = str(rows[2 * i]["query"]).upper()
        rows[2 * i + 1]["negatives"] = [f" {rows[2 * i]['document']}"]
    return rows


@pytest.mark.parametrize(("n", "verdict"), [(10, "ok"), (11, "blocked")])
def test_contradictory_labels_block_in_numbers(n: int, verdict: str) -> None:
    """10 of 200 rows are the 5 per cent that are allowed."""
    result = checked(contradicting(n))
    assert result.verdict == verdict
    assert finding(result, "few_contradictions").unexpected_count == n


def test_a_low_score_and_a_negative_do_not_contradict() -> None:
    """A document scored 0.1 is not called right, so calling it wrong is no contradiction."""
    rows = contradicting(20)
    for i in range(20):
        rows[2 * i]["score"] = 0.1
    assert finding(checked(rows), "few_contradictions").unexpected_count == 0


@pytest.mark.parametrize(("n", "success"), [(50, True), (51, False)])
def test_duplicates_warn_in_numbers(n: int, success: bool) -> None:
    """50 repetitions among 250 rows are the 20 per cent that are allowed; more warn, and do not block."""
    rows = sound_rows()[:200]
    result = checked([*rows, *rows[:n]])
    assert result.verdict == "ok"
    assert finding(result, "few_duplicates").success is success


@pytest.mark.parametrize(("times", "success"), [(2, True), (3, False)])
def test_drift_of_length_warns(times: int, success: bool) -> None:
    """New documents three times as long as the history warn; twice is what is allowed. Medians, not means."""
    old = [{"query": f"old {i}", "document": "x" * 100, "commit": 4} for i in range(100)]
    new = [{"query": f"new {i}", "document": "y" * 100 * times, "commit": 5} for i in range(100)]
    new[0]["document"] = "z" * 90_000
    result = checked([*old, *new], since=4)
    assert finding(result, "document_length_is_stable").observed == times
    assert finding(result, "document_length_is_stable").success is success
    assert finding(result, "query_length_is_stable").observed == 1
    assert result.verdict == "ok"


def test_shorter_texts_are_drift_too() -> None:
    """Half as long is a drift of two, and an identifier lost from 40 characters to 10 one of four."""
    old = [{"query": "q" * 40 + f"{i:03}", "document": f"d {i}", "commit": 1} for i in range(100)]
    new = [{"query": "q" * 8 + f"{i:03}", "document": f"d {i}", "commit": 2} for i in range(100)]
    assert finding(checked([*old, *new], since=1), "query_length_is_stable").observed == pytest.approx(43 / 11)


@pytest.mark.parametrize("since", [0, 1])
def test_drift_without_history_is_not_measured(since: int) -> None:
    """A first night, and a night with nothing new, have nothing to compare."""
    found = finding(checked(sound_rows(), since=since), "document_length_is_stable")
    assert (found.observed, found.success, found.seen) == (None, True, "not measured")


GERMAN = [
    {
        "query": f"Wie kann ich die Pumpe mit der Nummer {i} reparieren?",
        "document": f"Um die Pumpe {i} zu reparieren, schließen Sie bitte zuerst das Ventil und tauschen die Dichtung.",
    }
    for i in range(100)
]


@pytest.mark.parametrize(
    ("supported", "share"),
    [(frozenset({"en"}), 1 / 3), (frozenset({"en", "de"}), 0.0), (frozenset({"multilingual"}), 0.0), (None, None)],
)
def test_languages_the_model_is_not_made_for_warn(supported: frozenset[str] | None, share: float | None) -> None:
    """100 of 300 rows are German: a warning and advice for an English model, none for others or an unknown one."""
    result = checked([*sound_rows()[:200], *GERMAN], supported=supported)
    found = finding(result, "languages_are_supported")
    assert found.observed == (None if share is None else pytest.approx(share, abs=0.02))
    assert found.success is (share is None or share < 0.1)
    assert ("start from a multilingual model" in result.guidance) is (not found.success)
    assert result.verdict == "ok"


def test_an_expectation_that_cannot_be_evaluated_fails() -> None:
    """Great Expectations catches what its metrics raise; here that is a failure with the message."""
    check = suite.Check("broken", "critical", "query_chars", "", "", "query", suite.checks(RULE)["night"][0].make)
    frame = run.label_frame(table(sound_rows()))
    [found] = run._evaluate([check], frame, None)
    assert not found.success
    assert "distinct_pairs" in found.error
    assert ChecksResult.of([found]).verdict == "blocked"


def test_a_critical_measure_that_is_missing_fails() -> None:
    """Great Expectations passes missing values; a share that could not be computed must not pass as zero."""
    for value in (None, float("nan")):
        [found] = run._evaluate_measures(suite.leak_checks(RULE), {"leaked_share": value})
        assert not found.success


def test_checks_that_did_not_run_have_not_passed() -> None:
    """No findings are no verdict."""
    with pytest.raises(ValueError, match="no expectation was evaluated"):
        ChecksResult.of([])


@pytest.mark.parametrize(("n", "verdict"), [(3, "ok"), (4, "blocked")])
def test_leaked_test_queries_block_in_numbers(sound: ChecksResult, n: int, verdict: str) -> None:
    """3 of 10 are the 30 per cent that are allowed; the finding is added once, however often it is made."""
    leaked = np.arange(10) < n
    queries = [f"query {i}" for i in range(10)]
    result = check_leaks(check_leaks(sound, ~leaked, queries, RULE), leaked, queries, RULE)
    assert result.verdict == verdict
    assert finding(result, suite.LEAKED).observed == n / 10
    assert [s.text for s in finding(result, suite.LEAKED).samples] == queries[:n]
    assert result.guidance == sound.guidance
    with pytest.raises(ValueError, match="10 flags for 9 test queries"):
        check_leaks(sound, leaked, queries[:9], RULE)


def test_the_result_survives_json(sound: ChecksResult) -> None:
    """`checks.json` read back is the same result, and plain JSON."""
    text = sound.model_dump_json()
    assert ChecksResult.model_validate_json(text) == sound
    assert json.loads(text)["verdict"] == "ok"


def test_the_table_shows_failures_first() -> None:
    """Critical failures, warnings, then what passed; every cell a text."""
    rows = sound_rows()
    rows[5]["query"] = " "
    shown = checked(rows).table()
    assert [(row["check"], row["result"]) for row in shown[:2]] == [
        ("Query not blank", "failed"),
        ("Many pairs", "failed"),
    ]
    assert {row["result"] for row in shown[2:]} == {"ok"}
    assert shown[0]["observed"] == "1 of 201 rows"
    assert all(type(cell) is str for row in shown for cell in row.values())


def test_texts_are_shown_cut_and_without_control_characters() -> None:
    """A right-to-left override, a terminal escape and a line break are spelled out."""
    assert visible("a\u202eb\x1b[31m\nc") == "a\\u202eb\\x1b[31m\\nc"
    assert visible("x" * 500) == "x" * 199 + "…"
    assert visible("日本 🙂") == "日本 🙂"


def test_nothing_is_sent_anywhere(monkeypatch: pytest.MonkeyPatch, sound: ChecksResult) -> None:
    """Great Expectations sends usage statistics unless told not to: here no connection is even tried."""

    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"a connection was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert checked(sound_rows()) == sound
    assert run._context().config.analytics_enabled is False


def test_great_expectations_is_imported_where_it_is_used() -> None:
    """Its import takes seconds: none of our modules brings it along."""
    modules = "run suite findings guidance languages leaks data_docs measures".split()  # noqa: SIM905 (a list of names)
    code = f"import sys, {', '.join(f'data_checks.{m}' for m in modules)}; print('great_expectations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
