"""Actors that take turns at every request to the store, and may die at any: who is next is drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from greenlet import getcurrent, greenlet

DECIDING = ("/RETIRED", "/manifest.json", "/train.json", "production.json")
"""Keys that others look at before they act: it matters what they do just before and after one of them is written."""


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
    holds_up: float = 0.0
    """Chance that a write on which others act is held up before it arrives, or its writer afterwards."""
    held_up: dict[greenlet, int] = field(default_factory=dict)
    """Those who let so many turns of others go by first."""
    hurried: set[greenlet] = field(default_factory=set)
    """Those who have looked at a clock, and whose next request arrives before a day is over."""
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
            if self.held_up.get(chosen, 0) > 0:
                self.held_up[chosen] -= 1
                chosen = self._ready[self.random.randrange(len(self._ready))]
            chosen.switch()
            if chosen.dead:
                self._ready.remove(chosen)
                self.hurried.discard(chosen)

    def turn(self) -> None:
        """Let others go on; returns when it is this one's turn again."""
        if self._main is not None and getcurrent() is not self._main:
            self._main.switch()

    def perhaps_hold_up(self) -> None:
        """Perhaps let the one whose turn it is wait for turns of others."""
        if self.random.random() < self.holds_up:
            self.held_up[getcurrent()] = self.random.choice((10, 40, 160))

    def hurry(self) -> None:
        """Somebody looks at a clock."""
        self.hurried.add(getcurrent())

    def arrived(self) -> None:
        """The request of the one whose turn it is has arrived."""
        self.hurried.discard(getcurrent())

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

    def before(self, written: str) -> None:
        """Let others go on, or die; the dead ask for nothing more."""
        if self.dead:
            raise Crash
        decides = written.endswith(DECIDING)
        if decides:
            self.crowd.perhaps_hold_up()
        self.crowd.turn()
        self.crowd.arrived()
        if decides:
            self.crowd.perhaps_hold_up()
        self.after()

    def after(self) -> None:
        """Perhaps die."""
        if self.crowd.dies():
            self.dead = True
            raise Crash
