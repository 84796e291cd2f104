"""The simulated store: nothing is lost whatever happens in whatever order, and planted faults are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests.simulation.planted import PLANTED, planted
from tests.simulation.world import Violation, World, digest, simulate

SEEDS = 1000
"""Schedules among which each planted fault is found: the rarest shows in one of 400."""

SHOWS_IN: Final[dict[str, Callable[[World], bool]]] = {
    "retention by a fast clock": lambda world: world.focus == "retention",
    "a promotion does not look for the marker": lambda world: world.focus == "retention",
    "an outcome from memory": lambda world: world.crowd.deaths == 4,
    "nobody announces for the dead": lambda world: world.crowd.deaths == 4,
}
"""Faults that few schedules show, and which those are."""


def test_500_schedules_keep_every_promise() -> None:
    """Uploads, nights, watches, rollbacks, releases, erasures, retention, with crashes, lost replies and refusals."""
    changes = failures = 0
    for seed in range(500):
        world = simulate(seed)
        changes += len(set(world.told))
        failures += world.failures
    assert changes > 500
    assert failures > 500


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_20_000_schedules_keep_every_promise() -> None:
    """The same, for longer."""
    for seed in range(500, 20_500):
        simulate(seed)


def test_a_seed_replays_a_schedule() -> None:
    """To the byte and the second, so that a failure can be looked at."""
    for seed in (3, 7, 20):
        assert digest(simulate(seed)) == digest(simulate(seed))
    assert digest(simulate(3)) != digest(simulate(7))


@pytest.mark.parametrize("fault", sorted(PLANTED))
def test_a_planted_fault_is_found(fault: str) -> None:
    """By a promise that is broken, or by the code itself, that finds its store damaged."""
    with planted(fault), pytest.raises((Violation, Exception)):
        _simulate(SHOWS_IN.get(fault, bool))


def _simulate(is_worth_it: Callable[[World], bool]) -> None:
    for world in map(World, range(SEEDS)):
        if is_worth_it(world):
            world.run()
