"""Actors that take turns at every request to the store, and may die at any: who is next is drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from greenlet import getcurrent, greenlet


class Crash(BaseException):
    """The process is gone, as by kill -9: nothing of it reaches the store any more."""


@dataclass
class Crowd:
    """The actors, and how many deaths are still to be died."""

    random: random.Random
    deaths: int = 0
    likely: float = 0.0
    """Chance to die at a request."""
    restless: float = 1.0
    """Chance that it is somebody else's turn: below 1 somebody does much while the others do nothing."""
    _ready: list[greenlet] = field(default_factory=list)
    _main: greenlet | None = None

    def add(self, work: Callable[[], None]) -> None:
        """Let somebody take part."""
        self._ready.append(greenlet(lambda: work()))

    def run(self) -> None:
        """Let all go on until all have ended. What one raises ends everything."""
        self._main = getcurrent()
        chosen = self._ready[0]
        while self._ready:
            if chosen.dead or self.random.random() < self.restless:
                chosen = self._ready[self.random.randrange(len(self._ready))]
            chosen.switch()
            if chosen.dead:
                self._ready.remove(chosen)

    def turn(self) -> None:
        """Let others go on; returns when it is this one's turn again."""
        if self._main is not None and getcurrent() is not self._main:
            self._main.switch()

    def dies(self) -> bool:
        """Whether the one whose turn it is dies here."""
        acts = self._main is not None and getcurrent() is not self._main
        if self.deaths and acts and self.random.random() < self.likely:
            self.deaths -= 1
            return True
        return False


@dataclass
class Process:
    """One process of an actor, from its start to its death."""

    crowd: Crowd
    dead: bool = False

    def before(self) -> None:
        """Let others go on, or die; the dead ask for nothing more."""
        if self.dead:
            raise Crash
        self.crowd.turn()
        self.after()

    def after(self) -> None:
        """Perhaps die."""
        if self.crowd.dies():
            self.dead = True
            raise Crash
