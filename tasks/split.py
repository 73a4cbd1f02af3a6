"""Which rows of the corpus are kept out of training, and in which order all tokens are shuffled: decided by hashes."""

from typing import TYPE_CHECKING

from tasks.hashing import splitmix64

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]


def is_validation(row_ids: "Integers", fraction: float, seed: int) -> "NDArray[np.bool_]":
    """Whether each corpus row belongs to that fraction: the same for a row wherever it is asked."""
    import numpy as np

    return shuffle_key(row_ids, np.zeros_like(row_ids), seed ^ 0x5EED) < np.uint64(int(fraction * 2.0**64))


def shuffle_key(row_ids: "Integers", positions: "Integers", seed: int) -> "NDArray[np.uint64]":
    """A uniform 64-bit hash of (seed, row, position in the row): tokens sorted by it are shuffled."""
    import numpy as np

    with np.errstate(over="ignore"):
        rows = splitmix64(row_ids.astype(np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15))
        return splitmix64(rows + positions.astype(np.uint64))
