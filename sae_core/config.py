"""Everything that fixes an autoencoder's shape and arithmetic, apart from its weights.

    config = SAEConfig(d_in=64, n_latents=1024, k=16)                                       # architecture="topk"
    config = SAEConfig(d_in=64, n_latents=1024, architecture="relu", normalization="scale")

A field that does not concern an architecture stays at its default: a value that nothing would read is refused.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Architecture = Literal["topk", "batch_topk", "relu", "jumprelu", "gated", "matryoshka", "transcoder"]
Normalization = Literal["none", "standardise_rows", "scale"]
Initialisation = Literal["tied", "orthogonal", "random"]
Selection = Literal["batch", "row"]

CONCERNED: dict[str, tuple[Architecture, ...]] = {  # who reads a field that not all architectures have
    "k": ("topk", "batch_topk", "matryoshka", "transcoder"),
    "multi_topk": ("topk", "transcoder"),
    "prefixes": ("matryoshka",),
    "selection": ("matryoshka",),
    "bandwidth": ("jumprelu",),
    "decoder_norm": ("relu",),  # the others keep it at 1, and a transcoder's decoder starts at zero
    "d_out": ("transcoder",),
    "skip": ("transcoder",),
}
PREFIX_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


class SAEConfig(BaseModel):
    """The settings of one autoencoder; `make_sae` builds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_in: int = Field(ge=1, description="Width of the activations.")
    n_latents: int = Field(ge=1, description="Number of latents.")
    k: int = Field(0, ge=0, description="Latents kept per row (batch_topk: on average); 0: the architecture has none.")
    architecture: Architecture = Field(
        "topk",
        description="Which latents fire. topk: the k largest of each row. batch_topk: the k x rows largest of a batch, "
        "later those above a learned threshold. relu: all above zero. jumprelu: those above a threshold of their own. "
        "gated: those whose gate is open. matryoshka: as batch_topk, with nested dictionaries. "
        "transcoder: as topk, reconstructing another site.",
    )
    normalization: Normalization = Field(
        "none",
        description="none: inputs as they are. standardise_rows: each row to mean 0 and standard deviation 1. "
        "scale: one factor for the whole data set (input_scale). Both are undone after decoding.",
    )
    epsilon: float = Field(1e-6, gt=0, description="Added to each row's standard deviation by standardise_rows.")
    seed: int = Field(0, ge=0, description="Seed of the initial weights.")
    initialisation: Initialisation | None = Field(
        None,
        description="tied (None): random decoder directions, the encoder their transpose. orthogonal: the same with "
        "orthonormal columns. random: encoder and decoder drawn apart.",
    )
    decoder_norm: float | None = Field(
        None, gt=0, description="Norm of each decoder direction at the start; None: 0.1 for relu, else 1."
    )
    pre_bias: bool | None = Field(
        None, description="Whether b_pre is subtracted before encoding; None: not for relu, jumprelu and transcoder."
    )
    multi_topk: bool | None = Field(None, description="Adds 1/8 of the loss with 4k latents (Gao et al. 2024).")
    prefixes: tuple[int, ...] | None = Field(
        None, description="Sizes of the nested dictionaries, ascending to n_latents; None: 1/16, 1/8, 1/4, 1/2, all."
    )
    selection: Selection | None = Field(
        None, description="Of matryoshka. batch (None): the k x rows largest of the batch. row: the k of each row."
    )
    bandwidth: float | None = Field(
        None, gt=0, description="Width of JumpReLU's kernel, in units of pre-activations; None: 0.05."
    )
    d_out: int | None = Field(None, ge=1, description="Width of a transcoder's target; None: d_in.")
    skip: bool | None = Field(None, description="Adds a linear path from a transcoder's input to its output.")

    @model_validator(mode="after")
    def _fits_the_architecture(self) -> Self:
        for name, architectures in CONCERNED.items():
            value = getattr(self, name)
            if value and self.architecture not in architectures:
                raise ValueError(
                    f"{name} = {value} is given, but the architecture {self.architecture} does not use it; leave it "
                    f"out, or choose {' or '.join(architectures)}."
                )
        if self.architecture in CONCERNED["k"] and self.k == 0:
            raise ValueError(f"The architecture {self.architecture} needs k, the number of latents kept per row.")
        if self.k > self.n_latents:
            raise ValueError(f"k = {self.k} is larger than n_latents = {self.n_latents}; choose k at most n_latents.")
        if self.architecture == "transcoder" and (self.pre_bias or self.normalization == "standardise_rows"):
            what = "pre_bias" if self.pre_bias else "normalization = standardise_rows"
            raise ValueError(
                f"A transcoder cannot have {what}: what its input loses has no place in its output; leave it out."
            )
        return self

    @model_validator(mode="after")
    def _prefixes_ascend(self) -> Self:
        prefixes = self.prefixes
        if prefixes is not None and (
            list(prefixes) != sorted(set(prefixes)) or prefixes[:1] < (1,) or prefixes[-1] != self.n_latents
        ):
            raise ValueError(
                f"prefixes = {list(prefixes)} do not ascend from at least 1 to n_latents = {self.n_latents}; "
                f"give sizes such as {list(default_prefixes(self.n_latents))}."
            )
        return self

    @property
    def subtracts_pre_bias(self) -> bool:
        """`pre_bias`, with the published default of each architecture."""
        if self.pre_bias is not None:
            return self.pre_bias
        return self.architecture not in ("relu", "jumprelu", "transcoder")

    @property
    def width_out(self) -> int:
        """Width of what is reconstructed."""
        return self.d_out or self.d_in


def default_prefixes(n_latents: int) -> tuple[int, ...]:
    """Sizes of nested dictionaries that double up to n_latents."""
    return tuple(sorted({max(1, round(share * n_latents)) for share in PREFIX_SHARES}))
