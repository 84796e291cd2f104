"""How far a long step is and how long it still takes, as a line every half minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_LINE_SECONDS: Final = 30.0


class Pace:
    """Turns reports of "this much of so much is done" into a line every half minute, with the time left."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self._what, self._say = what, say
        self._first: tuple[float, int] | None = None  # when the first report came, and what was done by then
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Note that `done` of `total` is done."""
        now = time.monotonic()
        # from the first report on: models are loaded before it, and a training goes on from its checkpoint
        began, before = self._first = self._first or (now, done)
        if done > before and now - self._said >= _LINE_SECONDS:
            self._said = now
            left = duration((now - began) * (total - done) / (done - before))
            self._say(f"{self._what}: {done:,} of {total:,}, about {left} left")


def duration(seconds: float) -> str:
    """A duration to the second below two minutes, to the minute above."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
