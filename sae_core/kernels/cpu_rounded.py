"""Pre-activations from factors rounded to bf16, and how far each may lie from the one in fp32: the encoder's matmul
on processors that multiply bf16 several times as fast (AMX). The codes are those of `exactly`, products in fp32.

With x^, w^ rounded, a = x^ . w^ as the matmul gives it, and s = x . w:

    |a - s| <= ||x|| ||w - w^|| + ||x - x^|| ||w^|| + what sums of D terms and the rounding of a to bf16 lose

by Cauchy-Schwarz; all norms are those of these very rows, so nothing is assumed about data or weights. Some k latents
of a row with the largest a are computed in fp32, and the k-th largest of these is T: no latent whose a with its bound
added lies below T is among the k largest. The others are computed in fp32 as well, and all of these selected from.

Shapes: T rows of a tile, D d_in, N n_latents.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor

from sae_core.kernels.compiled import ROWS, compiled, dot, nearest_bf16, part, widened

OUTPUT = np.float32(1.01 * 2**-8)  # relative to a: its rounding to bf16, and that of all that is added in fp32
BIAS = np.float32(2**-22)  # relative to the bias: the rounding of a + bias, and of s + bias
SUM = 2**-22  # relative to D ||x|| ||w||: sums of D terms in fp32, in any order, the matmul's and ours
UP = np.float32(1.005)  # times the norm of a row: at least its norm when rounded (1 + 2^-8), and that of norms in fp32
TINY = np.float32(1e-30)  # far above what is lost where products of tiny numbers become 0


class Rounded(NamedTuple):
    """One tile's rows and the encoder, with their norms; see `margin`."""

    rows_TD: np.ndarray
    W_enc: np.ndarray
    norm_T: np.ndarray  # ||x||
    lost_T: np.ndarray  # ||x - x^||, and what sums lose
    norm_N: np.ndarray  # ||w||
    lost_N: np.ndarray  # ||w - w^||
    largest_norm: float
    largest_lost: float
    largest_bias: float


def worth_it(n_latents: int, d_in: int, k: int) -> bool:
    """Whether bf16 is fast here, the matmul large enough for two passes, and what is computed in fp32 little beside it:
    some k exp(sqrt(d_in) / 100) latents of a row. tests/benchmarks/NOTES.md has what it was measured by.
    """
    return n_latents * d_in >= 1 << 18 and n_latents >= k * d_in / 8 and _has_amx()


def _has_amx() -> bool:
    """Whether the processor has it, and the system lets this process use it; of a torch that can say so."""
    asked = [getattr(torch.cpu, name, lambda: False) for name in ("_is_amx_tile_supported", "_init_amx")]
    return all(ask() for ask in asked)


class RoundedEncoder:
    """The encoder of a step, rounded anew for each."""

    def __init__(self, rows: int, n_latents: int, d_in: int) -> None:
        """`rows`: the most there are in a tile."""
        self._rows_TD = torch.empty(rows, d_in, dtype=torch.bfloat16)
        self._W_enc = torch.empty(n_latents, d_in, dtype=torch.bfloat16)
        self._norms_2T, self._norms_2N = np.empty((2, rows), np.float32), np.empty((2, n_latents), np.float32)

    def round(self, W_enc: np.ndarray, b_enc: np.ndarray) -> None:
        """Takes over W_enc (N, D) and b_enc (N,), float32, as they are now; W_enc is read again while selecting."""
        _round(W_enc, bits(self._W_enc), *self._norms_2N)
        self._W_enc_here = W_enc
        self._largest = (*self._norms_2N.max(axis=1), np.abs(b_enc).max())

    def pre_activations(self, centred_TD: Tensor, pre_TN: Tensor) -> Rounded:
        """Fills `pre_TN`, bf16, with x^ . w^ of rows (T, D), float32, and says what it is made from. After `round`."""
        rows, d = centred_TD.shape
        norm_T, lost_T = self._norms_2T[:, :rows]
        _round(centred_TD.numpy(), bits(self._rows_TD[:rows]), norm_T, lost_T)
        torch.mm(self._rows_TD[:rows], self._W_enc.t(), out=pre_TN)
        lost_T += np.float32(SUM * d) * norm_T
        return Rounded(centred_TD.numpy(), self._W_enc_here, norm_T, lost_T, *self._norms_2N, *self._largest)


def bits(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor as numpy sees it: float32, or the bits of bf16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def as_float32(array: np.ndarray) -> np.ndarray:
    """What `bits` gives, as numbers."""
    return array if array.dtype == np.float32 else (array.astype(np.uint32) << 16).view(np.float32)


@compiled(parallel=True)
def _round(table_RD: np.ndarray, rounded_RD: np.ndarray, norm_R: np.ndarray, lost_R: np.ndarray) -> None:
    """Each row in bf16 (its bits), the norm of the row, and that of what is lost; both rounded up.

    To the nearest, of two the even one. A row that is not finite has a norm that is not.
    """
    rows, d = table_RD.shape
    for block in prange((rows + ROWS - 1) // ROWS):
        difference_D = np.empty(d, np.float32)
        for row in range(block * ROWS, min(rows, (block + 1) * ROWS)):
            row_D, rounded_D = table_RD[row], rounded_RD[row]
            for i in range(d):
                rounded_D[i] = nearest_bf16(row_D[i])
            for i in range(d):
                difference_D[i] = row_D[i] - widened(rounded_D[i])
            norm_R[row] = np.sqrt(dot(row_D, row_D)) * UP
            lost_R[row] = np.sqrt(dot(difference_D, difference_D)) * UP


@part
def widest_margin(rounded: Rounded, row: int, value: float) -> Any:
    """No value up to `value` of this row, be it as large as it may, has a wider margin."""
    most = rounded.norm_T[row] * rounded.largest_lost + rounded.lost_T[row] * rounded.largest_norm + TINY
    largest = rounded.largest_bias * UP + (value if value > 0 else np.float32(0))  # of |a| where a + bias <= value
    return UP * (most + OUTPUT * largest)


@part
def margin(rounded: Rounded, row: int, place: int, value: float, bias: float) -> Any:
    """How far `value`, a + bias, may be from what `exactly` gives."""
    most = rounded.norm_T[row] * rounded.lost_N[place] + rounded.lost_T[row] * rounded.norm_N[place]
    return most + OUTPUT * abs(value - bias) + BIAS * abs(bias) + TINY


@part
def exactly(rounded: Rounded, row: int, place: int, bias: float) -> Any:
    """x . w + bias in fp32."""
    return dot(rounded.W_enc[place], rounded.rows_TD[row]) + bias
