"""The bigram of a token stream: the baseline that a language model must beat, and the start from which it does so soon.

Shapes: V vocabulary, D model width, N tokens.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SMOOTHINGS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
START_SMOOTHING = (
    100.0  # a start made with 10 or 30 trains to a higher loss: rare rows then hold noise with a large norm
)


def count_bigrams(ids_N: Tensor, vocabulary: int) -> Tensor:
    """How often each token followed each other one, (V, V) float32, rows = the earlier token."""
    pairs = torch.bincount(ids_N[:-1] * vocabulary + ids_N[1:], minlength=vocabulary**2)
    return pairs.view(vocabulary, vocabulary).float()


def log_bigram(counts_VV: Tensor, smoothing: float) -> Tensor:
    """log P(next | previous) in nats, (V, V); each row is drawn to the unigram as if by `smoothing` more tokens."""
    unigram_V = unigram(counts_VV)
    return ((counts_VV + smoothing * unigram_V) / (counts_VV.sum(dim=1, keepdim=True) + smoothing)).log()


def unigram(counts_VV: Tensor) -> Tensor:
    """P(token), (V,), with a tenth of a count added so that none is zero."""
    totals_V = counts_VV.sum(dim=0) + 0.1
    return totals_V / totals_V.sum()


def baseline_bits(counts_VV: Tensor, validation_N: Tensor) -> float:
    """Bits the bigram needs for a held-out stream, with the smoothing that suits that very stream best."""
    before, after = validation_N[:-1], validation_N[1:]
    return min(-log_bigram(counts_VV, weight)[before, after].sum().item() for weight in SMOOTHINGS) / math.log(2)


class Start(NamedTuple):
    """Weights of a model that predicts, from the last token alone, nearly what the bigram does."""

    embedding_VD: Tensor  # each row has a root mean square of 1, so a following RMSNorm changes nothing
    head_VD: Tensor


def low_rank_start(counts_VV: Tensor, d_model: int, generator: torch.Generator) -> Start:
    """Factorises the smoothed log-bigram matrix as embedding @ head.T of rank D.

    The truncated SVD is taken of the matrix with rows and columns weighted by how often their tokens occur, since an
    error on a frequent pair costs most bits (range finder with four power iterations: Halko, Martinsson and Tropp 2011,
    algorithm 4.4). The head is then solved by least squares for the normalised embedding.
    """
    unigram_V = unigram(counts_VV)
    target_VV = log_bigram(counts_VV, START_SMOOTHING)
    target_VV = target_VV - (target_VV @ unigram_V)[:, None]  # a softmax sees no constant of a row
    columns_V = unigram_V**0.25
    weighted_VV = target_VV * unigram_V.sqrt()[:, None] * columns_V
    basis = torch.randn(len(counts_VV), min(d_model + 32, len(counts_VV)), generator=generator)
    for _ in range(4):
        basis = torch.linalg.qr(weighted_VV.T @ (weighted_VV @ basis)).Q
    directions = basis @ torch.linalg.svd(weighted_VV @ basis, full_matrices=False).Vh.T
    embedding_VD = (target_VV * columns_V) @ directions[:, :d_model]
    embedding_VD = embedding_VD / embedding_VD.square().mean(dim=1, keepdim=True).sqrt()
    by_frequency_VD = embedding_VD * unigram_V[:, None]
    gram_DD = embedding_VD.T @ by_frequency_VD + 1e-6 * torch.eye(d_model)
    head_VD = torch.linalg.solve(gram_DD, by_frequency_VD.T @ target_VV).T
    return Start(embedding_VD, head_VD)
