"""What a training step is to the trainer, whatever computes it: gradients that change nothing, then the update.

    step = step_for(sae, moments, options, group)                     sae_core/kernels/__init__.py
    found = step.gradients(x_BD, target_BD, dead_N, sparsity)         # refuse what is not finite here
    step.update(learning_rate, number)

Shapes: B rows of this rank, D d_in, N n_latents.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

Precision = Literal["fp32", "tf32", "bf16"]


class Moments(NamedTuple):
    """AdamW's memory of one parameter, in its shape."""

    exp_avg: Tensor
    exp_avg_sq: Tensor


class AdamW(NamedTuple):
    """AdamW's constants of one step: floats, or what a kernel wants them as."""

    step_size: Any  # lr / (1 - beta1^t)
    root: Any  # 1 / sqrt(1 - beta2^t)
    epsilon: Any
    beta1: Any
    rest1: Any  # 1 - beta1, rounded once
    beta2: Any
    rest2: Any
    keep: Any  # 1 - lr x weight decay

    def move(self, weight: Tensor, moments: Moments, gradient: Tensor) -> None:
        """One update in plain torch, in place, of a parameter with its moments and gradient, all of one shape.

        Loshchilov & Hutter 2019, algorithm 2; for what is small, where kernels of its own would gain nothing.
        """
        mean, square = moments
        mean.mul_(self.beta1).add_(gradient, alpha=self.rest1)
        square.mul_(self.beta2).addcmul_(gradient, gradient, value=self.rest2)
        root = square.sqrt().mul_(self.root).add_(self.epsilon)
        weight.mul_(self.keep).addcdiv_(mean, root, value=-self.step_size)


@dataclass(frozen=True)
class StepOptions:
    """What fixes a step besides weights, moments and rows; sae_core/losses.py has the loss."""

    rows: int  # of the global batch
    variance: float  # V, the unit of the loss
    auxiliary: float  # weight of the auxiliary loss
    k_auxiliary: int
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float | None = None  # largest norm of all gradients together; None: any
    select_per_rank: bool = False  # whether batch-wide selections look at each rank's rows alone
    micro_batch: int | None = None  # rows whose dense codes may be held at once; None: all of this rank
    precision: Precision = "fp32"  # of the factors in products, see gpu.py, which alone reads it

    def adamw(self, learning_rate: float, number: int) -> AdamW:
        """The constants of update `number`, counted from 1."""
        return AdamW(
            learning_rate / (1 - self.beta1**number),
            1 / (1 - self.beta2**number) ** 0.5,
            self.epsilon,
            self.beta1,
            1 - self.beta1,
            self.beta2,
            1 - self.beta2,
            1 - learning_rate * self.weight_decay,
        )


class Found(NamedTuple):
    """What a step learnt of the global batch; equal on all ranks."""

    sums: Tensor  # over the rows: squared error / V, auxiliary / V, squared norm of what was given, perhaps more
    fired_N: Tensor  # in how many rows each latent fired


class Step(Protocol):
    """One way of computing a training step."""

    figures: int  # length of Found.sums

    def gradients(self, x_BD: Tensor, target_BD: Tensor, dead_N: Tensor, sparsity: float) -> Found:
        """From this rank's rows and their target, both normalised; weights and moments stay.

        `dead_N` (bool) says which latents are dead, `sparsity` is the weight of the sparsity penalty.
        """
        ...

    def update(self, learning_rate: float, number: int) -> None:
        """AdamW with the last gradients as its update `number`, counted from 1.

        Where decoder directions are kept at norm 1, they get no gradient along themselves. Bricken et al. 2023,
        "Towards monosemanticity", appendix: with the parallel part left in, Adam's moments carry a motion that the
        renormalisation takes back at each step.
        """
        ...
