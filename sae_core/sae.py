"""What all sparse autoencoders share, and the one that keeps the k largest latents of each row.

    sae = make_sae(SAEConfig(d_in=64, n_latents=1024, k=16))
    codes = sae.encode(x_BD)          # sparse: codes.pairs(), codes.dense(1024)
    x_hat_BD = sae.decode(codes)      # or sae(x_BD) in one go
    save_sae(sae, folder); sae = load_sae(folder)

    z = activation(W_enc (x - b_pre) + b_enc),  x^ = W_dec z + b_pre

The other architectures are in `sae_core.architectures`. Both weights are kept as (n_latents, d_in), one contiguous row
per latent, because decoding gathers rows.

Shapes: B rows (tokens), D = d_in, N = n_latents, K = k.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sae_core.codes import Codes, RowScale, TopKCodes
from sae_core.config import SAEConfig
from sae_core.errors import ActivationError
from sae_core.initialise import first_weights
from sae_core.losses import Batch, Loss, auxiliary_error, squared_error
from sae_core.topk import top_k

TILE_ELEMENTS = 1 << 26  # pre-activations held at once while encoding: 256 MiB in fp32
MULTI_TOPK = (4, 1 / 8)  # how many times k, and the weight of that loss (Gao et al. 2024)


class SAE(nn.Module, ABC):
    """A sparse autoencoder; `reset_parameters` says how it starts. On the meta device it has shapes only.

    `h_bias`, (N,) or None, is added to the codes when they are decoded in eval mode: steering, off in training.
    """

    latent_vectors: ClassVar[tuple[str, ...]] = ("b_enc",)  # parameters (N,), zero at the start
    unit_decoder: ClassVar[bool] = True  # whether training keeps decoder directions at norm 1
    uses_auxiliary: ClassVar[bool] = True  # whether the loss has a term for dead latents
    penalises_sparsity: ClassVar[bool] = False  # whether the loss has a sparsity term

    input_scale: Tensor
    b_enc: nn.Parameter
    h_bias: Tensor | None

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config
        self.W_enc = nn.Parameter(torch.empty(config.n_latents, config.d_in))
        self.W_dec = nn.Parameter(torch.empty(config.n_latents, config.width_out))
        for name in self.latent_vectors:
            self.register_parameter(name, nn.Parameter(torch.empty(config.n_latents)))
        self.b_pre = nn.Parameter(torch.empty(config.width_out))
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("h_bias", None, persistent=False)
        self.add_parameters()
        if not self.W_dec.is_meta:
            self.reset_parameters()

    def add_parameters(self) -> None:
        """Where an architecture makes what only it has."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The first weights by the config's initialisation and seed, all biases zero."""
        W_enc, W_dec = first_weights(self.config, self.first_norm())
        self.W_enc.copy_(W_enc)
        self.W_dec.copy_(W_dec)
        for name in self.latent_vectors:
            getattr(self, name).zero_()
        self.b_pre.zero_()

    @property
    def selects_over_batch(self) -> bool:
        """Whether training selects latents over the batch, and not row by row."""
        return False

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Sizes of the dictionaries, each the start of the next, that have to reconstruct alone: all latents."""
        return (self.config.n_latents,)

    def first_norm(self) -> float:
        """Norm of each row of the first weights."""
        return self.config.decoder_norm or 1.0

    def normalise(self, x_BD: Tensor) -> tuple[Tensor, RowScale | None]:
        """Activations in the space where the autoencoder works (its own dtype), and what is needed to go back."""
        x_BD = self._checked(x_BD, self.config.d_in)
        if self.config.normalization == "standardise_rows":
            mean_B1 = x_BD.mean(dim=1, keepdim=True)
            std_B1 = x_BD.std(dim=1, keepdim=True, correction=0) + self.config.epsilon
            return (x_BD - mean_B1) / std_B1, RowScale(mean_B1, std_B1)
        if self.config.normalization == "scale":
            return x_BD * self.input_scale, None
        return x_BD, None

    def denormalise(self, x_BD: Tensor, scale: RowScale | None) -> Tensor:
        """The inverse of `normalise`."""
        if scale is not None:
            return x_BD * scale.std_B1 + scale.mean_B1
        if self.config.normalization == "scale":
            return x_BD / self.input_scale
        return x_BD

    def training_pair(self, x_BD: Tensor, target_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Input and target of a training step, both normalised; only a transcoder has a target of its own."""
        if target_BD is not None:
            raise ActivationError(
                f"A target was given, but the architecture {self.config.architecture} reconstructs its own input; "
                "leave it out, or train a transcoder."
            )
        normalised_BD = self.normalise(x_BD)[0]
        return normalised_BD, normalised_BD

    def centre(self, normalised_BD: Tensor) -> Tensor:
        """x - b_pre, or x where the architecture has no pre-bias."""
        return normalised_BD - self.b_pre if self.config.subtracts_pre_bias else normalised_BD

    def pre_activations(self, normalised_BD: Tensor) -> Tensor:
        """Pre-activations (B, N) of rows that are already normalised: W_enc (x - b_pre) + b_enc."""
        return torch.addmm(self.b_enc, self.centre(normalised_BD), self.W_enc.t())

    def encode(self, x_BD: Tensor) -> Codes:
        """Activations (B, D) of any float dtype to codes; never holds more than TILE_ELEMENTS pre-activations at once.

        Raises ActivationError for rows of another width.
        """
        normalised_BD, scale = self.normalise(x_BD)
        tile = max(1, TILE_ELEMENTS // self.config.n_latents)
        parts = [self.encode_normalised(part_BD) for part_BD in normalised_BD.split(tile)]
        return parts[0].joined(parts, scale)

    @abstractmethod
    def encode_normalised(self, normalised_BD: Tensor) -> Codes:
        """Codes of rows that are already normalised, all at once."""

    def decode_normalised(self, codes: Codes) -> Tensor:
        """Reconstruction (B, D) in the normalised space: the weighted sum of decoder rows and b_pre."""
        reconstruction_BD = codes.combine(self.W_dec) + self.b_pre
        if self.h_bias is not None and not self.training:
            reconstruction_BD = reconstruction_BD + self.h_bias @ self.W_dec
        return reconstruction_BD

    def decode(self, codes: Codes) -> Tensor:
        """Codes to reconstructed activations (B, D)."""
        return self.denormalise(self.decode_normalised(codes), codes.scale)

    def predict(self, codes: Codes, x_BD: Tensor) -> Tensor:
        """What the autoencoder makes of activations whose codes are known: `decode`, and a transcoder's skip."""
        del x_BD
        return self.decode(codes)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Reconstruction (B, D) of activations (B, D); a transcoder's prediction of its target (B, D_out)."""
        return self.predict(self.encode(x_BD), x_BD)

    def batch_threshold(self, micro_batches: Sequence[Batch]) -> Tensor | None:
        """What a selection over several micro-batches must know before the loss of the first; None: nothing."""
        del micro_batches
        return None

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """The training loss of one rank's rows, or of a micro-batch of them, for autograd."""

    def after_step(self, threshold: Tensor, step: int) -> None:
        """Lets an architecture learn from what step number `step` (from 0) selected; `threshold` has shape ()."""

    def _checked(self, x_BD: Tensor, width: int) -> Tensor:
        if x_BD.ndim != 2 or x_BD.shape[1] != width:
            raise ActivationError(
                f"The activations have shape {tuple(x_BD.shape)}, but this autoencoder reads rows of width "
                f"{width}: give a tensor of shape (rows, {width})."
            )
        return x_BD.to(self.W_enc.dtype)


class TopKSAE(SAE):
    """Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2.3, with ReLU on the kept values:

    z = ReLU(TopK(W_enc (x - b_pre) + b_enc)),  x^ = W_dec z + b_pre
    """

    def encode_normalised(self, normalised_BD: Tensor) -> TopKCodes:
        """The k largest pre-activations of each row."""
        values_BK, indices_BK = top_k(self.pre_activations(normalised_BD), self.config.k)
        return TopKCodes(values_BK.relu(), indices_BK)

    def decode_target(self, codes: Codes, batch: Batch) -> Tensor:
        """What the loss compares with the target."""
        return codes.combine(self.W_dec) + self.b_pre

    def loss(self, batch: Batch) -> Loss:
        """Squared error, AuxK, and with `multi_topk` an eighth of the squared error that 4k latents leave.

        `sae_core.gradients` has the gradients of the first two by hand; the two are compared in its test.
        """
        pre_BN = self.pre_activations(batch.x_BD)

        def reconstruct(k: int) -> tuple[TopKCodes, Tensor]:
            values_BK, indices_BK = top_k(pre_BN, min(k, self.config.n_latents))
            codes = TopKCodes(values_BK.relu(), indices_BK)
            return codes, self.decode_target(codes, batch)

        codes, reconstruction_BD = reconstruct(self.config.k)
        fired_N = torch.zeros_like(self.b_enc)
        fired_N.index_add_(0, codes.indices_BK.flatten(), (codes.values_BK.detach() > 0).to(fired_N.dtype).flatten())
        other = None
        if self.config.multi_topk:
            times, weight = MULTI_TOPK
            other = weight * squared_error(reconstruct(times * self.config.k)[1], batch.target_BD)
        return Loss(
            squared_error(reconstruction_BD, batch.target_BD),
            fired_N.detach(),
            auxiliary_error(pre_BN, self.W_dec, batch.target_BD - reconstruction_BD, batch.dead_N, batch.k_auxiliary),
            other=other,
        )
