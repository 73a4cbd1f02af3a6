"""Gradients of the TopK loss, written out by hand: only the encoder's matmul is dense.

Loss, in units of the data's total variance V (so that without its second term it is the FVU):

    L = ||x - x^||^2 / V  +  a ||(x - x^) - e^||^2 / V          mean over the rows of the global batch

Gao et al. 2024, section 2.4 and A.2 ("AuxK"): e^ is what the k_aux largest pre-activations of dead latents make of
the residual, without pre-bias; the residual x - x^ is a constant there; a = 1/32. Any number of dead latents takes
part, also fewer than k_aux.

The gradient of each weight matrix is a sum over the (row, latent) pairs that fired. Sorted by latent they are bags of
rows, which `embedding_bag` sums in one pass into a dense (N, D) gradient, always in the same order: the result repeats
to the bit.

Shapes: B rows of this rank, D d_in, N n_latents, K k, M dead latents.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from sae_core.sae import SAE, TopKSAE
from sae_core.topk import top_k, top_k_indices


@dataclass(frozen=True)
class Gradients:
    """Sums over this rank's rows; the sums of all ranks together are the gradients and figures of the global batch."""

    W_enc: Tensor  # (N, D)
    W_dec: Tensor  # (N, D)
    small: Tensor  # everything else in one vector, so that one more all-reduce is enough

    @property
    def by_name(self) -> dict[str, Tensor]:
        """The gradient of every parameter."""
        return {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_enc": self.b_enc, "b_pre": self.b_pre}

    @property
    def shared(self) -> list[Tensor]:
        """What the ranks add up."""
        return [self.W_enc, self.W_dec, self.small]

    @property
    def b_enc(self) -> Tensor:
        """Gradient of the encoder's bias, (N,)."""
        return self.small[: len(self.W_enc)]

    @property
    def fired(self) -> Tensor:
        """In how many rows each latent fired, (N,) (exact in fp32 up to 2^24 rows a step)."""
        n = len(self.W_enc)
        return self.small[n : 2 * n]

    @property
    def b_pre(self) -> Tensor:
        """Gradient of the pre-bias, (D,)."""
        n, d = self.W_enc.shape
        return self.small[2 * n : 2 * n + d]

    @property
    def sums(self) -> Tensor:
        """Squared error / V, auxiliary squared error / V, and squared norm of the input, each summed over rows."""
        return self.small[-3:]


def written_by_hand(sae: SAE) -> TypeGuard[TopKSAE]:
    """Whether `gradients` is this autoencoder's loss; the others take `sae_core.autograd`."""
    return type(sae) is TopKSAE and sae.config.subtracts_pre_bias and not sae.config.multi_topk


@torch.no_grad()
def gradients(
    sae: TopKSAE, x_BD: Tensor, dead_M: Tensor, *, rows: int, variance: float, auxiliary: float, k_auxiliary: int
) -> Gradients:
    """Gradients of the loss over this rank's share x_BD, already normalised, of a global batch of `rows` rows.

    `dead_M` are the numbers of the dead latents (may be empty), `variance` is V, `auxiliary` is a.
    """
    n, d = sae.W_enc.shape
    centred_BD = x_BD - sae.b_pre
    pre_BN = torch.addmm(sae.b_enc, centred_BD, sae.W_enc.t())
    values_BK, indices_BK = top_k(pre_BN, sae.config.k)
    values_BK = values_BK.relu_().requires_grad_()
    with torch.enable_grad():
        decoded_BD = F.embedding_bag(indices_BK, sae.W_dec.detach(), per_sample_weights=values_BK, mode="sum")
    error_BD = decoded_BD.detach() + sae.b_pre - x_BD
    upstream_BD = error_BD * (2 / (rows * variance))

    # The one thing taken from autograd: its kernel for W_dec[i] . g[b] at chosen (b, i) gathers nothing (10x faster).
    (d_values_BK,) = torch.autograd.grad(decoded_BD, values_BK, upstream_BD)
    values_BK = values_BK.detach()
    d_values_BK = d_values_BK * (values_BK > 0)
    bags = _Bags(indices_BK, n)
    small = torch.zeros(2 * n + d + 3, dtype=x_BD.dtype, device=x_BD.device)
    result = Gradients(bags.sum(centred_BD, d_values_BK), bags.sum(upstream_BD, values_BK), small)
    result.b_enc.index_add_(0, indices_BK.flatten(), d_values_BK.flatten())
    result.fired.index_add_(0, indices_BK.flatten(), (values_BK > 0).to(x_BD.dtype).flatten())
    result.sums[0] = error_BD.square().sum() / variance
    result.sums[2] = x_BD.square().sum()
    if len(dead_M) and auxiliary > 0:
        scale = 2 * auxiliary / (rows * variance)
        found = auxiliary_gradients(sae, pre_BN[:, dead_M], centred_BD, error_BD, dead_M, k_auxiliary, scale)
        result.W_enc.index_add_(0, dead_M, found.W_enc_MD)
        result.W_dec.index_add_(0, dead_M, found.W_dec_MD)
        result.b_enc.index_add_(0, dead_M, found.b_enc_M)
        result.sums[1] = found.squared_error / variance
    result.b_pre.copy_(upstream_BD.sum(0) - result.b_enc @ sae.W_enc)
    return result


class _Bags:
    """The (row, latent) pairs of a batch, sorted by latent."""

    def __init__(self, indices_BK: Tensor, n: int) -> None:
        latents = indices_BK.flatten()
        self._order = latents.argsort(stable=True)
        self._rows = self._order // indices_BK.shape[1]
        counts_N = torch.bincount(latents, minlength=n)
        self._starts_N = counts_N.cumsum(0) - counts_N

    def sum(self, x_BD: Tensor, weights_BK: Tensor) -> Tensor:
        """For each latent the weighted sum of the rows that chose it, (N, D)."""
        weights = weights_BK.flatten()[self._order]
        return F.embedding_bag(self._rows, x_BD, self._starts_N, per_sample_weights=weights, mode="sum")


class AuxiliaryGradients(NamedTuple):
    """What the auxiliary loss gives the dead latents, summed over rows."""

    W_enc_MD: Tensor
    W_dec_MD: Tensor
    b_enc_M: Tensor
    squared_error: Tensor


@torch.no_grad()
def auxiliary_gradients(
    sae: SAE,
    pre_BM: Tensor,
    centred_BD: Tensor,
    error_BD: Tensor,
    dead_M: Tensor,
    k_auxiliary: int,
    scale: float,
) -> AuxiliaryGradients:
    """Gradients of the auxiliary loss from the pre-activations of dead latents and the error x^ - x.

    `scale` is 2a / (rows V).
    """
    W_dec_MD = sae.W_dec[dead_M]
    code_BM = _keep_largest(pre_BM, min(k_auxiliary, len(dead_M)))
    difference_BD = code_BM @ W_dec_MD + error_BD  # e^ - (x - x^)
    upstream_BD = difference_BD * scale
    d_code_BM = (upstream_BD @ W_dec_MD.t()).mul_(code_BM > 0)
    return AuxiliaryGradients(
        d_code_BM.t() @ centred_BD, code_BM.t() @ upstream_BD, d_code_BM.sum(0), difference_BD.square().sum()
    )


def _keep_largest(pre_BM: Tensor, k: int) -> Tensor:
    """ReLU of the k largest of each row, zero elsewhere, dense (B, M)."""
    if k == pre_BM.shape[1]:
        return pre_BM.relu()
    indices_Bk = top_k_indices(pre_BM, k)
    return torch.zeros_like(pre_BM).scatter_(1, indices_Bk, pre_BM.gather(1, indices_Bk).relu_())
