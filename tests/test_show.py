"""How outcomes look in a terminal: the figures that a person decides by, and nothing that data could dress up."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from deployments.terminal import show
from tasks.config import Delta, Model, Outcome
from tasks.parsing import Rejected


def _text(found: Any) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    show.to(console, found)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _outcome(**changes: Any) -> Outcome:
    facts: dict[str, Any] = {
        "run_id": "20260102T033000Z-0123abcd",
        "verdict": "promoted",
        "reasons": ["Recall@10 +0.190 and MRR +0.260 are surely gains"],
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
    assert "Recall@10 +0.190 and MRR +0.260 are surely gains" in lines[-1]


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
