"""Decoding in the GPU's training step: what each row's latents reconstruct, and the errors of that.

Suffix errors of nested dictionaries are those of cpu_loops.py.

Shapes: B rows, D d_in, N n_latents, K places of a row, G nested dictionaries (Matryoshka; elsewhere 1).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_core.kernels.gpu_update import row_blocks

DIRECTIONS = 4  # decoder rows that a program asks for at once


def errors(
    wanted_BD: Tensor,
    b_pre_D: Tensor,
    W_dec: Tensor,
    ends_G: Tensor,
    values_BK: Tensor,
    latents_BK: Tensor,
    counts_B: Tensor | None,
    error_GBD: Tensor,
    copy_GBD: Tensor,
) -> Tensor:
    """Decodes into suffix errors, and `copy_GBD` in another dtype or the same; returns (B, 3): squared norms in each
    row, of the error of all latents and of wanted + b_pre, and the mean of those of the nested dictionaries' errors.

    `W_dec` has any float dtype; `ends_G` (int32): sizes of the dictionaries; `counts_B` (int32): places of each row
    that are taken. Latents ascend within a row.
    """
    (rows, d), k = wanted_BD.shape, values_BK.shape[1]
    sums_B3 = torch.empty(rows, 3, device=wanted_BD.device)
    _errors[(rows,)](
        wanted_BD, b_pre_D, W_dec, ends_G, values_BK, latents_BK, latents_BK if counts_B is None else counts_B,
        len(W_dec), error_GBD, copy_GBD, sums_B3, d, k, rows * d, G=len(ends_G), COUNTED=counts_B is not None,
        COPY=copy_GBD.data_ptr() != error_GBD.data_ptr(), **row_blocks(d, DIRECTIONS),
    )  # fmt: skip
    return sums_B3


@triton.jit
def _errors(
    wanted,
    b_pre,
    W_dec,
    ends,
    values,
    latents,
    counts,
    n,
    error,
    copy,
    sums,
    d,
    k,
    whole,
    G: tl.constexpr,
    COUNTED: tl.constexpr,
    COPY: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """One row; `whole` is the size of one dictionary's errors."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    inside = column < d
    wanted_D = tl.load(wanted + row * d + column, inside, 0.0)
    x_D = wanted_D + tl.load(b_pre + column, inside, 0.0)
    values += row * k
    latents += row * k
    at_D = row * d + column
    decoded_D = tl.zeros([BLOCK_D], tl.float32)
    taken = k
    if COUNTED:
        taken = tl.load(counts + row)
    begin, squared_error, squared_errors = 0, 0.0, 0.0
    for number in range(G):
        end = taken
        if G > 1:
            end = begin
            for at in range(begin, taken, PAIRS):
                slot = at + tl.arange(0, PAIRS)
                earlier = tl.load(latents + slot, slot < taken, n) < tl.load(ends + number)
                end += tl.sum(earlier.to(tl.int32), 0)
        for at in range(begin, end, PAIRS):
            slot = at + tl.arange(0, PAIRS)
            latent = tl.load(latents + slot, slot < end, n)
            value = tl.load(values + slot, slot < end, 0.0)
            rows_PD = W_dec + latent.to(tl.int64)[:, None] * d + column[None, :]
            table_PD = tl.load(rows_PD, (latent < n)[:, None] & inside[None, :], 0.0).to(tl.float32)
            decoded_D += tl.sum(table_PD * value[:, None], 0)
        error_D = decoded_D - wanted_D
        tl.store(error + at_D, error_D, inside)
        squared_error = tl.sum(error_D * error_D, 0)
        squared_errors += squared_error
        begin = end
        error += whole
        copy += whole
    if G > 1:
        tl.debug_barrier()  # what has been stored is there
        later_D = tl.zeros([BLOCK_D], tl.float32)
        for _ in range(G):
            error -= whole
            copy -= whole
            later_D += tl.load(error + at_D, inside, 0.0) / G
            tl.store(error + at_D, later_D, inside)
            if COPY:
                tl.store(copy + at_D, later_D, inside)
    elif COPY:
        tl.store(copy - whole + at_D, decoded_D - wanted_D, inside)
    tl.store(sums + row * 3, squared_error)
    tl.store(sums + row * 3 + 1, tl.sum(x_D * x_D, 0))
    tl.store(sums + row * 3 + 2, squared_errors / G)
