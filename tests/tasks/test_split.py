"""Which rows are held out and the order of the shuffle: shares, independence, and the same on every machine."""

import numpy as np
import pytest

from tasks.split import is_validation, shuffle_key


def test_another_seed_is_another_split_of_the_same_share() -> None:
    rows = np.arange(10_000)
    first, second = is_validation(rows, 0.1, 0), is_validation(rows, 0.1, 1)
    assert first.mean() == pytest.approx(0.1, abs=0.015) and second.mean() == pytest.approx(0.1, abs=0.015)
    assert (first & second).mean() == pytest.approx(0.01, abs=0.005)


def test_split_and_order_are_the_same_on_every_machine() -> None:
    """Where these change, so does what every seed means: preprocess needs a new version then."""
    assert np.flatnonzero(is_validation(np.arange(200), 0.05, 7)).tolist() == [10, 61, 100, 124, 138, 158, 179, 196]
    keys = shuffle_key(np.array([1, 2**40]), np.array([7, 3]), 5)
    assert keys.tolist() == [7317805532868673533, 13089453154240065699]
