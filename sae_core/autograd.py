"""Gradients of any architecture's loss by autograd, over dense codes (B, N): exact, and slower than gradients by hand.

    sums = gradients_by_autograd(sae, batch, rows=1024, variance=V, auxiliary=1 / 32, sparsity=0.0)

The loss and its parts are those of `SAE.loss`, see `sae_core.losses`. Nothing here makes the host wait.

Shapes: B rows of this rank, N n_latents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_core.losses import Batch
from sae_core.sae import SAE

SUMS = 5


@dataclass(frozen=True)
class AutogradGradients:
    """Sums over this rank's rows; the sums of all ranks together are the gradients and figures of the global batch."""

    by_name: dict[str, Tensor]  # of every parameter
    small: Tensor  # everything else in one vector, so that one more all-reduce is enough

    @property
    def shared(self) -> list[Tensor]:
        """What the ranks add up."""
        return [*self.by_name.values(), self.small]

    @property
    def fired(self) -> Tensor:
        """In how many rows each latent fired, (N,) (exact in fp32 up to 2^24 rows a step)."""
        return self.small[: -SUMS - 1]

    @property
    def threshold(self) -> Tensor:
        """Smallest pre-activation that a batch-wide selection kept, the mean over ranks; 0 without one."""
        return self.small[-SUMS - 1]

    @property
    def sums(self) -> Tensor:
        """Squared error / V, auxiliary / V, squared norm of what was given, loss / V, sparsity: summed over rows."""
        return self.small[-SUMS:]


def gradients_by_autograd(
    sae: SAE, batch: Batch, *, rows: int, variance: float, auxiliary: float, sparsity: float
) -> AutogradGradients:
    """Gradients of (error + other + `auxiliary` x auxiliary + `sparsity` x sparsity) / (`rows` `variance`)."""
    with torch.enable_grad():
        found = sae.loss(batch)
        loss = found.error
        if found.other is not None:
            loss = loss + found.other
        if found.auxiliary is not None and auxiliary > 0:
            loss = loss + auxiliary * found.auxiliary
        if found.sparsity is not None:
            loss = loss + sparsity * found.sparsity
        loss = loss / variance
        names, parameters = zip(*sae.named_parameters(), strict=True)
        grads = torch.autograd.grad(loss / rows, parameters, allow_unused=True, materialize_grads=True)
    zero = torch.zeros_like(found.error)
    parts = [
        zero if found.threshold is None else found.threshold / (batch.world * batch.micro_batches),
        found.error / variance,
        zero if found.auxiliary is None or auxiliary == 0 else found.auxiliary / variance,
        batch.x_BD.square().sum() + (0 if batch.target_BD is batch.x_BD else batch.target_BD.square().sum()),
        loss,
        zero if found.sparsity is None else found.sparsity,
    ]
    small = torch.cat([found.fired_N, torch.stack([part.detach() for part in parts])])
    return AutogradGradients({name: grad.contiguous() for name, grad in zip(names, grads, strict=True)}, small)
