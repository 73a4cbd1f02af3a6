"""Gated: one path decides which latents fire, another how strongly."""

import torch
from torch import Tensor, nn

from sae_core.codes import Codes, CSRCodes
from sae_core.losses import Batch, Loss, firing_counts, squared_error
from sae_core.sae import SAE


class GatedSAE(SAE):
    """Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", section 3.2.

    gate = W_enc (x - b_pre) + b_gate,  magnitude = exp(r_mag) * W_enc (x - b_pre) + b_mag
    z = H(gate) * ReLU(magnitude)
    L = ||x - x^(z)||^2 + lambda sum_i ReLU(gate_i) + ||x - x^_frozen(ReLU(gate))||^2

    The frozen decoder is the decoder without gradient, so the last term trains the gate alone. Decoder directions are
    kept at norm 1. Weighting the penalty by free norms instead would leave it without effect: norms shrink, r_mag makes
    up for it, and the frozen term does not push back.
    """

    latent_vectors = ("b_gate", "b_mag", "r_mag")
    uses_auxiliary = False
    penalises_sparsity = True
    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter

    def paths(self, normalised_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and magnitude (B, N), before their activations."""
        shared_BN = self.centre(normalised_BD) @ self.W_enc.t()
        return shared_BN + self.b_gate, shared_BN * self.r_mag.exp() + self.b_mag

    def encode_normalised(self, normalised_BD: Tensor) -> Codes:
        """The magnitudes whose gate is open."""
        return CSRCodes.from_dense(_gated(*self.paths(normalised_BD)))

    def loss(self, batch: Batch) -> Loss:
        """Squared error, L1 of the gate, and the error of the gate with a frozen decoder."""
        gate_BN, magnitude_BN = self.paths(batch.x_BD)
        code_BN, open_BN = _gated(gate_BN, magnitude_BN), gate_BN.relu()
        error = squared_error(code_BN @ self.W_dec + self.b_pre, batch.target_BD)
        frozen_BD = open_BN @ self.W_dec.detach() + self.b_pre.detach()
        return Loss(
            error,
            firing_counts(code_BN),
            sparsity=open_BN.sum(),
            other=squared_error(frozen_BD, batch.target_BD),
        )


def _gated(gate_BN: Tensor, magnitude_BN: Tensor) -> Tensor:
    return torch.where(gate_BN > 0, magnitude_BN.relu(), 0)
