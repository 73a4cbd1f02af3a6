"""What the training losses of all architectures have in common: their parts, and the auxiliary loss on dead latents.

Every part is a sum over the rows of one rank, so that the sums of all ranks together belong to the global batch:

    L = (error + other + a auxiliary + lambda sparsity) / (rows V)

with V the variance of the target: without the last three L is the FVU.

Shapes: B rows of this rank, D width, N n_latents.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F


class Batch(NamedTuple):
    """One rank's share of a global batch, and what a loss may ask about the training."""

    x_BD: Tensor  # normalised
    target_BD: Tensor  # normalised; x_BD itself unless the autoencoder is a transcoder
    dead_N: Tensor  # bool
    k_auxiliary: int
    group: "dist.ProcessGroup | None" = None  # the ranks that share the batch equally; None: this one alone
    select_per_rank: bool = False  # whether a batch-wide selection looks at the rows of this rank alone
    micro_batches: int = 1  # into how many the rows of this rank are split, one after the other
    threshold: Tensor | None = None  # of the batch-wide selection, where those before it have chosen it already

    @property
    def world(self) -> int:
        """Number of ranks that share the batch."""
        return dist.get_world_size(self.group) if self.group else 1


class Loss(NamedTuple):
    """The parts of a loss, each a sum over this rank's rows, and what the selection did."""

    error: Tensor  # ||t - t^||^2 of the reconstruction that is reported
    fired_N: Tensor  # in how many rows each latent fired
    auxiliary: Tensor | None = None  # weighted by the trainer's `auxiliary`
    sparsity: Tensor | None = None  # weighted by the trainer's `sparsity`
    other: Tensor | None = None  # has a weight that its paper fixes
    threshold: Tensor | None = None  # smallest pre-activation that a batch-wide selection kept


def squared_error(reconstruction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """||t - t^||^2 summed over rows."""
    return (target_BD - reconstruction_BD).square().sum()


def firing_counts(code_BN: Tensor) -> Tensor:
    """In how many rows each latent fires, (N,), in the code's dtype (exact in fp32 up to 2^24 rows)."""
    return (code_BN.detach() > 0).sum(dim=0).to(code_BN.dtype)


def auxiliary_error(pre_BN: Tensor, W_dec: Tensor, residual_BD: Tensor, dead_N: Tensor, k: int) -> Tensor:
    """The part of the residual that dead latents could explain: ||e - e^||^2 summed over rows; 0 while none is dead.

    Gao et al. 2024, section 2.4 and A.2 ("AuxK"): e^ is decoded, without bias, from the k largest pre-activations of
    dead latents; the residual is a constant. Any number of dead latents takes part, and no host waits to count them.
    """
    k = min(k, len(dead_N))
    values_BK, indices_BK = pre_BN.masked_fill(~dead_N, -torch.inf).topk(k, dim=1, sorted=False)
    explained_BD = F.embedding_bag(indices_BK, W_dec, per_sample_weights=values_BK.relu(), mode="sum")
    return squared_error(explained_BD, residual_BD.detach()) * dead_N.any()


@torch.no_grad()
def batch_threshold(parts: Iterable[Tensor], k: int, batch: Batch) -> Tensor:
    """The (k x rows)-th largest positive pre-activation of the whole batch, or 0 where there are fewer; shape ().

    Bussmann et al. 2024, "BatchTopK sparse autoencoders". `parts` are the pre-activations (B, N) of this rank's
    micro-batches. Each rank sends its candidates, as many as could be among the largest, and all ranks choose from all
    of them: the result is that of one process that holds the whole batch.
    """
    together = batch.group is not None and not batch.select_per_rank
    wanted = k * len(batch.x_BD) * batch.micro_batches * (batch.world if together else 1)
    candidates = batch.x_BD.new_empty(0)
    for pre_BN in parts:
        pre = torch.cat([candidates, pre_BN.flatten()]) if len(candidates) else pre_BN.flatten()
        candidates = pre.topk(min(wanted, len(pre)), sorted=False).values
    if together:
        gathered = [torch.empty_like(candidates) for _ in range(batch.world)]
        dist.all_gather(gathered, candidates.contiguous(), group=batch.group)
        candidates = torch.cat(gathered)
    return candidates.topk(min(wanted, len(candidates)), sorted=False).values.min().clamp_min(0)
