"""The TopK sparse autoencoder: activations in, sparse codes out, and back.

    sae = TopKSAE(SAEConfig(d_in=64, n_latents=1024, k=16))
    codes = sae.encode(x_BD)          # Codes(values_BK, indices_BK)
    x_hat_BD = sae.decode(codes)      # or sae(x_BD) in one go
    save_sae(sae, folder); sae = load_sae(folder)

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2.3, with ReLU on the kept values:
    z = ReLU(TopK(W_enc (x - b_pre) + b_enc)),  x^ = W_dec z + b_pre
Both weights are kept as (n_latents, d_in), one contiguous row per latent, because decoding gathers rows.

Shapes: B rows (tokens), D = d_in, N = n_latents, K = k.
"""

from typing import Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sae_core.errors import ActivationError
from sae_core.topk import top_k

TILE_ELEMENTS = 1 << 26  # pre-activations held at once while encoding: 256 MiB in fp32


class SAEConfig(BaseModel):
    """Everything that fixes an autoencoder's shape and arithmetic, apart from its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_in: int = Field(ge=1, description="Width of the activations.")
    n_latents: int = Field(ge=1, description="Number of latents.")
    k: int = Field(ge=1, description="Latents kept per row.")
    architecture: Literal["topk"] = Field("topk", description="Which latents are kept: the k largest of each row.")
    normalization: Literal["none", "standardise_rows", "scale"] = Field(
        "none",
        description="none: inputs as they are. standardise_rows: each row to mean 0 and standard deviation 1. "
        "scale: one factor for the whole data set (input_scale). Both are undone after decoding.",
    )
    epsilon: float = Field(1e-6, gt=0, description="Added to each row's standard deviation by standardise_rows.")
    seed: int = Field(0, ge=0, description="Seed of the initial decoder directions.")

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.n_latents:
            raise ValueError(f"k = {self.k} is larger than n_latents = {self.n_latents}; choose k at most n_latents.")
        return self


class RowScale(NamedTuple):
    """What standardise_rows took out of each row, needed to put it back."""

    mean_B1: Tensor
    std_B1: Tensor


class Codes(NamedTuple):
    """The sparse code of each row: k latents and their activations, in no promised order."""

    values_BK: Tensor  # activations, >= 0; a zero means the latent does not fire
    indices_BK: Tensor  # int64 latent numbers
    scale: RowScale | None = None  # only with standardise_rows


class TopKSAE(nn.Module):
    """A TopK autoencoder; `reset_parameters` says how it starts. On the meta device it has shapes only."""

    input_scale: Tensor

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config
        self.W_enc = nn.Parameter(torch.empty(config.n_latents, config.d_in))
        self.W_dec = nn.Parameter(torch.empty(config.n_latents, config.d_in))
        self.b_enc = nn.Parameter(torch.empty(config.n_latents))
        self.b_pre = nn.Parameter(torch.empty(config.d_in))
        self.register_buffer("input_scale", torch.ones(()))
        if not self.W_dec.is_meta:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random unit decoder directions from the config's seed, the encoder their transpose, zero biases.

        Gao et al. 2024, section 2.4: this start leaves few latents dead.
        """
        generator = torch.Generator().manual_seed(self.config.seed)
        directions_ND = torch.randn(self.config.n_latents, self.config.d_in, generator=generator, device="cpu")
        directions_ND /= directions_ND.norm(dim=1, keepdim=True)
        self.W_dec.copy_(directions_ND)
        self.W_enc.copy_(directions_ND)
        self.b_enc.zero_()
        self.b_pre.zero_()

    def normalise(self, x_BD: Tensor) -> tuple[Tensor, RowScale | None]:
        """Activations in the space where the autoencoder works (its own dtype), and what is needed to go back."""
        if x_BD.ndim != 2 or x_BD.shape[1] != self.config.d_in:
            raise ActivationError(
                f"The activations have shape {tuple(x_BD.shape)}, but this autoencoder reads rows of width "
                f"{self.config.d_in}: give a tensor of shape (rows, {self.config.d_in})."
            )
        x_BD = x_BD.to(self.W_enc.dtype)
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

    def pre_activations(self, normalised_BD: Tensor) -> Tensor:
        """Pre-activations (B, N) of rows that are already normalised: W_enc (x - b_pre) + b_enc."""
        return torch.addmm(self.b_enc, normalised_BD - self.b_pre, self.W_enc.t())

    def encode(self, x_BD: Tensor) -> Codes:
        """Activations (B, D) of any float dtype to codes; never holds more than TILE_ELEMENTS pre-activations at once.

        Raises ActivationError for rows of another width.
        """
        normalised_BD, scale = self.normalise(x_BD)
        tile = max(1, TILE_ELEMENTS // self.config.n_latents)
        parts = [top_k(self.pre_activations(part_BD), self.config.k) for part_BD in normalised_BD.split(tile)]
        if len(parts) == 1:
            values_BK, indices_BK = parts[0]
        else:
            values_BK, indices_BK = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return Codes(values_BK.relu(), indices_BK, scale)

    def decode_normalised(self, values_BK: Tensor, indices_BK: Tensor) -> Tensor:
        """Reconstruction (B, D) in the normalised space: the sum of k decoder rows and b_pre."""
        return F.embedding_bag(indices_BK, self.W_dec, per_sample_weights=values_BK, mode="sum") + self.b_pre

    def decode(self, codes: Codes) -> Tensor:
        """Codes to reconstructed activations (B, D)."""
        return self.denormalise(self.decode_normalised(codes.values_BK, codes.indices_BK), codes.scale)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Reconstruction (B, D) of activations (B, D)."""
        return self.decode(self.encode(x_BD))
