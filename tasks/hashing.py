"""Hashes in place of random states: what is drawn depends on the thing itself, never on the order of reading."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bits = NDArray[np.uint64]


def splitmix64(bits: "Bits") -> "Bits":
    """64 well-mixed bits per element: one step of splitmix64 (Steele, Lea and Flood 2014) from that state."""
    import numpy as np

    with np.errstate(over="ignore"):
        bits = bits + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


def stable_hash(seed: int, *columns: "NDArray") -> "Bits":
    """64 bits per element of integer columns, which are broadcast; the same on every machine."""
    import numpy as np

    bits = splitmix64(np.array([seed], dtype=np.int64).astype(np.uint64))
    for column in columns:
        bits = splitmix64(bits ^ np.asarray(column).astype(np.uint64))
    return bits
