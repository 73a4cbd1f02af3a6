"""The loops of the CPU's training step, apart from the selection: decoding, sorting, and gradients with their update.

The latents are in G groups, one behind the other, and the first g groups have to reconstruct a row by themselves, for
every g (Matryoshka; elsewhere G = 1). With e_g = x^_g - x the loss is mean_g ||e_g||^2, and its gradient by what a
latent of group j adds to the row is twice the *suffix error* E_j = sum_{g >= j} e_g / G; if G = 1, the error itself.

Rows come twice: as the encoder read them (`inputs`), and less b_pre as they are to be reconstructed (`wanted`). These
are one array where the pre-bias is subtracted before encoding.

Shapes: B rows, D d_in, E width of what is reconstructed, N n_latents, K k, P pairs (row, latent) that fired, M dead
latents, R blocks.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from sae_core.kernels.compiled import ROWS, compiled, dot, fma, part
from sae_core.kernels.step import AdamW

LATENT_BLOCKS = 64


class Moving(NamedTuple):
    """A parameter and AdamW's memory of it, in one shape."""

    weight: np.ndarray
    exp_avg: np.ndarray
    exp_avg_sq: np.ndarray


@part
def _add_rows(
    sum_D: np.ndarray, weights: np.ndarray, rows: np.ndarray, begin: int, end: int, table: np.ndarray
) -> None:
    """Adds table rows times weights, four at once so that the sum is loaded and stored less often."""
    at = begin
    while at + 4 <= end:
        a_D, b_D, c_D, d_D = table[rows[at]], table[rows[at + 1]], table[rows[at + 2]], table[rows[at + 3]]
        a, b, c, d = weights[at], weights[at + 1], weights[at + 2], weights[at + 3]
        for i in range(sum_D.shape[0]):
            sum_D[i] = fma(a, a_D[i], fma(b, b_D[i], fma(c, c_D[i], fma(d, d_D[i], sum_D[i]))))
        at += 4
    while at < end:
        a_D, a = table[rows[at]], weights[at]
        for i in range(sum_D.shape[0]):
            sum_D[i] = fma(a, a_D[i], sum_D[i])
        at += 1


@compiled(parallel=True)
def errors(
    wanted_BE: np.ndarray,
    b_pre_E: np.ndarray,
    W_dec: np.ndarray,
    ends_G: np.ndarray,
    values_BK: np.ndarray,
    places_BK: np.ndarray,
    counts_B: np.ndarray,
    error_GBE: np.ndarray,
    d_values_BK: np.ndarray,
    error_RE: np.ndarray,
    sums_R3: np.ndarray,
) -> None:
    """Decodes: suffix errors, their products with each decoder row that fired, and for each block of rows the sum of
    E_1, the squared norms of the last e_g and of wanted + b_pre, and the mean over g of the squared norms of e_g.

    `ends_G` (int64): the number of latents in the first g groups.
    """
    rows, groups = wanted_BE.shape[0], len(ends_G)
    share = np.float32(1 / groups)
    for block in prange((rows + ROWS - 1) // ROWS):
        sum_E, most = error_RE[block], values_BK.shape[1]
        sum_E[:] = 0
        squared_error, squared_errors, squared_norm = 0.0, 0.0, 0.0
        decoded_E = np.empty(wanted_BE.shape[1], np.float32)
        found_values, found_places = np.empty(most, np.float32), np.empty(most, np.int32)
        for row in range(block * ROWS, min(rows, (block + 1) * ROWS)):
            values_K, places_K, d_values_K = values_BK[row], places_BK[row], d_values_BK[row]
            wanted_E = wanted_BE[row]
            for i in range(decoded_E.shape[0]):
                decoded_E[i] = wanted_E[i] + b_pre_E[i]
            squared_norm += dot(decoded_E, decoded_E)
            decoded_E[:] = 0
            last = 0.0
            for group in range(groups):
                error_E = error_GBE[group, row]
                begin, end, found = ends_G[group - 1] if group else 0, ends_G[group], 0
                for j in range(counts_B[row]):
                    if begin <= places_K[j] < end:
                        found_values[found], found_places[found] = values_K[j], places_K[j]
                        found += 1
                _add_rows(decoded_E, found_values, found_places, 0, found, W_dec)
                for i in range(error_E.shape[0]):
                    error_E[i] = decoded_E[i] - wanted_E[i]
                last = dot(error_E, error_E)
                squared_errors += last
            squared_error += last
            for group in range(groups - 1, -1, -1):
                error_E = error_GBE[group, row]
                if groups > 1:
                    for i in range(error_E.shape[0]):
                        error_E[i] *= share
                if group < groups - 1:
                    later_E = error_GBE[group + 1, row]
                    for i in range(error_E.shape[0]):
                        error_E[i] += later_E[i]
                begin, end = ends_G[group - 1] if group else 0, ends_G[group]
                for j in range(counts_B[row]):
                    if begin <= places_K[j] < end:
                        d_values_K[j] = dot(W_dec[places_K[j]], error_E)
            error_E = error_GBE[0, row]
            for i in range(error_E.shape[0]):
                sum_E[i] += error_E[i]
        sums_R3[block, 0], sums_R3[block, 1], sums_R3[block, 2] = squared_error, squared_norm, squared_errors / groups


@compiled()
def sort_by_latent(
    values_BK: np.ndarray,
    d_values_BK: np.ndarray,
    places_BK: np.ndarray,
    counts_B: np.ndarray,
    scale: float,
    starts_N1: np.ndarray,
    rows_P: np.ndarray,
    values_P: np.ndarray,
    d_values_P: np.ndarray,
) -> None:
    """The pairs of each latent side by side, by row: those of latent i from starts_N1[i] to starts_N1[i + 1].

    Values and their gradients are multiplied by `scale`, what the loss has before the squared error.
    """
    factor = np.float32(scale)
    starts_N1[:] = 0
    for row in range(counts_B.shape[0]):
        for j in range(counts_B[row]):
            starts_N1[places_BK[row, j] + 1] += 1
    for i in range(1, starts_N1.shape[0]):
        starts_N1[i] += starts_N1[i - 1]
    for row in range(counts_B.shape[0]):
        for j in range(counts_B[row]):
            latent = places_BK[row, j]
            at = starts_N1[latent]
            rows_P[at], values_P[at], d_values_P[at] = row, values_BK[row, j] * factor, d_values_BK[row, j] * factor
            starts_N1[latent] += 1
    for i in range(starts_N1.shape[0] - 1, 0, -1):  # each start has moved to its end, which is the next one's start
        starts_N1[i] = starts_N1[i - 1]
    starts_N1[0] = 0


@part
def _adamw(weight: np.ndarray, exp_avg: np.ndarray, exp_avg_sq: np.ndarray, gradient: np.ndarray, adamw: AdamW) -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in torch's order of operations."""
    step_size, root, epsilon, beta1, rest1, beta2, rest2, keep = adamw
    for i in range(weight.shape[0]):
        mean = fma(beta1, exp_avg[i], rest1 * gradient[i])
        square = fma(beta2, exp_avg_sq[i], rest2 * gradient[i] * gradient[i])
        exp_avg[i], exp_avg_sq[i] = mean, square
        weight[i] = fma(keep, weight[i], -step_size * mean / fma(np.sqrt(square), root, epsilon))


@compiled(parallel=True)
def update(
    inputs_BD: np.ndarray,
    error_GBE: np.ndarray,
    error_E: np.ndarray,
    ends_G: np.ndarray,
    starts_N1: np.ndarray,
    rows_P: np.ndarray,
    values_P: np.ndarray,
    d_values_P: np.ndarray,
    dead_place_N: np.ndarray,
    dead_W_enc_MD: np.ndarray,
    dead_W_dec_ME: np.ndarray,
    dead_b_enc_M: np.ndarray,
    W_enc: Moving,
    W_dec: Moving,
    b_enc: Moving,
    b_pre: Moving,
    adamw: AdamW,
    subtracted: bool,
    unit: bool,
) -> None:
    """One pass over the latents: both gradients of a latent, AdamW, and with `unit` the direction back to norm 1.

    `error_GBE` are suffix errors, of the groups that end before latents `ends_G`; `error_E` is the gradient of b_pre
    through the decoder; `subtracted` says whether it has one through the encoder too. `dead_*` are gradients of the
    auxiliary loss, that of latent i in row dead_place_N[i], none where it is negative.
    """
    n, d = W_enc.weight.shape
    enc, enc_avg, enc_sq = W_enc
    dec, dec_avg, dec_sq = W_dec
    gradient_N = np.empty(n, np.float32)
    through_encoder_RD = np.zeros((LATENT_BLOCKS, d), np.float32)
    for block in prange(LATENT_BLOCKS):
        gradient_D, gradient_E = np.empty(d, np.float32), np.empty(error_E.shape[0], np.float32)
        sum_D = through_encoder_RD[block]
        group = 0
        for latent in range(block * n // LATENT_BLOCKS, (block + 1) * n // LATENT_BLOCKS):
            while latent >= ends_G[group]:
                group += 1
            begin, end, place = starts_N1[latent], starts_N1[latent + 1], dead_place_N[latent]
            row_D = enc[latent]
            gradient_D[:] = 0
            gradient = np.float32(0)
            if place >= 0:
                gradient_D[:] = dead_W_enc_MD[place]
                gradient = dead_b_enc_M[place]
            for at in range(begin, end):
                gradient += d_values_P[at]
            gradient_N[latent] = gradient
            if subtracted and gradient != 0:
                for i in range(d):
                    sum_D[i] = fma(gradient, row_D[i], sum_D[i])  # of the row as it was
            _add_rows(gradient_D, d_values_P, rows_P, begin, end, inputs_BD)
            _adamw(row_D, enc_avg[latent], enc_sq[latent], gradient_D, adamw)

            row_E = dec[latent]
            gradient_E[:] = 0
            if place >= 0:
                gradient_E[:] = dead_W_dec_ME[place]
            _add_rows(gradient_E, values_P, rows_P, begin, end, error_GBE[group])
            if unit:
                along = dot(gradient_E, row_E)
                for i in range(row_E.shape[0]):
                    gradient_E[i] = fma(-along, row_E[i], gradient_E[i])
            _adamw(row_E, dec_avg[latent], dec_sq[latent], gradient_E, adamw)
            if unit:
                norm = np.sqrt(dot(row_E, row_E))
                for i in range(row_E.shape[0]):
                    row_E[i] /= norm
    gradient_E = error_E.copy()
    if subtracted:
        for block in range(LATENT_BLOCKS):
            for i in range(d):
                gradient_E[i] -= through_encoder_RD[block, i]
    _adamw(b_enc.weight, b_enc.exp_avg, b_enc.exp_avg_sq, gradient_N, adamw)
    _adamw(b_pre.weight, b_pre.exp_avg, b_pre.exp_avg_sq, gradient_E, adamw)
