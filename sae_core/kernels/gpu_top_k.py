"""TopK's exact selection in the GPU's training step: the k largest of each row, kept up to date tile by tile.

    pool = Pool.for_rows(rows, k, device)
    for first in range(0, n, width):
        top_k(pre_BT, bias_T, first, n, pool, values_BK, latents_BK)       # tiles in ascending order

What exceeds the k-th largest of an earlier tile is put into the row's pool. Only where that is full, and at the last
piece of the last, are the k largest of pool and piece found, which takes many times as long.

Shapes: B rows, T latents of one tile, K k, C places of a pool.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

NAN = tl.constexpr(0x7FC00000)  # its bits, above those of every number
PLACES = 256  # of a pool, at least
PIECE = 512  # latents of a row that a program has in registers


class Pool(NamedTuple):
    """Values that may be among the k largest of their row."""

    values_BC: Tensor
    latents_BC: Tensor  # int32
    counts_B: Tensor  # int32: places taken
    least_B: Tensor  # int32: the bits of a value that k latents before it reach, or 0

    @classmethod
    def for_rows(cls, rows: int, k: int, device: torch.device) -> "Pool":
        """An empty one."""
        places = max(PLACES, triton.next_power_of_2(2 * k))
        counts_B, least_B = torch.zeros(2, rows, dtype=torch.int32, device=device)
        latents_BC = torch.empty(rows, places, dtype=torch.int32, device=device)
        return cls(torch.empty(rows, places, device=device), latents_BC, counts_B, least_B)


class RowSelection:
    """The codes of a batch; each rank fills in its own rows."""

    counts_B: Tensor | None = None  # places of each row that are taken: all are looked at
    threshold: Tensor | None = None  # as no row depends on the others

    def __init__(self, rows: int, k: int, n: int, at_once: int, device: torch.device) -> None:
        """`at_once`: the most rows of a tile."""
        self._n = n
        self._pool = Pool.for_rows(at_once, k, device)
        self.values_BK = torch.empty(rows, k, device=device)
        self.latents_BK = torch.empty(rows, k, dtype=torch.int32, device=device)

    def take(self, pre_RT: Tensor, bias_T: Tensor, first: int, part: slice) -> None:
        """Chooses for the rows `part` among the latents from number `first` on, tiles in ascending order."""
        top_k(pre_RT, bias_T, first, self._n, self._pool, self.values_BK[part], self.latents_BK[part])

    def finish(self) -> None:
        """The last tile has finished it."""

    def holds(self) -> bool:
        """It was exact at once."""
        return True


def top_k(
    pre_BT: Tensor, bias_T: Tensor, first: int, nobody: int, pool: Pool, values_BK: Tensor, latents_BK: Tensor
) -> None:
    """Takes the positive values of pre + bias, the latents from number `first` on; the tile that ends with latent
    `nobody` - 1 is the last one and writes the k largest of all.

    Latents ascend within a row, of equal values the lowest numbers are kept, NaN counts as the largest, and places that
    stay free hold 0 and the latent `nobody`.
    """
    rows, width = pre_BT.shape
    block = min(PIECE, triton.next_power_of_2(width))
    _take[(rows,)](
        pre_BT, pre_BT.stride(0), bias_T, first, width, nobody, *pool, values_BK, latents_BK, values_BK.shape[1],
        BLOCK_T=block, BLOCK_C=pool.values_BC.shape[1], num_warps=max(1, pool.values_BC.shape[1] // PIECE),
    )  # fmt: skip


@triton.jit
def _take(
    pre,
    stride,
    bias,
    first,
    width,
    nobody,
    pool_values,
    pool_latents,
    counts,
    leasts,
    values,
    latents,
    k,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One row, in pieces."""
    row = tl.program_id(0).to(tl.int64)
    pre += row * stride
    pool_values += row * BLOCK_C
    pool_latents += row * BLOCK_C
    slot = tl.arange(0, BLOCK_C)
    held, least = 0, 0
    if first > 0:
        held, least = tl.load(counts + row), tl.load(leasts + row)
    for begin in range(0, width, BLOCK_T):
        place = begin + tl.arange(0, BLOCK_T)
        inside = place < width
        value = tl.load(pre + place, inside, 0.0) + tl.load(bias + place, inside, 0.0)
        key = tl.where(value > 0, value.to(tl.int32, bitcast=True), 0)
        key = tl.where(value != value, NAN, key)
        new = key > least
        total = held + tl.sum(new.to(tl.int32), 0)
        last = first + begin + BLOCK_T >= nobody
        if (total <= BLOCK_C) & (not last):
            if total > held:
                at = held + tl.cumsum(new.to(tl.int32), 0) - 1
                tl.store(pool_values + at, key.to(tl.float32, bitcast=True), new)
                tl.store(pool_latents + at, first + place, new)
                tl.debug_barrier()  # what has been stored is there for the next piece
                held = total
        else:
            old_key = tl.load(pool_values + slot, slot < held, 0.0).to(tl.int32, bitcast=True)
            old_latent = tl.load(pool_latents + slot, slot < held, 0)
            to_values, to_latents = pool_values, pool_latents
            if last:
                to_values, to_latents = values + row * k, latents + row * k
            held, least = _merge(old_key, old_latent, key, first + place, k, to_values, to_latents)
            tl.debug_barrier()
    if first + width == nobody:
        free = (slot >= held) & (slot < k)
        tl.store(values + row * k + slot, tl.zeros([BLOCK_C], tl.float32), free)
        tl.store(latents + row * k + slot, tl.zeros([BLOCK_C], tl.int32) + nobody, free)
    else:
        tl.store(counts + row, held)
        tl.store(leasts + row, least)


@triton.jit
def _merge(old_key, old_latent, key, latent, k, values, latents):
    """Writes the k largest of two lots to the places from 0 on, the old ones first, and returns how many there are, and
    the least of them where they are k, else 0.

    A positive float and its bits read as an integer have the same order: the least key kept is found by bisection of
    the bits, all of it in registers.
    """
    low, high = 1, tl.maximum(tl.max(key, 0), tl.max(old_key, 0)) + 1
    old_count = tl.sum((old_key >= low).to(tl.int32), 0)
    count = old_count + tl.sum((key >= low).to(tl.int32), 0)
    while (count > k) & (high - low > 1):  # more than k reach low, fewer than k reach high
        middle = low + (high - low) // 2
        old_reach = tl.sum((old_key >= middle).to(tl.int32), 0)
        reach = old_reach + tl.sum((key >= middle).to(tl.int32), 0)
        enough = reach >= k
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        old_count, count = tl.where(enough, old_reach, old_count), tl.where(enough, reach, count)

    least = tl.where(count > k, low + 1, low)  # where more than k reach low they are equal, and some have room
    old_above = tl.sum((old_key >= least).to(tl.int32), 0)
    room = k - old_above - tl.sum((key >= least).to(tl.int32), 0)
    kept, at = _places(old_key, low, least, room, 0, 0)
    tl.debug_barrier()  # the whole program has read the old ones
    tl.store(values + at, old_key.to(tl.float32, bitcast=True), kept)
    tl.store(latents + at, old_latent, kept)
    kept, at = _places(key, low, least, room, old_above, old_count - old_above)
    tl.store(values + at, key.to(tl.float32, bitcast=True), kept)
    tl.store(latents + at, latent, kept)
    return tl.minimum(count, k), tl.where(count >= k, low, 0)


@triton.jit
def _places(key, low, least, room, above, ties):
    """Which keys stay (those from `least` on, and the first `room` of those equal to a lower `low`), and where.

    `above` and `ties` have come before them. Both counts run in one sum, the second in its upper half.
    """
    larger = key >= least
    tied = (key >= low) & (key < least)
    counts = tl.cumsum(larger.to(tl.int32) + (tied.to(tl.int32) << 16), 0)
    ties_here = ties + (counts >> 16)
    return larger | (tied & (ties_here <= room)), above + (counts & 0xFFFF) + tl.minimum(ties_here, room) - 1
