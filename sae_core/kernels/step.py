"""What a training step is to the trainer, whatever computes it: gradients that change nothing, then the update.

    step = step_for(sae, moments, options, group)        sae_core/kernels/__init__.py
    found = step.gradients(x_BD, dead_M)                 # refuse what is not finite here
    step.update(learning_rate, number)

Shapes: B rows of this rank, D d_in, N n_latents, M dead latents.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_pre")


class Moments(NamedTuple):
    """AdamW's memory of one parameter, in its shape."""

    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class StepOptions:
    """What fixes a step besides weights, moments and rows; sae_core/gradients.py has the loss."""

    rows: int  # of the global batch
    variance: float  # V, the unit of the loss
    auxiliary: float  # weight of the auxiliary loss
    k_auxiliary: int
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float


class Found(NamedTuple):
    """What a step learnt of the global batch; equal on all ranks."""

    sums: Tensor  # (3,): squared error / V, auxiliary squared error / V, squared norm of the input, over the rows
    fired_N: Tensor  # in how many rows each latent fired


class Step(Protocol):
    """One way of computing a training step."""

    def gradients(self, x_BD: Tensor, dead_M: Tensor) -> Found:
        """From this rank's normalised rows and the numbers of the dead latents; weights and moments stay."""
        ...

    def update(self, learning_rate: float, number: int) -> None:
        """AdamW with the last gradients as its update `number`, counted from 1; decoder directions keep norm 1.

        They get no gradient along themselves. Bricken et al. 2023, "Towards monosemanticity", appendix: with the
        parallel part left in, Adam's moments carry a motion that the renormalisation takes back at each step.
        """
        ...
