"""The update of the GPU's training step: gradients of what fired, AdamW, and decoder directions back to norm 1.

Nothing is added atomically: every sum has one order, so that ranks which have the same rows get the same bits. Suffix
errors of nested dictionaries are those of cpu_loops.py.

Shapes: B rows, D d_in, N n_latents, K k, P pairs (row, latent) that fired, M dead latents, S stretches of LONG pairs,
G nested dictionaries (Matryoshka; elsewhere 1), Q programs of the update.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_core.kernels.step import AdamW, Moments

LONG = 256  # pairs that one program sums up; a latent that fires at every row would else keep all others waiting
PROGRAMS = 2048  # of the update: several for each of some 130 multiprocessors
PAIRS = 2  # rows and errors that a program of the update asks for at once


class Pairs(NamedTuple):
    """The (row, latent) pairs that fired, sorted by latent and then by row."""

    starts_N1: Tensor  # int32: those of latent i are starts[i] to starts[i + 1]
    stretches_N1: Tensor  # int32: whole stretches of LONG pairs before those of latent i
    latent_S: Tensor  # int32: whose stretch it is; N behind the last one
    rows_P: Tensor  # int32
    values_P: Tensor

    @classmethod
    def of(cls, values_BK: Tensor, latents_BK: Tensor, n: int) -> "Pairs":
        """From codes whose free places hold the latent `n`; stable sorting, and no host waits."""
        numbers = torch.arange(max(n + 1, values_BK.numel() // LONG), dtype=torch.int32, device=values_BK.device)
        latents_P, order_P = latents_BK.flatten().sort(stable=True)
        starts_N1 = torch.searchsorted(latents_P, numbers[: n + 1], out_int32=True)
        ends_N = (starts_N1.diff() // LONG).cumsum(0, dtype=torch.int32)
        return cls(
            starts_N1,
            torch.nn.functional.pad(ends_N, (1, 0)),
            torch.searchsorted(ends_N, numbers[: values_BK.numel() // LONG], right=True, out_int32=True),
            (order_P // values_BK.shape[1]).int(),
            values_BK.flatten()[order_P],
        )


class DeadGradients(NamedTuple):
    """What the auxiliary loss gives the dead latents: latent i has row place_N[i], none where that is negative."""

    place_N: Tensor  # int32
    W_enc_MD: Tensor
    W_dec_MD: Tensor
    b_enc_M: Tensor


def update(
    inputs_BD: Tensor,
    error_GBD: Tensor,
    scale: float,
    ends_G: Tensor,
    pairs: Pairs,
    dead: DeadGradients,
    W_enc: tuple[Tensor, Moments],
    W_dec: tuple[Tensor, Moments],
    b_enc: tuple[Tensor, Moments],
    adamw: AdamW,
    copies: tuple[Tensor, Tensor] | None = None,
    unit: bool = True,
) -> Tensor:
    """One pass over the latents: both gradients of a latent, AdamW, and with `unit` the direction back to norm 1.

    `inputs_BD` is what the encoder read. It and suffix errors have any float dtype; `copies` of W_enc and W_dec in
    another one are made on the way.
    Gradients of the squared error are taken times `scale`. Returns (Q, D), what b_pre gets through the encoder: the
    gradient of b_enc times W_enc as it was, summed over the latents of each program.
    """
    n, d = W_enc[0].shape
    device = inputs_BD.device
    stretches = len(pairs.latent_S)
    sums_S2D, bias_S = torch.empty(stretches, 2, d, device=device), torch.empty(stretches, device=device)
    table = (inputs_BD, error_GBD, ends_G, inputs_BD.numel(), pairs.rows_P, pairs.values_P, scale)
    nested = {"G": len(ends_G), "BLOCK_G": triton.next_power_of_2(len(ends_G))}
    if stretches:
        _stretches[(stretches,)](
            *table, pairs.starts_N1, pairs.stretches_N1, pairs.latent_S, W_dec[0], sums_S2D, bias_S, n, d, LONG,
            **nested, **row_blocks(d, PAIRS),
        )  # fmt: skip
    size = -(-n // PROGRAMS)
    through_QD = torch.empty(-(-n // size), d, device=device)
    _update[(len(through_QD),)](
        *table, pairs.starts_N1, pairs.stretches_N1, sums_S2D, bias_S, *dead,
        W_enc[0], *W_enc[1], W_dec[0], *W_dec[1], b_enc[0], *b_enc[1], *(copies or (W_enc[0], W_dec[0])), through_QD,
        adamw, n, d, size, LONG, COPY=copies is not None, UNIT=unit, **nested, **row_blocks(d, PAIRS),
    )  # fmt: skip
    return through_QD


def row_blocks(d: int, pairs: int) -> dict[str, int]:
    """A whole row in registers, 32 numbers of it a thread: several small programs hide each other's waiting best."""
    block = triton.next_power_of_2(d)
    return {"BLOCK_D": block, "PAIRS": pairs, "num_warps": min(16, max(1, block // 1024))}


@triton.jit
def _of_dictionary(error, ends, whole, latent, G: tl.constexpr, BLOCK_G: tl.constexpr):
    """The errors of the smallest dictionary that has this latent."""
    if G > 1:
        number = tl.arange(0, BLOCK_G)
        passed = (number < G) & (latent >= tl.load(ends + number, number < G, 0))
        error += tl.sum(passed.to(tl.int64), 0) * whole
    return error


@triton.jit
def _gather(
    inputs,
    error,
    rows,
    values,
    scale,
    begin,
    end,
    direction_D,
    d,
    BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """The gradients that pairs begin to end give a latent: of its row of W_enc, of that of W_dec, and of b_enc.

    The gradient of a value is the error times the decoder direction; the same error makes the gradient of W_dec.
    """
    column = tl.arange(0, BLOCK_D)
    enc_D, dec_D, bias = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32), 0.0
    for at in range(begin, end, PAIRS):
        pair = at + tl.arange(0, PAIRS)
        there = pair < end
        row = tl.load(rows + pair, there, 0).to(tl.int64)
        value = tl.load(values + pair, there, 0.0) * scale
        places_PD, wanted_PD = row[:, None] * d + column[None, :], there[:, None] & (column < d)[None, :]
        error_PD = tl.load(error + places_PD, wanted_PD, 0.0).to(tl.float32)
        inputs_PD = tl.load(inputs + places_PD, wanted_PD, 0.0).to(tl.float32)
        d_value = tl.sum(error_PD * direction_D[None, :], 1) * scale
        dec_D += tl.sum(error_PD * value[:, None], 0)
        enc_D += tl.sum(inputs_PD * d_value[:, None], 0)
        bias += tl.sum(d_value, 0)
    return enc_D, dec_D, bias


@triton.jit
def _stretches(
    inputs,
    error,
    ends,
    whole,
    rows,
    values,
    scale,
    starts,
    stretches,
    latents,
    W_dec,
    sums,
    biases,
    n,
    d,
    LONG: tl.constexpr,
    G: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """One stretch of LONG pairs of one latent."""
    number = tl.program_id(0).to(tl.int64)
    latent = tl.load(latents + number).to(tl.int64)
    if latent < n:
        column = tl.arange(0, BLOCK_D)
        inside = column < d
        begin = tl.load(starts + latent) + (number - tl.load(stretches + latent)).to(tl.int32) * LONG
        direction_D = tl.load(W_dec + latent * d + column, inside, 0.0)
        own = _of_dictionary(error, ends, whole, latent, G, BLOCK_G)
        enc_D, dec_D, bias = _gather(
            inputs, own, rows, values, scale, begin, begin + LONG, direction_D, d, BLOCK_D, PAIRS
        )
        tl.store(sums + number * 2 * d + column, enc_D, inside)
        tl.store(sums + (number * 2 + 1) * d + column, dec_D, inside)
        tl.store(biases + number, bias)


@triton.jit
def _adamw(weight, exp_avg, exp_avg_sq, at, inside, old, gradient, adamw):
    """Loshchilov & Hutter 2019, algorithm 2, in torch's order of operations; keeps the moments, returns the weight."""
    step_size, root, epsilon, beta1, rest1, beta2, rest2, keep = adamw
    mean = beta1 * tl.load(exp_avg + at, inside, 0.0) + rest1 * gradient
    square = beta2 * tl.load(exp_avg_sq + at, inside, 0.0) + rest2 * gradient * gradient
    tl.store(exp_avg + at, mean, inside)
    tl.store(exp_avg_sq + at, square, inside)
    return keep * old - step_size * mean / (tl.sqrt(square) * root + epsilon)


@triton.jit
def _update(
    inputs,
    error,
    ends,
    whole,
    rows,
    values,
    scale,
    starts,
    stretches,
    sums,
    biases,
    dead_place,
    dead_W_enc,
    dead_W_dec,
    dead_b_enc,
    W_enc,
    W_enc_avg,
    W_enc_sq,
    W_dec,
    W_dec_avg,
    W_dec_sq,
    b_enc,
    b_enc_avg,
    b_enc_sq,
    W_enc_copy,
    W_dec_copy,
    through,
    adamw,
    n,
    d,
    size,
    LONG: tl.constexpr,
    COPY: tl.constexpr,
    UNIT: tl.constexpr,
    G: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """`size` latents, one after the other."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    inside = column < d
    through_D = tl.zeros([BLOCK_D], tl.float32)
    for latent in range(program * size, tl.minimum(program * size + size, n)):
        at_D = latent * d + column
        enc_old_D, dec_old_D = tl.load(W_enc + at_D, inside, 0.0), tl.load(W_dec + at_D, inside, 0.0)
        stretch, last = tl.load(stretches + latent), tl.load(stretches + latent + 1)
        begin, end = tl.load(starts + latent) + (last - stretch) * LONG, tl.load(starts + latent + 1)
        own = _of_dictionary(error, ends, whole, latent, G, BLOCK_G)
        enc_D, dec_D, bias = _gather(inputs, own, rows, values, scale, begin, end, dec_old_D, d, BLOCK_D, PAIRS)
        for number in range(stretch, last):
            sums_D = sums + number * 2 * d + column
            enc_D += tl.load(sums_D, inside, 0.0)
            dec_D += tl.load(sums_D + d, inside, 0.0)
            bias += tl.load(biases + number)
        place = tl.load(dead_place + latent).to(tl.int64)
        dead = place >= 0
        enc_D += tl.load(dead_W_enc + place * d + column, inside & dead, 0.0)
        dec_D += tl.load(dead_W_dec + place * d + column, inside & dead, 0.0)
        bias += tl.load(dead_b_enc + place, dead, 0.0)
        through_D += bias * enc_old_D

        enc_D = _adamw(W_enc, W_enc_avg, W_enc_sq, at_D, inside, enc_old_D, enc_D, adamw)
        tl.store(W_enc + at_D, enc_D, inside)
        if UNIT:
            dec_D -= tl.sum(dec_D * dec_old_D, 0) * dec_old_D
        dec_D = _adamw(W_dec, W_dec_avg, W_dec_sq, at_D, inside, dec_old_D, dec_D, adamw)
        if UNIT:
            dec_D /= tl.sqrt(tl.sum(dec_D * dec_D, 0))
        tl.store(W_dec + at_D, dec_D, inside)
        if COPY:
            tl.store(W_enc_copy + at_D, enc_D, inside)
            tl.store(W_dec_copy + at_D, dec_D, inside)
        old = tl.load(b_enc + latent)
        tl.store(b_enc + latent, _adamw(b_enc, b_enc_avg, b_enc_sq, latent, latent < n, old, bias, adamw))
    tl.store(through + program * d + column, through_D, inside)
