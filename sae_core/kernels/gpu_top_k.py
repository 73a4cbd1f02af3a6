"""The exact selection of the GPU's training step: the k largest of each row, kept up to date tile by tile.

Shapes: B rows, T latents of one tile, K k.
"""

import triton
import triton.language as tl
from torch import Tensor

NAN = tl.constexpr(0x7FC00000)  # its bits, above those of every number


def top_k(pre_BT: Tensor, bias_T: Tensor, first: int, nobody: int, values_BK: Tensor, latents_BK: Tensor) -> None:
    """Merges the positive values of pre + bias, the latents from number `first` on, into the k largest so far.

    Tiles come in ascending order; the one with first = 0 begins anew. Latents ascend within a row, of equal values the
    lowest numbers are kept, NaN counts as the largest, and places that stay free hold 0 and the latent `nobody`.
    """
    rows, width = pre_BT.shape
    k = values_BK.shape[1]
    block = triton.next_power_of_2(width)
    _merge[(rows,)](
        pre_BT, pre_BT.stride(0), bias_T, first, width, nobody, values_BK, latents_BK, k,
        BLOCK_T=block, BLOCK_K=max(16, triton.next_power_of_2(k)), num_warps=min(8, max(1, block // 256)),
    )  # fmt: skip


@triton.jit
def _merge(
    pre,
    stride,
    bias,
    first,
    width,
    nobody,
    values,
    latents,
    k,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One row. A positive float and its bits read as an integer have the same order: the least key kept is found by
    bisection of the bits, all of it in registers."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, BLOCK_K)
    old = (slot < k) & (first > 0)
    old_key = tl.load(values + row * k + slot, old, 0.0).to(tl.int32, bitcast=True)
    old_latent = tl.load(latents + row * k + slot, old, 0)
    place = tl.arange(0, BLOCK_T)
    inside = place < width
    value = tl.load(pre + row * stride + place, inside, 0.0) + tl.load(bias + place, inside, 0.0)
    key = tl.where(value > 0, value.to(tl.int32, bitcast=True), 0)
    key = tl.where(value != value, NAN, key)

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
    tl.store(values + row * k + at, old_key.to(tl.float32, bitcast=True), kept)
    tl.store(latents + row * k + at, old_latent, kept)
    kept, at = _places(key, low, least, room, old_above, old_count - old_above)
    tl.store(values + row * k + at, key.to(tl.float32, bitcast=True), kept)
    tl.store(latents + row * k + at, first + place, kept)
    free = (slot >= count) & (slot < k)
    tl.store(values + row * k + slot, tl.zeros([BLOCK_K], tl.float32), free)
    tl.store(latents + row * k + slot, tl.zeros([BLOCK_K], tl.int32) + nobody, free)


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
