"""ReLU with an L1 penalty, by the settings of Anthropic's April 2024 update."""

from torch import Tensor

from sae_core.codes import Codes, CSRCodes
from sae_core.losses import Batch, Loss, firing_counts, squared_error
from sae_core.sae import SAE

FIRST_NORM = 0.1


class ReLUSAE(SAE):
    """Conerly et al. 2024, "Update on how we train SAEs" (Anthropic, Circuits Updates, April 2024).

    z = ReLU(W_enc x + b_enc),  L = ||x - x^||^2 + lambda sum_i z_i ||W_dec,i||

    No pre-bias, and the decoder is not renormalised: weighting by its norms keeps it from growing. The data are to be
    scaled to E||x|| = sqrt(d) (`normalization="scale"`).
    """

    unit_decoder = False
    uses_auxiliary = False
    penalises_sparsity = True

    def first_norm(self) -> float:
        """0.1 for both matrices."""
        return self.config.decoder_norm or FIRST_NORM

    def encode_normalised(self, normalised_BD: Tensor) -> Codes:
        """Everything above zero."""
        return CSRCodes.from_dense(self.pre_activations(normalised_BD).relu())

    def loss(self, batch: Batch) -> Loss:
        """Squared error, and L1 weighted by decoder norms."""
        code_BN = self.pre_activations(batch.x_BD).relu()
        error = squared_error(code_BN @ self.W_dec + self.b_pre, batch.target_BD)
        return Loss(error, firing_counts(code_BN), sparsity=(code_BN @ self.W_dec.norm(dim=1)).sum())
