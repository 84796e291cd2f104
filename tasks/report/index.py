"""What a report says of an index of documents: whether it stays, and what each side of a training would have cost."""

from __future__ import annotations

from tasks.config import Index, Outcome
from tasks.records import Reindexing

_BECOMES: dict[Index, str] = {
    "stays": "stays: documents have the vectors that they had",
    "moves": "moves: every document has to be encoded again before the new version searches",
}


def index_rows(outcome: Outcome, found: Reindexing | None) -> list[tuple[str, str]]:
    """What becomes of an index, each as two texts; empty where nothing was scored."""
    if found is None:
        return []
    documents = f"{found.documents:,} document{'s' * (found.documents != 1)}"
    hours = f"{found.hours:.2g} h" if found.hours >= 0.1 else f"{found.hours * 60:.2g} min"
    moving = f"{documents} to encode, {hours} at the measured {found.per_second:,.3g} a second"
    candidates = "would have stayed" if found.index == "stays" else "would have moved"
    becomes = _BECOMES[outcome.index] if outcome.index else f"stays: nothing was promoted; the candidate's {candidates}"
    return [
        ("Index", becomes),
        ("A new version of both sides", moving),
        ("One of the query side alone", "no document to encode"),
    ]
