"""The exact selection of the CPU's training step: the k largest of each row, in one pass over it.

Shapes: B rows, N n_latents, K k, C chunks of a row.
"""

from typing import Any

import numpy as np
from numba import njit, prange

from sae_core.kernels.compiled import OPTIONS, ROWS, compiled, part, widened
from sae_core.kernels.cpu_rounded import Rounded, exactly, margin, widest_margin

QUARTER = 2 << 23  # two exponents of a float below another: a quarter of it
ZERO, ONE = np.uint64(0), np.uint64(1)  # of indices that are computed: a signed one is looked at in case it is negative


@part
def _least_kept(keys: np.ndarray, k: int, more: int) -> Any:
    """A key that at least k of `keys` reach, and at most k + more where ties allow; 1 where at most k are positive.

    A positive float and its bits read as an integer have the same order; what is not positive has a key below 1.
    """
    top = np.int32(0)
    positive = 0
    for i in range(keys.shape[0]):
        top = max(top, keys[i])
        positive += keys[i] > 0
    if positive <= k:
        return np.int32(1)
    low, high = 1, int(top) + 1  # at least k keys reach low, fewer reach high
    first = int(top) - QUARTER
    while high - low > 1:
        middle = np.int32(first if first > low else (low + high) // 2)
        first = 0
        count = 0
        for i in range(keys.shape[0]):
            count += keys[i] >= middle
        if count < k:
            high = int(middle)
        else:
            low = int(middle)
            if count <= k + more:
                break
    return np.int32(low)


@njit(fastmath={"reassoc", "nsz"}, **OPTIONS)  # only the sum may be reordered, which is asked whether it is finite
def raise_maxima(raised_C: np.ndarray, largest_C: np.ndarray, pre_C: np.ndarray, bias_C: np.ndarray) -> Any:
    """Raises each maximum to pre + bias where that is larger; returns the sum of all pre + bias, which shows any NaN.

    Into another array: in place it becomes a store under a mask, which takes AMD's processors three times as long.
    """
    total = np.float32(0)
    for c in range(pre_C.shape[0]):
        value = widened(pre_C[c]) + bias_C[c]
        total += value
        raised_C[c] = max(largest_C[c], value)
    for c in range(pre_C.shape[0], largest_C.shape[0]):
        raised_C[c] = largest_C[c]
    return total


@part
def _in_fp32(
    found: np.ndarray, found_places: np.ndarray, size: int, bias_N: np.ndarray, k: int, rounded: Rounded, row: int
) -> int:
    """Puts in place of `size` values those in fp32 of all that may be among the k largest; returns how many.

    First those of the k largest as they are, of which the least is a bound for the rest.
    """
    bound = np.empty(1, np.float32)
    bound_key = bound.view(np.int32)
    bound_key[0] = _least_kept(found[:size].view(np.int32), k, k // 4)
    first = 0
    for i in range(size):
        value, place = found[i], found_places[i]
        if value >= bound[0]:
            found[i], found_places[i] = found[first], found_places[first]
            found[first], found_places[first] = value, place
            first += 1
    for i in range(first):
        found[i] = exactly(rounded, row, found_places[i], bias_N[found_places[i]])
    bound_key[0] = _least_kept(found[:first].view(np.int32), k, 0)
    count = first
    for i in range(first, size):
        place, value = found_places[i], found[i]
        bias = bias_N[place]
        if value + margin(rounded, row, place, value, bias) >= bound[0]:
            found[count], found_places[count] = exactly(rounded, row, place, bias), place
            count += 1
    return count


@compiled(parallel=True)
def top_k(
    pre_BN: np.ndarray,
    bias_N: np.ndarray,
    rounded: Rounded | None,
    width: int,
    values_BK: np.ndarray,
    places_BK: np.ndarray,
    counts_B: np.ndarray,
) -> None:
    """The k largest positive values of each row of pre + bias, exactly; of equal ones those with the lowest number.

    `pre_BN` is float32, or the bits of bf16, and then `rounded` says how far each may be from the value in fp32.

    Chunk c holds the places c, c + C, c + 2C, ...; k of the C maxima reach a threshold, so at least k values do, and
    only chunks whose maximum reaches it hold any. A row that is not finite gets a NaN as its one value.
    """
    rows, n = pre_BN.shape
    k = values_BK.shape[1]
    chunks = (n + width - 1) // width
    for block in prange((rows + ROWS - 1) // ROWS):
        largest_C, raised_C = np.empty(chunks, np.float32), np.empty(chunks, np.float32)
        survivors, found_places = np.empty(chunks + 1, np.int32), np.empty(n + 1, np.int32)
        found = np.empty(n + 1, np.float32)
        bound = np.empty(1, np.float32)
        bound_key = bound.view(np.int32)
        for row in range(block * ROWS, min(rows, (block + 1) * ROWS)):
            pre_N, values_K, places_K = pre_BN[row], values_BK[row], places_BK[row]
            total = np.float32(0)
            largest_C[:] = -np.inf
            for start in range(0, n, chunks):
                piece = slice(start, start + chunks)
                total += raise_maxima(raised_C, largest_C, pre_N[piece], bias_N[piece])
                largest_C, raised_C = raised_C, largest_C
            bound_key[0] = _least_kept(largest_C.view(np.int32), k, k // 4)
            lowest = bound[0]
            if rounded is not None:  # known when compiled: two functions
                wide = widest_margin(rounded, row, lowest)
                total += wide
                lowest -= 2 * wide
            if not np.isfinite(total):
                values_K[0], places_K[0], counts_B[row] = np.nan, 0, 1
                continue
            surviving, filled = ZERO, ZERO
            for c in range(chunks):  # without branches, which nobody can predict: what is not wanted is overwritten
                survivors[surviving] = c
                surviving += ONE if largest_C[c] >= lowest else ZERO
            for i in range(surviving):
                place = np.uint64(survivors[i])
                while place < np.uint64(n):
                    value = widened(pre_N[place]) + bias_N[place]
                    found[filled], found_places[filled] = value, np.int32(place)
                    filled += ONE if value >= lowest else ZERO
                    place += np.uint64(chunks)
            size = np.int64(filled)
            if rounded is not None:
                size = _in_fp32(found, found_places, size, bias_N, k, rounded, row)
            bound_key[0] = _least_kept(found[:size].view(np.int32), k, 0)
            count, ties = 0, 0
            for i in range(size):
                count += found[i] > bound[0]
                ties += found[i] == bound[0]
            last = n  # place of the last of the equal ones that is kept
            if count + ties > k:
                keys = np.empty(ties, np.int32)
                ties = 0
                for i in range(size):
                    if found[i] == bound[0]:
                        keys[ties] = n - found_places[i]
                        ties += 1
                last = n - _least_kept(keys, k - count, 0)
            count = 0
            for i in range(size):
                if found[i] > bound[0] or (found[i] == bound[0] and found_places[i] <= last):
                    values_K[count], places_K[count] = found[i], found_places[i]
                    count += 1
            counts_B[row] = count


class RowSelection:
    """The codes of a batch, row by row: TopK's."""

    threshold = None

    def __init__(self, rows: int, k: int, n: int) -> None:
        self.values_BK = np.empty((rows, k), np.float32)
        self.places_BK = np.empty((rows, k), np.int32)
        self.counts_B = np.empty(rows, np.int32)
        ideal = (n / k) ** 0.5  # makes chunk maxima and the values in surviving chunks equally many
        self._width = max(width for width in (1, 2, 4, 8, 16, 32) if width == 1 or width <= ideal)

    def take(self, pre_TN: np.ndarray, bias_N: np.ndarray, rounded: Rounded | None, part: slice) -> None:
        """The codes of the rows `part`; see `top_k`."""
        top_k(pre_TN, bias_N, rounded, self._width, self.values_BK[part], self.places_BK[part], self.counts_B[part])

    def finish(self) -> bool:
        """Says that all is done."""
        return True
