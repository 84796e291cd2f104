"""What zero-shot scores as a control variate would give the gate before the first promotion, by plain t-intervals.

The base model's scores are known on all queries, trained on or not. Where the test queries are luckily hard or easy for
it, that is known as well, and the difference can be corrected by its regression on these scores (Lavenberg and Welch, A
perspective on the use of control variables, Management Science, 1981). The gate does not do so: see the notes of the
published figures.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.99
TEST_SHARE = 0.15


class Drawn(Protocol):
    """What nights are drawn from; see `bench_gate.Population`."""

    candidate: np.ndarray
    production: np.ndarray

    def draw(self, queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Places of so many queries, and which of them were drawn as one unit."""


def promoted(population: Drawn, queries: int, nights: int) -> tuple[int, int]:
    """How many of so many nights show a gain in both metrics: as they are, and with the control variate."""
    plain = corrected = 0
    for seed in range(nights):
        places, _ = population.draw(int(queries / TEST_SHARE), np.random.default_rng([11, queries, seed]))
        test = places[:queries]
        difference = population.candidate[test] - population.production[test]  # (queries, 2)
        zero_shot, known = population.production[test], population.production[places].mean(axis=0)
        plain += bool((_lower(difference, np.zeros_like(zero_shot), np.zeros(2)) > 0).all())
        corrected += bool((_lower(difference, zero_shot, known) > 0).all())
    return plain, corrected


def _lower(difference: np.ndarray, control: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Lower bounds of the mean difference, of shape (2,), corrected by a control whose expectation is nearly known."""
    queries = len(difference)
    centred = control - control.mean(axis=0)
    squares = (centred**2).sum(axis=0)
    slope = (centred * difference).sum(axis=0) / np.maximum(squares, 1e-12)
    value = difference.mean(axis=0) - slope * (control.mean(axis=0) - known) * (squares > 0)
    rest = ((difference - difference.mean(axis=0) - slope * centred) ** 2).sum(axis=0) / (queries - 2)
    of_known = slope**2 * squares / (queries - 1) * TEST_SHARE  # the expectation is itself a mean of so many more
    return np.asarray(value - stdtrit(queries - 2, CONFIDENCE) * np.sqrt((rest + of_known) / queries))
