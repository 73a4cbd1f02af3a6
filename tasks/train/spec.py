"""What a training computes: the autoencoder, its loss and its optimizer, as the form shows them.

    spec = TrainSpec(n_latents=2048, k=8)
    spec.sae_config(d_in=64), spec.trainer_config(rows=100_000, d_in=64)

Fields added since the first version start as None, so that the keys of older trainings stay what they were. Nothing
here imports torch: the plan reads specs.
"""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.artifacts import Spec

if TYPE_CHECKING:
    from sae_core import SAEConfig, TrainerConfig

Architecture = Literal["topk", "batch_topk", "relu", "jumprelu", "gated", "matryoshka", "transcoder"]

# As in sae_core.config, which cannot be imported here: torch would take two seconds of every `plan`.
CONCERNED: dict[str, tuple[str, ...]] = {
    "prefixes": ("matryoshka",),
    "selection": ("matryoshka",),
    "bandwidth": ("jumprelu",),
    "decoder_norm": ("relu",),
    "multi_topk": ("topk", "transcoder"),
    "skip": ("transcoder",),
    "precision": ("topk", "batch_topk", "matryoshka", "transcoder"),
    "select_per_rank": ("batch_topk", "matryoshka"),
    "sparsity": ("relu", "jumprelu", "gated"),
    "sparsity_warmup": ("relu", "jumprelu", "gated"),
}
WITHOUT_K = ("relu", "jumprelu", "gated")
SPARSITY_WARMUP = 0.05  # share of the steps: Anthropic, April 2024
CLIP_NORM = {"relu": 1.0}  # the same
RATE = {"batch_topk": 0.375}  # of the default learning rate; 0.25 elsewhere: tests/benchmarks/NOTES.md
OF_THE_SAE = (  # settings that SAEConfig has too, under the same name and with None as their default
    "initialisation", "decoder_norm", "pre_bias", "multi_topk", "prefixes", "selection", "bandwidth", "skip",
)  # fmt: skip
HISTORY_ROWS = 400  # rows of history.parquet where log_every is not given


def _at(position: int, default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"position": position}, **limits)


class TrainSpec(Spec):
    """The autoencoder, its loss and its optimizer."""

    n_latents: int = _at(0, 2048, "Number of latents.", ge=1, lt=2**31)  # int32 numbers them in later stages
    k: int = _at(1, 16, "Latents kept per token, batch_topk: on average; not of relu, jumprelu and gated.", ge=1)
    normalization: Literal["none", "standardise_rows", "scale"] = _at(
        2, "none", "none: as they are; standardise_rows: each token to mean 0, deviation 1; scale: E||x|| = sqrt(d)."
    )
    batch_size: int = _at(3, 1024, "Tokens per step, over all workers together.", ge=1)
    epochs: float = _at(4, 1.0, "Passes over the training rows; rounded up to whole steps.", gt=0)
    steps: int | None = _at(5, None, "Number of steps; empty: by epochs.", ge=1)
    lr: float | None = _at(6, None, "Peak learning rate; empty: 0.25 / sqrt(n_latents), batch_topk: 0.375.", gt=0)
    warmup: float = _at(7, 0.05, "Share of the steps over which the learning rate rises.", ge=0, le=1)
    schedule: Literal["constant", "linear", "cosine"] = _at(
        8, "linear", "constant; linear: to floor over the last decay_share of the steps; cosine: over all of them."
    )
    decay_share: float = _at(9, 0.2, "Share of the steps, at the end, over which linear decays.", gt=0, le=1)
    floor: float = _at(10, 0.0, "Learning rate at the end, as a share of the peak.", ge=0, le=1)
    beta1: float = _at(11, 0.9, "AdamW's decay of the mean gradient.", ge=0, lt=1)
    beta2: float | None = _at(
        12, None, "AdamW's decay of the squared gradient; empty: 0.999, less in short trainings with k.", ge=0, lt=1
    )
    epsilon: float = _at(13, 6.25e-10, "AdamW's epsilon.", gt=0)
    weight_decay: float = _at(14, 0.0, "AdamW's weight decay.", ge=0)
    auxiliary: float = _at(
        15, 1 / 8, "Weight of the auxiliary loss, which revives dead latents; relu, jumprelu, gated have none.", ge=0
    )
    k_auxiliary: int | None = _at(16, None, "Dead latents per token in it; empty: about half of the width.", ge=1)
    dead_after: int | None = _at(
        17, None, "Tokens of silence after which a latent is dead; empty: 1/120 of all, at most 10 million.", ge=1
    )
    log_every: int | None = _at(18, None, "Steps between rows of the history; empty: 400 rows in all.", ge=1)
    seed: int = _at(19, 0, "Seed of the first weights and of the order of the rows.", ge=0, lt=2**32)

    architecture: Architecture | None = _at(
        20,
        None,
        "Which latents fire. topk (empty): the k largest of each token. batch_topk: k per token on average over the "
        "batch. relu: all above zero, with an L1 penalty. jumprelu: those above thresholds of their own. gated: those "
        "whose gate is open. matryoshka: batch_topk with nested dictionaries. transcoder: topk that reconstructs "
        "preprocess.target.",
    )
    sparsity: float | None = _at(
        21,
        None,
        "Weight of the penalty of relu, jumprelu and gated; empty: a middle one for scaled data of this width.",
        ge=0,
    )
    sparsity_warmup: float | None = _at(
        22, None, "Share of the steps over which that weight rises; empty: 0.05.", ge=0, le=1
    )
    clip_norm: float | None = _at(
        23, None, "Largest norm of all gradients of the mean ||x - x^||^2 together; empty: 1 for relu, else any.", gt=0
    )
    initialisation: Literal["tied", "orthogonal", "random"] | None = _at(
        24, None, "tied (empty): the encoder begins as the decoder; orthogonal: so too; random: drawn apart."
    )
    decoder_norm: float | None = _at(25, None, "Norm of relu's first decoder directions; empty: 0.1.", gt=0)
    pre_bias: bool | None = _at(
        26, None, "Whether the data's mean, then learned, is subtracted first; empty: not for relu and jumprelu."
    )
    multi_topk: bool | None = _at(27, None, "Adds an eighth of topk's loss with 4k latents.")
    prefixes: tuple[int, ...] | None = _at(
        28, None, "Sizes of matryoshka's dictionaries, ascending to n_latents; empty: 1/16, 1/8, 1/4, 1/2, all."
    )
    selection: Literal["batch", "row"] | None = _at(
        29, None, "Of matryoshka. batch (empty): k per token on average; row: the k largest of each token."
    )
    bandwidth: float | None = _at(30, None, "Width of jumprelu's kernel, and its first thresholds; empty: 0.05.", gt=0)
    select_per_rank: bool | None = _at(
        31, None, "Whether each worker selects from its own tokens: the result then depends on how many there are."
    )
    pre_bias_from: Literal["mean", "geometric_median"] | None = _at(
        32, None, "What the pre-bias begins as. mean (empty): the data's; geometric_median: far tokens pull at it less."
    )
    average_decay: float | None = _at(
        33,
        None,
        "Leaves an average of the weights, over about the last 1 / (1 - this) steps; empty: the last weights.",
        ge=0,
        lt=1,
    )
    validation_rows: int | None = _at(
        34, None, "Held-out tokens that show about 20 times how well it does; empty: up to 8,192; 0: none.", ge=0
    )
    precision: Literal["tf32", "bf16"] | None = _at(
        35, None, "Of products on a GPU, where k is given; sums are fp32. tf32: in matmuls; bf16: in all; empty: fp32."
    )

    skip: bool | None = _at(36, None, "Of transcoder: a linear path from its input to its output beside the latents.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        architecture = self.architecture or "topk"
        for name, architectures in CONCERNED.items():
            value = getattr(self, name)
            if value is not None and architecture not in architectures:
                raise ValueError(
                    f"{name} is {value}, but the architecture {architecture} does not use it; leave it out, or choose "
                    f"the architecture {' or '.join(architectures)}"
                )
        if self.uses_k and self.k > self.n_latents:
            raise ValueError(f"k is {self.k}, but n_latents is only {self.n_latents}; choose k at most n_latents")
        if self.prefixes is not None and (
            list(self.prefixes) != sorted(set(self.prefixes))
            or self.prefixes[:1] < (1,)
            or self.prefixes[-1] != self.n_latents
        ):
            raise ValueError(
                f"prefixes are {list(self.prefixes)}, which do not ascend to n_latents, {self.n_latents}; end with it"
            )
        if self.transcodes and (self.pre_bias or self.normalization == "standardise_rows"):
            what = "pre_bias is true" if self.pre_bias else "normalization is standardise_rows"
            raise ValueError(
                f"{what}, but what a transcoder's input loses has no place in its output; leave it out, or choose scale"
            )
        if not self.uses_k and self.sparsity is None and self.normalization == "none":
            raise ValueError(
                f"sparsity is empty, and its default for {architecture} fits tokens of norm sqrt(d), but normalization "
                "is none; set normalization to scale, or give sparsity"
            )
        return self

    @property
    def uses_k(self) -> bool:
        """Whether the number of latents per token is set, not found."""
        return self.architecture not in WITHOUT_K

    @property
    def transcodes(self) -> bool:
        """Whether it reconstructs a site other than the one it reads."""
        return self.architecture == "transcoder"

    def size(self) -> str:
        """The autoencoder in a few words."""
        architecture = f"{self.architecture} " if self.architecture else ""
        return f"{architecture}n={self.n_latents}" + (f" k={self.k}" if self.uses_k else "")

    def number_of_steps(self, rows: int) -> int:
        """Steps of the whole training on so many rows."""
        return self.steps if self.steps is not None else -(-int(self.epochs * rows) // self.batch_size)

    def sae_config(self, d_in: int) -> "SAEConfig":
        """The autoencoder for activations of width d_in."""
        from sae_core import SAEConfig

        return SAEConfig(
            d_in=d_in,
            n_latents=self.n_latents,
            k=self.k if self.uses_k else 0,
            architecture=self.architecture or "topk",
            normalization=self.normalization,
            seed=self.seed,
            **{name: getattr(self, name) for name in OF_THE_SAE},
        )

    def trainer_config(self, rows: int, d_in: int) -> "TrainerConfig":
        """The training on so many rows of width d_in, with all that was left empty filled in."""
        from sae_core import TrainerConfig

        steps, architecture = self.number_of_steps(rows), self.architecture or "topk"
        warmup = SPARSITY_WARMUP if self.sparsity_warmup is None else self.sparsity_warmup
        same = ("batch_size", "schedule", "decay_share", "floor", "beta1", "epsilon", "weight_decay")
        return TrainerConfig(
            **{name: getattr(self, name) for name in (*same, "auxiliary", "k_auxiliary")},
            steps=steps,
            warmup_steps=round(self.warmup * steps),
            lr=self.lr or RATE.get(architecture, 0.25) / self.n_latents**0.5,
            beta2=(_beta2(steps) if self.uses_k else 0.999) if self.beta2 is None else self.beta2,
            dead_after_rows=self.dead_after or max(1, min(10_000_000, steps * self.batch_size // 120)),
            sparsity=_middle_sparsity(architecture, d_in) if self.sparsity is None else self.sparsity,
            sparsity_warmup_steps=round(warmup * steps),
            clip_norm=self.clip_norm or CLIP_NORM.get(architecture),
            select_per_rank=bool(self.select_per_rank),
            average_decay=self.average_decay,
            precision=self.precision or "fp32",
        )

    def steps_between_logs(self, rows: int) -> int:
        """log_every, or what gives about HISTORY_ROWS rows."""
        return self.log_every or max(1, self.number_of_steps(rows) // HISTORY_ROWS)


def _beta2(steps: int) -> float:
    """0.999, but a memory of no more than a twelfth of the steps, and 0.99 at least.

    The first gradients are many times the later ones: remembered for long they make all later steps too short
    (tests/benchmarks/NOTES.md).
    """
    return min(0.999, max(0.99, 1 - 12 / max(1, steps)))


def _middle_sparsity(architecture: str, d_in: int) -> float:
    """A weight that leaves about as many latents as a TopK autoencoder has, on data with E||x|| = sqrt(d).

    The squared error grows as d, an L1 norm of codes as sqrt(d), their number not at all; the factors were found on
    stories260K (d = 64, n = 1,024, 1,200 steps: L0 of 10, 11 and 21). Anthropic's 5 is the first of them at d = 1,600.
    """
    return {"relu": d_in**0.5 / 8, "gated": 3 * d_in**0.5 / 8, "jumprelu": d_in / 250}.get(architecture, 0.0)
