"""The hashes that stand in for random states: published values, and the same on every machine."""

import numpy as np

from tasks.hashing import splitmix64, stable_hash


def test_it_is_splitmix64() -> None:
    """The first three outputs from the seed 1234567, whose state grows by the golden gamma."""
    states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_hash_is_the_same_on_every_machine() -> None:
    found = stable_hash(7, np.array([0, 1]), np.array([2, -1]))
    assert found.tolist() == [5398316625919644772, 7528683550717403091]
    assert len(set(stable_hash(0, np.arange(100_000)).tolist())) == 100_000
