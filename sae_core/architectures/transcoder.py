"""Transcoder: reads one site and reconstructs another, such as an MLP's output from its input."""

import torch
from torch import Tensor, nn

from sae_core.codes import Codes, RowScale
from sae_core.errors import ActivationError
from sae_core.initialise import first_weights
from sae_core.losses import Batch
from sae_core.sae import TopKSAE


class Transcoder(TopKSAE):
    """Paulo et al. 2025, "Transcoders beat sparse autoencoders for interpretability".

    t^ = W_dec ReLU(TopK(W_enc x + b_enc)) + W_skip x + b_pre, the skip where the config asks for it

    Decoder and skip start at zero, b_pre is best started at the target's mean; decoder norms are free. `decode` knows
    the codes alone: the skip needs the input, so that `predict` adds it.
    """

    unit_decoder = False
    target_scale: Tensor
    W_skip: nn.Parameter | None

    def add_parameters(self) -> None:
        """The target's scale, and the skip (D_out, D_in)."""
        self.register_buffer("target_scale", torch.ones(()))
        skip = nn.Parameter(torch.empty(self.config.width_out, self.config.d_in)) if self.config.skip else None
        self.register_parameter("W_skip", skip)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Encoder rows by the config's initialisation, all else zero."""
        self.W_enc.copy_(first_weights(self.config, norm=1.0)[0])
        for tensor in (self.W_dec, self.b_enc, self.b_pre, self.W_skip):
            if tensor is not None:
                tensor.zero_()

    def training_pair(self, x_BD: Tensor, target_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Input and target, both normalised."""
        if target_BD is None or len(target_BD) != len(x_BD):
            rows = "no target" if target_BD is None else f"{len(target_BD)} rows of the target"
            raise ActivationError(
                f"A transcoder needs a row of the target for each of its {len(x_BD)} rows, but got {rows}; give both."
            )
        target_BD = self._checked(target_BD, self.config.width_out)
        if self.config.normalization == "scale":
            target_BD = target_BD * self.target_scale
        return self.normalise(x_BD)[0], target_BD

    def denormalise(self, x_BD: Tensor, scale: RowScale | None) -> Tensor:
        """From the normalised space of the target back to its own."""
        return x_BD / self.target_scale if self.config.normalization == "scale" else x_BD

    def decode_target(self, codes: Codes, batch: Batch) -> Tensor:
        """With the skip."""
        reconstruction_BD = super().decode_target(codes, batch)
        return reconstruction_BD if self.W_skip is None else reconstruction_BD + batch.x_BD @ self.W_skip.t()

    def predict(self, codes: Codes, x_BD: Tensor) -> Tensor:
        """The target's rows (B, D_out) from activations (B, D_in) and their codes."""
        predicted_BD = self.decode(codes)
        if self.W_skip is None:
            return predicted_BD
        return predicted_BD + self.denormalise(self.normalise(x_BD)[0] @ self.W_skip.t(), None)
