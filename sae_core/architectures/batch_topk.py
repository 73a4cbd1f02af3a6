"""BatchTopK: a budget of k latents per row on average, spent where a batch needs it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_core.codes import Codes, CSRCodes
from sae_core.losses import Batch, Loss, auxiliary_error, batch_threshold, firing_counts, squared_error
from sae_core.sae import SAE

AVERAGED_STEPS = 20  # about so many steps make up the threshold: one alone is within 1%, many lag behind (L0 14 for 16)


class BatchTopKSAE(SAE):
    """Bussmann et al. 2024, "BatchTopK sparse autoencoders".

    In training the k x rows largest pre-activations of the global batch are kept (those above zero). Afterwards a row
    must not depend on its neighbours: kept is what exceeds `threshold`, the running mean of the smallest kept value.
    """

    threshold: Tensor

    def add_parameters(self) -> None:
        """The threshold of inference: 0, and all that is positive fires, before the first step."""
        self.register_buffer("threshold", torch.zeros(()))

    @property
    def selects_over_batch(self) -> bool:
        """Latents compete over the whole batch (Bussmann et al. 2024)."""
        return True

    def encode_normalised(self, normalised_BD: Tensor) -> Codes:
        """What exceeds the threshold."""
        pre_BN = self.pre_activations(normalised_BD)
        return CSRCodes.from_dense(pre_BN.where(pre_BN > self.threshold, 0))

    def training_code(self, pre_BN: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The dense code (B, N) of a training step and the smallest kept value."""
        threshold = batch.threshold
        if threshold is None:
            threshold = batch_threshold([pre_BN], self.config.k, batch)
        return pre_BN.where((pre_BN >= threshold) & (pre_BN > 0), 0), threshold

    @torch.no_grad()
    def batch_threshold(self, micro_batches: Sequence[Batch]) -> Tensor | None:
        """The smallest value that a selection over all micro-batches keeps; they are encoded once for it alone."""
        parts = (self.pre_activations(batch.x_BD) for batch in micro_batches)
        return batch_threshold(parts, self.config.k, micro_batches[0])

    def loss(self, batch: Batch) -> Loss:
        """Squared error and AuxK."""
        pre_BN = self.pre_activations(batch.x_BD)
        code_BN, threshold = self.training_code(pre_BN, batch)
        error, other, reconstruction_BD = self.errors(code_BN, batch)
        residual_BD = batch.target_BD - reconstruction_BD
        auxiliary = auxiliary_error(pre_BN, self.W_dec, residual_BD, batch.dead_N, batch.k_auxiliary)
        return Loss(error, firing_counts(code_BN), auxiliary, other=other, threshold=threshold)

    def errors(self, code_BN: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """Squared error, further terms, and the reconstruction."""
        reconstruction_BD = code_BN @ self.W_dec + self.b_pre
        return squared_error(reconstruction_BD, batch.target_BD), None, reconstruction_BD

    @torch.no_grad()
    def after_step(self, threshold: Tensor, step: int) -> None:
        """Moves the running mean: over all steps at first, later over about AVERAGED_STEPS."""
        self.threshold.lerp_(threshold, 1 / min(step + 1, AVERAGED_STEPS))
