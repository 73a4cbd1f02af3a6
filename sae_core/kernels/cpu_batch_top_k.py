"""BatchTopK's exact selection in the CPU's training step: what reaches the (k x rows)-th largest value of the batch.

Which values are looked at is guessed from the step before: those from GUESS times its threshold on. Where they turn out
too few, the guess is halved and the batch encoded again, so that the result never depends on it.

Shapes: B rows of the global batch, T rows of a tile, N n_latents, W places of a row.
"""

import numpy as np
import torch
from numba import prange
from torch import distributed as dist

from sae_core.kernels.compiled import ROWS, compiled
from sae_core.kernels.cpu_rounded import Rounded, as_float32, exactly, margin, widest_margin
from sae_core.kernels.cpu_top_k import raise_maxima

GUESS = 0.95
FIRST_ROWS = 64  # that the very first guess is made from


class BatchSelection:
    """The codes of a batch, all at once; each rank fills in its own rows, and all learn one threshold."""

    def __init__(self, rows: int, k: int, n: int, own: slice, group: "dist.ProcessGroup | None") -> None:
        """`group`: the ranks that select together; None: this one by itself."""
        self._wanted = k * (rows if group else own.stop - own.start)
        self._k, self._own, self._group = k, own, group
        self._guess: float | None = None
        self.threshold = 0.0  # smallest value kept, at least 0
        self.counts_B = np.zeros(rows, np.int32)
        self._make_room(min(n, 4 * k))

    def _make_room(self, places: int) -> None:
        self.values_BK = np.empty((len(self.counts_B), places), np.float32)
        self.places_BK = np.empty((len(self.counts_B), places), np.int32)

    def take(self, pre_TN: np.ndarray, bias_N: np.ndarray, rounded: Rounded | None, part: slice) -> None:
        """Candidates of the rows `part`; counts all of them, keeps those there are places for. See `top_k`."""
        if self._guess is None:
            total = as_float32(pre_TN[:FIRST_ROWS]) + bias_N
            wanted = min(self._k * len(total), total.size)
            least = np.partition(total, total.size - wanted, axis=None)[-wanted]
            guess = torch.tensor(max(0.0, float(least)) if np.isfinite(least) else 0.0, dtype=torch.float64)
            if self._group:  # one for all ranks: what lies below it is nowhere among the candidates
                dist.all_reduce(guess, op=dist.ReduceOp.MIN, group=self._group)
            self._guess = GUESS * float(guess)
        codes = self.values_BK[part], self.places_BK[part], self.counts_B[part]
        _reaching(pre_TN, bias_N, rounded, np.float32(self._guess), *codes)

    def finish(self) -> bool:
        """Keeps what reaches the threshold; False where the candidates do not do and must be taken again."""
        counts_T = self.counts_B[self._own]
        found, most = self._over_ranks(int(counts_T.sum()), int(counts_T.max()))
        if most > self.values_BK.shape[1]:
            self._make_room(most + most // 4)
            return False
        assert self._guess is not None, "rows have been taken"
        if found < self._wanted and self._guess > 0:
            self._guess = self._guess / 2 if self._guess > 1e-12 else 0.0
            return False
        values_TW = self.values_BK[self._own]
        values = values_TW[np.arange(values_TW.shape[1]) < counts_T[:, None]]
        values = self._of_all_ranks(values)
        enough = len(values) >= self._wanted
        self.threshold = float(np.partition(values, -self._wanted)[-self._wanted]) if enough else 0.0
        self._guess = GUESS * self.threshold
        _keep(np.float32(self.threshold), values_TW, self.places_BK[self._own], counts_T)
        return True

    def meet(self, group: "dist.ProcessGroup") -> None:
        """Gives all ranks as many places, and the mean of their thresholds, which differ where each selects alone."""
        places = torch.tensor(self.values_BK.shape[1])
        threshold = torch.tensor(self.threshold, dtype=torch.float64)
        dist.all_reduce(places, op=dist.ReduceOp.MAX, group=group)
        dist.all_reduce(threshold, group=group)
        self.threshold = float(threshold) / dist.get_world_size(group)
        if int(places) > self.values_BK.shape[1]:
            values_TW, places_TW = self.values_BK[self._own], self.places_BK[self._own]
            self._make_room(int(places))
            self.values_BK[self._own, : values_TW.shape[1]] = values_TW
            self.places_BK[self._own, : places_TW.shape[1]] = places_TW

    def _over_ranks(self, found: int, most: int) -> tuple[int, int]:
        """The sum of one and the maximum of the other."""
        if self._group is None:
            return found, most
        both = [torch.empty(2, dtype=torch.int64) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(both, torch.tensor([found, most]), group=self._group)
        return sum(int(one[0]) for one in both), max(int(one[1]) for one in both)

    def _of_all_ranks(self, values: np.ndarray) -> np.ndarray:
        """Every rank's values; free places, which hold 0, are among them."""
        if self._group is None:
            return values
        most = self._over_ranks(0, len(values))[1]
        own = torch.zeros(most)
        own[: len(values)] = torch.from_numpy(values)
        together = torch.empty(most * dist.get_world_size(self._group))
        dist.all_gather_into_tensor(together, own, group=self._group)
        return together.numpy()


@compiled(parallel=True)
def _reaching(
    pre_TN: np.ndarray,
    bias_N: np.ndarray,
    rounded: Rounded | None,
    bound: float,
    values_TW: np.ndarray,
    places_TW: np.ndarray,
    counts_T: np.ndarray,
) -> None:
    """The positive values of each row of pre + bias that reach `bound`, by place. A row that is not finite gets a NaN
    as its one value."""
    rows, n = pre_TN.shape
    room = values_TW.shape[1]
    for block in prange((rows + ROWS - 1) // ROWS):
        chunks = 64
        nothing_C, largest_C = np.full(chunks, np.float32(-np.inf)), np.empty(chunks, np.float32)
        for row in range(block * ROWS, min(rows, (block + 1) * ROWS)):
            pre_N, values_W, places_W = pre_TN[row], values_TW[row], places_TW[row]
            total, count, lowest = np.float32(0), 0, bound
            if rounded is not None:  # known when compiled: two functions
                wide = widest_margin(rounded, row, bound)
                total += wide
                lowest = bound - wide
            for start in range(0, n, chunks):
                piece = slice(start, start + chunks)
                total += raise_maxima(largest_C, nothing_C, pre_N[piece], bias_N[piece])  # the sums themselves
                reached = 0
                for c in range(chunks):
                    reached += largest_C[c] >= lowest
                if reached > 0:
                    for c in range(min(chunks, n - start)):
                        value = largest_C[c]
                        if rounded is not None and value >= lowest:
                            bias = bias_N[start + c]
                            if value + margin(rounded, row, start + c, value, bias) < bound:
                                continue
                            value = exactly(rounded, row, start + c, bias)
                        if value >= bound and value > 0:
                            if count < room:
                                values_W[count], places_W[count] = value, start + c
                            count += 1
            if not np.isfinite(total):
                values_W[0], places_W[0], count = np.nan, 0, 1
            counts_T[row] = count


@compiled(parallel=True)
def _keep(threshold: float, values_TW: np.ndarray, places_TW: np.ndarray, counts_T: np.ndarray) -> None:
    """Of each row what reaches the threshold, and NaN."""
    rows = len(counts_T)
    for block in prange((rows + ROWS - 1) // ROWS):
        for row in range(block * ROWS, min(rows, (block + 1) * ROWS)):
            values_W, places_W = values_TW[row], places_TW[row]
            count = 0
            for w in range(counts_T[row]):
                if not values_W[w] < threshold:
                    values_W[count], places_W[count] = values_W[w], places_W[w]
                    count += 1
            counts_T[row] = count
