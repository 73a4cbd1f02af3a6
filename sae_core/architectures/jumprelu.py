"""JumpReLU: each latent has a threshold of its own, trained through straight-through estimators."""

from typing import Any

import torch
from torch import Tensor, nn

from sae_core.codes import Codes, CSRCodes
from sae_core.losses import Batch, Loss, firing_counts, squared_error
from sae_core.sae import SAE

BANDWIDTH = 0.05


class JumpReLUSAE(SAE):
    """Rajamanoharan et al. 2024, "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse autoencoders".

    z = pre H(pre - theta) with theta = exp(log_threshold),  L = ||x - x^||^2 + lambda ||z||_0

    Both steps have no gradient of their own: see `jump` and `step`. The first thresholds are as large as the bandwidth.
    The paper's 0.001 for both is for rows of norm 1 and d = 2,304 to 3,584, where first pre-activations spread by
    1/sqrt(d) = 0.02; BANDWIDTH is that for a spread of 1, as `normalization="scale"` gives at any width.
    """

    latent_vectors = ("b_enc", "log_threshold")
    uses_auxiliary = False
    penalises_sparsity = True
    log_threshold: nn.Parameter

    @property
    def bandwidth(self) -> float:
        """Width of the rectangle kernel, in units of pre-activations."""
        return self.config.bandwidth or BANDWIDTH

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As all, with each threshold as large as the bandwidth."""
        super().reset_parameters()
        self.log_threshold.fill_(self.bandwidth).log_()

    def encode_normalised(self, normalised_BD: Tensor) -> Codes:
        """What exceeds its latent's threshold."""
        pre_BN = self.pre_activations(normalised_BD)
        return CSRCodes.from_dense(pre_BN.where(pre_BN > self.log_threshold.exp(), 0))

    def loss(self, batch: Batch) -> Loss:
        """Squared error, and the number of latents that fire."""
        pre_BN, threshold_N = self.pre_activations(batch.x_BD), self.log_threshold.exp()
        code_BN = jump(pre_BN, threshold_N, self.bandwidth)
        error = squared_error(code_BN @ self.W_dec + self.b_pre, batch.target_BD)
        return Loss(error, firing_counts(code_BN), sparsity=step(pre_BN, threshold_N, self.bandwidth).sum())


def jump(pre_BN: Tensor, threshold_N: Tensor, bandwidth: float) -> Tensor:
    """pre H(pre - theta), with d/d pre = H(pre - theta) and d/d theta = -theta/epsilon K((pre - theta)/epsilon).

    Equation 11 of the paper; K is the rectangle of width 1 and height 1 around 0, epsilon the bandwidth.
    """
    return _Jump.apply(pre_BN, threshold_N, bandwidth)


def step(pre_BN: Tensor, threshold_N: Tensor, bandwidth: float) -> Tensor:
    """H(pre - theta), with d/d pre = 0 and d/d theta = -1/epsilon K((pre - theta)/epsilon).

    Equation 12 of the paper.
    """
    return _Step.apply(pre_BN, threshold_N, bandwidth)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_BN: Tensor, threshold_N: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_BN, threshold_N)
        ctx.bandwidth = bandwidth
        return pre_BN.where(pre_BN > threshold_N, 0)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        pre_BN, threshold_N = ctx.saved_tensors
        near_BN = _near(pre_BN, threshold_N, ctx.bandwidth)
        d_threshold_N = -(threshold_N / ctx.bandwidth) * (near_BN * upstream[0]).sum(dim=0)
        return (pre_BN > threshold_N) * upstream[0], d_threshold_N, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_BN: Tensor, threshold_N: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_BN, threshold_N)
        ctx.bandwidth = bandwidth
        return (pre_BN > threshold_N).to(pre_BN.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor, None]:
        pre_BN, threshold_N = ctx.saved_tensors
        near_BN = _near(pre_BN, threshold_N, ctx.bandwidth)
        return None, -(near_BN * upstream[0]).sum(dim=0) / ctx.bandwidth, None


def _near(pre_BN: Tensor, threshold_N: Tensor, bandwidth: float) -> Tensor:
    """The kernel K((pre - theta)/epsilon): where a pre-activation lies within half a bandwidth of its threshold."""
    return (pre_BN - threshold_N).abs() < bandwidth / 2
