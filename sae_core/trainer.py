"""One training step of an autoencoder, on one process or on several that stay bit-equal.

    trainer = Trainer(sae, TrainerConfig(batch_size=1024, steps=1200), variance=V)
    for step in range(trainer.step_number, 1200):
        trainer.step(rows.batch(step, 1024).float())
    trainer.figures()                       # loss, fvu, l0, dead_share ... since the last call
    trainer.state_dict()                    # tensors and plain numbers: all that a next step depends on

The arithmetic of a step is in sae_core/kernels/, chosen by architecture, device and dtype.

Shapes: B rows of this rank, D d_in, N n_latents.
"""

import math
from collections.abc import Mapping
from copy import deepcopy

import torch
from pydantic import Field
from torch import Tensor
from torch import distributed as dist

from sae_core.errors import ActivationError, CheckpointError
from sae_core.kernels import Moments, Precision, StepOptions, step_for
from sae_core.sae import SAE
from sae_core.schedule import ScheduleConfig, factor
from sae_core.tracking import Tracking


class TrainerConfig(ScheduleConfig):
    """Everything that fixes a training, apart from the autoencoder and the data."""

    batch_size: int = Field(ge=1, description="Rows of one step, over all ranks together.")
    lr: float = Field(8e-3, gt=0, description="Peak learning rate of AdamW.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient.")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the squared gradient.")
    epsilon: float = Field(6.25e-10, gt=0, description="AdamW's epsilon (Gao et al. 2024, A.3).")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decay of the weights per step, times lr.")
    auxiliary: float = Field(1 / 32, ge=0, description="Weight of the auxiliary loss on dead latents; 0 turns it off.")
    k_auxiliary: int | None = Field(None, ge=1, description="Dead latents per row in it; None: about d_in / 2.")
    dead_after_rows: int = Field(10_000_000, ge=1, description="Rows without firing after which a latent is dead.")
    sparsity: float = Field(0.0, ge=0, description="Weight of the sparsity penalty, where the architecture has one.")
    sparsity_warmup_steps: int = Field(0, ge=0, description="Steps over which that weight rises linearly from 0.")
    clip_norm: float | None = Field(
        None, gt=0, description="Largest norm of all gradients together, those of the mean ||x - x^||^2; None: any."
    )
    average_decay: float | None = Field(
        None, ge=0, lt=1, description="Decay per step of an average of the weights, kept beside them; None: no average."
    )
    select_per_rank: bool = Field(False, description="Batch-wide selections look at each rank's rows alone.")
    precision: Precision = Field(
        "fp32", description="Of factors in products on a GPU, where k is given (sae_core/kernels/gpu.py)."
    )


class Trainer:
    """The autoencoder with its optimizer, counters and schedule."""

    def __init__(
        self,
        sae: SAE,
        config: TrainerConfig,
        *,
        variance: float,
        group: "dist.ProcessGroup | None" = None,
        micro_batch: int | None = None,
    ) -> None:
        """`variance`: E||x - mean||^2 of the normalised data. `group`: the ranks that share a batch; None: this one.

        `micro_batch`: rows of a rank whose dense codes may be held at once; None: its whole share. How many ranks and
        micro-batches there are changes the rounding of a step and nothing else.

        Raises ValueError where the number of ranks, times the micro-batch, does not divide the batch.
        """
        self.sae = sae.requires_grad_(True)
        self.config = config
        self.step_number = 0  # steps made
        self._world = dist.get_world_size(group) if group else 1
        if config.batch_size % self._world:
            raise ValueError(
                f"The batch of {config.batch_size} rows cannot be shared by {self._world} ranks; "
                "choose a batch size that is a multiple of the number of ranks."
            )
        if micro_batch is not None and (config.batch_size // self._world) % micro_batch:
            raise ValueError(
                f"A rank's share of {config.batch_size // self._world} rows cannot be split into micro-batches of "
                f"{micro_batch}; choose one that divides it."
            )
        if group:
            for tensor in sae.state_dict().values():
                dist.broadcast(tensor, group_src=0, group=group)
        self._moments = {
            name: Moments(*(torch.zeros_like(tensor, requires_grad=False) for _ in Moments._fields))
            for name, tensor in sae.named_parameters()
        }
        options = StepOptions(
            rows=config.batch_size,
            variance=variance,
            auxiliary=config.auxiliary,
            k_auxiliary=config.k_auxiliary or 1 << max(0, round(math.log2(sae.config.d_in / 2))),
            beta1=config.beta1,
            beta2=config.beta2,
            epsilon=config.epsilon,
            weight_decay=config.weight_decay,
            clip_norm=None if config.clip_norm is None else config.clip_norm / variance,
            select_per_rank=config.select_per_rank,
            micro_batch=micro_batch,
            precision=config.precision,
        )
        self._average = {}  # of every parameter, where one is wanted
        if config.average_decay is not None:
            self._average = {name: tensor.detach().clone() for name, tensor in sae.named_parameters()}
        self._step = step_for(sae, self._moments, options, group)
        device = sae.W_enc.device
        rows = {"batch_size": config.batch_size, "dead_after_rows": config.dead_after_rows}
        self.tracking = Tracking(sae.config.n_latents, **rows, device=device)
        # Since `figures`: what a step sums up, then firings and steps.
        self._sums = torch.zeros(self._step.figures + 2, dtype=torch.float64, device=device)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self.config.lr * factor(self.step_number, self.config)

    @property
    def sparsity(self) -> float:
        """Weight of the sparsity penalty in the next step."""
        return self.config.sparsity * min(1.0, (self.step_number + 1) / max(1, self.config.sparsity_warmup_steps))

    @property
    def dead(self) -> Tensor:
        """Which latents are dead now, bool (N,)."""
        return self.tracking.dead

    @torch.no_grad()
    def step(self, x_BD: Tensor, target_BD: Tensor | None = None) -> None:
        """One update from this rank's share of the global batch: float (batch_size / ranks, D), in rank order.

        A transcoder needs the rows of its target too, (batch_size / ranks, d_out).

        Raises ActivationError, on every rank and before anything is changed, for values that are not finite; on a GPU,
        where looking would stop the queue, `figures` and `state_dict` raise instead.
        """
        if len(x_BD) * self._world != self.config.batch_size:
            raise ActivationError(
                f"This step got {len(x_BD)} rows on one of {self._world} ranks, but the batch of all of them has "
                f"{self.config.batch_size}; give each rank its share."
            )
        x_BD, target_BD = self.sae.training_pair(x_BD, target_BD)
        found = self._step.gradients(x_BD, target_BD, self.dead, self.sparsity)
        if found.sums.device.type == "cpu":
            _require_finite(found.sums.tolist(), self.step_number)
        self._step.update(self.learning_rate, self.step_number + 1)
        self._move_average()
        self.tracking.add(found.fired_N, self.step_number + 1)
        self._sums[:-2] += found.sums
        self._sums[-2] += found.fired_N.sum()
        self._sums[-1] += 1
        self.step_number += 1

    def _move_average(self) -> None:
        if self.config.average_decay is not None:
            # The weights move fast at first: as tf.train.ExponentialMovingAverage has it with `num_updates`.
            decay = min(self.config.average_decay, (1 + self.step_number) / (10 + self.step_number))
            parameters = dict(self.sae.named_parameters())
            torch._foreach_lerp_(list(self._average.values()), [parameters[name] for name in self._average], 1 - decay)

    def averaged(self) -> SAE:
        """A copy of the autoencoder with the averaged weights, or with those of now where no average is kept."""
        copy = deepcopy(self.sae).requires_grad_(False)
        load_weights(copy, self._tensors())
        return copy

    def figures(self) -> dict[str, float]:
        """Means over the steps since the last call (at least one); begins anew.

        fvu, auxiliary and loss are in units of the variance V; loss = fvu + weight x auxiliary + whatever else the
        architecture's loss has. Where that has a sparsity term: `sparsity`, its mean over rows before any weight. Those
        of `sae_core.tracking` are of now, not means.
        """
        error, auxiliary, norm, *more, fired, steps = self._sums.tolist()
        _require_finite([error, auxiliary, norm], self.step_number)
        self._sums.zero_()
        rows = steps * self.config.batch_size
        loss, sparsity = more or (error + self.config.auxiliary * auxiliary, 0.0)
        figures = {
            "loss": loss / rows,
            "fvu": error / rows,
            "auxiliary": auxiliary / rows,
            "l0": fired / rows,
            **self.tracking.figures(self.step_number),
        }
        return figures | ({"sparsity": sparsity / rows} if self.sae.penalises_sparsity else {})

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a next step depends on, as named tensors on the CPU; resuming from it repeats the bits."""
        _require_finite(self._sums[:3].tolist(), self.step_number)
        return {name: tensor.detach().cpu().clone() for name, tensor in self._tensors().items()} | {
            "step": torch.tensor(self.step_number)
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a state of `state_dict`; raises CheckpointError, changing nothing, for another trainer's state."""
        tensors = self._tensors()
        expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items() if name != "step"}
        if found != expected or "step" not in state:
            differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            name = (differing or ["step"])[0]
            raise CheckpointError(
                f"The checkpoint has {name} as {found.get(name)}, but this training needs {expected.get(name)}: it "
                "belongs to another training; start anew or give the settings it was made with."
            )
        for name, tensor in tensors.items():
            tensor.copy_(state[name])
        self.step_number = int(state["step"])

    def _tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for name, moments in self._moments.items():
            found |= {f"{moment}.{name}": tensor for moment, tensor in moments._asdict().items()}
        found |= {f"average.{name}": tensor for name, tensor in self._average.items()}
        return found | self.tracking.tensors() | {"sums": self._sums}


@torch.no_grad()
def load_weights(sae: SAE, state: Mapping[str, Tensor]) -> None:
    """Fills an autoencoder with what a training leaves, by its `state_dict`: the average of the weights if it has one.

    Decoder directions that training keeps at norm 1 have it in the average too; what is no weight is as it is now. Gao
    et al. 2024, A.3: an average of weights over training, decay 0.999.
    """
    weights = {name.removeprefix("sae."): tensor for name, tensor in state.items() if name.startswith("sae.")}
    average = {name.removeprefix("average."): tensor for name, tensor in state.items() if name.startswith("average.")}
    sae.load_state_dict(weights | average)
    if average and sae.unit_decoder:
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))


def _require_finite(sums: list[float], step: int) -> None:
    """Raises ActivationError unless error, auxiliary error and squared norm of the input are finite."""
    if not math.isfinite(sums[2]):
        raise ActivationError(
            f"The activations of step {step} hold values that are not finite (NaN or infinite); capture them again, in "
            "a dtype that holds them."
        )
    if not (math.isfinite(sums[0]) and math.isfinite(sums[1])):
        raise ActivationError(f"The loss of step {step} is not finite, although the activations are; lower lr.")
