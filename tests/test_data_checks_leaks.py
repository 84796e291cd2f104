"""The leak check: by hand, against the plain product, and closed to vectors that would hide a leak."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_checks.leaks import leaked_queries


def at(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane, by angle."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_near_identical_queries_by_hand() -> None:
    """The cosine of 18 degrees is 0.951, of 19 degrees 0.946: the first leaks, the second does not."""
    assert leaked_queries(at(0, 90, 200), at(18, 90 + 19, 199)).tolist() == [True, False, True]


def test_the_threshold_itself_is_no_leak() -> None:
    """Above 0.95, not at it; opposite vectors are as far as can be."""
    assert leaked_queries(at(0), at(60), threshold=0.4999).tolist() == [True]
    assert leaked_queries(at(0), at(0), threshold=1.0).tolist() == [False]
    assert leaked_queries(at(0), at(180)).tolist() == [False]


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_blocks_do_not_change_the_result(n: int, m: int, block: int, seed: int) -> None:
    """Whatever the blocks, the same as one product of everything; no queries on either side are no leaks."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n + m, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    test, trained = vectors[:n], vectors[n:]
    plain = [any(float(t @ q) > 0.8 for q in trained) for t in test]
    assert leaked_queries(test, trained, threshold=0.8, block=block).tolist() == plain


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 0.5])
@pytest.mark.parametrize("side", ["test", "training"])
def test_vectors_that_hide_a_leak_are_refused(value: float, side: str) -> None:
    """Not a number, or not of length 1: named by place and side, never "no leak"."""
    sound, broken = at(0, 1, 2), at(0, 1, 2)
    broken[1] = value
    given = (broken, sound) if side == "test" else (sound, broken)
    with pytest.raises(ValueError, match=f"vector 1 of the {side} queries has length"):
        leaked_queries(*given)


def test_other_dimensions_are_refused() -> None:
    """Vectors of two models do not compare."""
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(1, 3\)"):
        leaked_queries(at(0), np.eye(3, dtype=np.float32)[:1])
