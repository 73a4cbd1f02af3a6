"""How well a training does on rows that it never sees, while it goes on: every rank encodes its share of them.

    validation = Validation.of(artifact, at_most=8192, group=group, device=device)   # None: nothing was put aside
    validation.figures(trainer)                                        # {"validation_fvu": 0.07, "validation_l0": 16.0}

The figures are those of `sae_core.metrics` in the space of the activations themselves, over the first rows that were
put aside; with an average of the weights, of that average, which is what the training leaves.
"""

from typing import TYPE_CHECKING, Optional

from tasks.artifacts import Artifact

if TYPE_CHECKING:
    import torch
    from torch import distributed as dist

    from sae_core import Rows, Trainer

ROWS = 8192
CHUNK_ROWS = 2048
POINTS = 20  # about so many times in a training


class Validation:
    """One rank's share of the rows, and what their squared deviation from their mean sums up to."""

    def __init__(
        self, rows: "Rows", d_in: int, count: int, group: "dist.ProcessGroup", device: "torch.device"
    ) -> None:
        """`device`: where the group's tensors have to be, and the trainer is."""
        import torch
        import torch.distributed as dist

        from sae_core.rows import input_and_target

        self._group, self._device = group, device
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        first, last = rank * count // world, (rank + 1) * count // world
        parts = (rows.read(at, min(at + CHUNK_ROWS, last)) for at in range(first, last, CHUNK_ROWS))
        pairs = (input_and_target(part_BD, d_in) for part_BD in parts)
        self._pairs = [(x_BD, x_BD if target_BD is None else target_BD) for x_BD, target_BD in pairs]
        self._count = count
        sum_D = torch.zeros(rows.d - d_in or d_in, dtype=torch.float64)
        for _, target_BD in self._pairs:
            sum_D += target_BD.double().sum(0)
        mean_D = self._total(sum_D) / count
        deviation = torch.zeros((), dtype=torch.float64)
        for _, target_BD in self._pairs:
            deviation += (target_BD.double() - mean_D).square().sum()
        self._deviation = float(self._total(deviation))

    @classmethod
    def of(
        cls, artifact: Artifact, at_most: int, group: "dist.ProcessGroup", device: "torch.device"
    ) -> Optional["Validation"]:
        """On at most so many of the rows that preprocess put aside; None without any."""
        from sae_core import Rows

        index = artifact.json("index.json")
        count = min(at_most, index["validation_rows"])
        if count == 0:
            return None
        names = [name for name in artifact.names() if name.startswith("validation-")]
        return cls(Rows([artifact.path(name) for name in names]), index["d"], count, group, device)

    def figures(self, trainer: "Trainer") -> dict[str, float]:
        """Equal on all ranks, which all call this."""
        import torch

        from sae_core import metrics

        sae = trainer.averaged() if trainer.config.average_decay is not None else trainer.sae
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        with torch.no_grad():
            for x_BD, target_BD in self._pairs:
                x_BD, target_BD = (part_BD.to(self._device, torch.float32) for part_BD in (x_BD, target_BD))
                codes = sae.encode(x_BD)
                sums[0] += metrics.squared_error(target_BD, sae.predict(codes, x_BD)).sum()
                sums[1] += codes.counts().sum()
        error, fired = self._total(sums).tolist()
        return {"validation_fvu": error / self._deviation, "validation_l0": fired / self._count}

    def _total(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The sum over all ranks, on the CPU."""
        import torch.distributed as dist

        tensor = tensor.to(self._device)
        dist.all_reduce(tensor, group=self._group)
        return tensor.cpu()
