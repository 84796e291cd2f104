"""How outcomes look in a terminal: the figures that a person decides by, and nothing that data could dress up."""

from __future__ import annotations

import ast
import io
import logging
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deployments.terminal import show
from deployments.terminal.text import SafeConsole, escape, printable, sanitise_logs
from tasks.config import Delta, Model, Outcome
from tasks.parsing import Rejected
from tasks.registry import Change


def _text(found: Any) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    show.to(console, found)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _outcome(**changes: Any) -> Outcome:
    facts: dict[str, Any] = {
        "run_id": "20260102T033000Z-0123abcd",
        "verdict": "promoted",
        "reasons": ["Recall@10 +0.190 and MRR +0.260 are significant gains"],
        "commit": 3,
        "candidate": Model(version="0123456789abcdef", scores={"recall_at_10": 0.92, "mrr": 0.76}),
        "production": Model(version=None, scores={"recall_at_10": 0.73, "mrr": 0.5}),
        "deltas": {"recall_at_10": Delta(value=0.19, low=0.1234, high=0.25, confidence=0.99)},
        "seconds": {"intake": 1.25, "fine-tune": 60.0},
    }
    return Outcome(**{**facts, **changes})


def test_an_outcome_shows_both_sides_the_difference_and_the_verdict() -> None:
    """One line for each metric that both sides have; nothing in production yet is called the base model."""
    lines = _text(show.outcome(_outcome())).splitlines()
    recall, mrr = (next(line.split() for line in lines if line.startswith(name)) for name in ("Recall@10", "MRR"))
    assert recall == ["Recall@10", "0.730", "0.920", "+0.190", "+0.123", "to", "+0.250", "at", "99%"]
    assert mrr == ["MRR", "0.500", "0.760", "+0.260"]
    assert any("base model" in line for line in lines)
    assert any(line.startswith("Verdict    promoted") for line in lines)
    assert "Recall@10 +0.190 and MRR +0.260 are significant gains" in lines[-1]


def test_a_skipped_night_has_a_verdict_and_no_scores() -> None:
    """Where nothing was trained there is no table to misread."""
    text = _text(show.outcome(_outcome(verdict="skipped", reasons=["nothing new"], candidate=None, production=None)))
    assert "skipped" in text
    assert "nothing new" in text
    assert "Recall" not in text


def test_text_from_data_cannot_style_the_terminal() -> None:
    """Square brackets in an uploaded text are shown, not obeyed."""
    row = Rejected("pairs/[red]a.jsonl", 7, "[bold]no document[/bold]", "[link=http://x]click[/link]")
    text = _text(show.rejected([row, row]))
    assert "[bold]no document[/bold]" in text
    assert "pairs/[red]a.jsonl:7" in text
    assert "[link=http://x]click[/link]" in text
    assert text.splitlines()[2].startswith("2 ")


ATTACKS = {
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",  # OSC 52: what is pasted next
    "title": "\x1b]0;hidden\x1b\\",
    "erase": "\x1b[2K\x1b[1A",
    "one byte": "\x9b2K\x9d52;c;eA==\x9c",  # the same by C1 controls, which some terminals obey
    "back": "bad\x08\x08\x08good\rgood",
    "direction": "\u202egnp.exe\u2066",
    "separator": "a\u2028Verdict    promoted\u2029",
    "surrogate": "\ud800",
    "line": "x\nVerdict    promoted",
}
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nothing_from_data_reaches_the_terminal_as_a_control(attack: str) -> None:
    """Quarantine, history, list of runs and verdict, each with the attack in every text; no line is forged."""
    rejected = show.rejected([Rejected(f"pairs/{attack}", 7, attack, attack)])
    fingerprint = {"base_model": "b", "dimension": 3, "weights": "0" * 64, "rebuild_index": False}
    change = Change.model_construct(
        version=attack, previous=None, promotion=1, run_id="r", at=datetime.now(UTC), action=attack, who=attack,
        reason=attack, scores={}, fingerprint=fingerprint,
    )  # fmt: skip
    outcome = _outcome(reasons=[attack], run_id=attack, seconds={attack: 1.0})
    for shown in (rejected, show.ledger([change]), show.runs([outcome]), show.outcome(outcome)):
        text = _text(shown)
        assert not UNSAFE.search(text), text
        assert not re.search("^Verdict    promoted$", text, re.MULTILINE)
        text.encode()


def test_what_is_harmless_stays_as_it_is() -> None:
    """Letters of every script, emoji that are joined, newlines of a log and markup; what is unsafe can be read."""
    for text in ("naïve 東京 क\u200d 👩\u200d🔬", "a\tb\nc", ""):
        assert printable(text) == text
    assert printable("\x1b[31m\x9b\u202e\U000e0001") == "\\x1b[31m\\x9b\\u202e\\U000e0001"
    assert escape("[red]\n") == "\\[red]\\n"
    assert escape("a\nb", lines=True) == "a\nb"


def test_the_console_guards_what_nobody_escaped() -> None:
    """Its own colours are control sequences, and stay; those in a text, also in a table or heading, do not."""
    console = SafeConsole(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    table = show.rejected([])
    table.add_row(*[f"[red]{ATTACKS['clipboard']}[/]"] * 4)
    for shown in (table, f"[red]{ATTACKS['clipboard']}[/]"):
        console.print(shown, markup=True)
    console.rule(ATTACKS["clipboard"])
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b[31m" in text
    assert "\x1b]" not in text
    assert "\x07" not in text


def test_logs_are_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages with their arguments, and the text of exceptions, whichever handler writes them."""
    usual = logging.getLogRecordFactory()
    stream = io.StringIO()
    logger = logging.Logger("of this test")
    logger.addHandler(logging.StreamHandler(stream))
    try:
        sanitise_logs()
        sanitise_logs()  # once is enough
        logger.warning("key %s of %d", ATTACKS["clipboard"], 3)
        error = ValueError(ATTACKS["erase"])
        logger.error("it broke", exc_info=(type(error), error, None))
    finally:
        logging.setLogRecordFactory(usual)
    text = stream.getvalue()
    assert "key \\x1b]52" in text
    assert "of 3" in text
    assert "ValueError: \\x1b[2K" in text
    assert not UNSAFE.search(text)


def test_there_is_one_way_to_the_terminal() -> None:
    """Nobody else escapes markup or makes a console."""
    root = Path(__file__).parent.parent / "deployments"
    for path in root.rglob("*.py"):
        if path.name == "text.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "rich.markup"), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "Console", f"{path}:{node.lineno}"
