"""The training step in plain torch: any architecture, any device, any dtype. Other kernels are held against it.

Every rank computes the gradient sums of its share of the global batch, in micro-batches where memory is short,
all-reduces add them up, and every rank makes the same update: there is no wrapper to call past, and the sum is the same
on all ranks. TopK's gradients are written by hand (`sae_core.gradients`), those of the other architectures come from
autograd (`sae_core.autograd`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

from sae_core.autograd import SUMS, AutogradGradients, gradients_by_autograd
from sae_core.gradients import Gradients, gradients, written_by_hand
from sae_core.kernels.step import Found, Moments, StepOptions
from sae_core.losses import Batch
from sae_core.sae import SAE


class DenseStep:
    """Dense (N, D) gradients, torch's AdamW. A `Step`."""

    def __init__(
        self,
        sae: SAE,
        moments: Mapping[str, Moments],
        options: StepOptions,
        group: "dist.ProcessGroup | None" = None,
    ) -> None:
        self._sae = sae
        self._options = options
        self._group = group
        self.figures = 3 if written_by_hand(sae) else SUMS
        self._parameters = dict(sae.named_parameters())
        self._found: Gradients | AutogradGradients | None = None
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            betas=(options.beta1, options.beta2),
            eps=options.epsilon,
            weight_decay=options.weight_decay,
            fused=True,
        )
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                **moments[name]._asdict(),
            }

    @torch.no_grad()
    def gradients(self, x_BD: Tensor, target_BD: Tensor, dead_N: Tensor, sparsity: float) -> Found:
        found = self._sums(x_BD, target_BD, dead_N, sparsity)
        if self._group:
            for tensor in found.shared:
                dist.all_reduce(tensor, group=self._group)
        self._found = found
        return Found(found.sums, found.fired)

    def _sums(
        self, x_BD: Tensor, target_BD: Tensor, dead_N: Tensor, sparsity: float
    ) -> Gradients | AutogradGradients:
        """Over this rank's rows, one micro-batch after the other."""
        options = self._options
        rows = options.micro_batch or len(x_BD)
        count, parts = -(-len(x_BD) // rows), x_BD.split(rows)
        targets = parts if target_BD is x_BD else target_BD.split(rows)
        batches = [
            Batch(x, target, dead_N, options.k_auxiliary, self._group, options.select_per_rank, count)
            for x, target in zip(parts, targets, strict=True)
        ]
        threshold = self._sae.batch_threshold(batches) if count > 1 else None
        total: Gradients | AutogradGradients | None = None
        for batch in batches:
            found = self._gradients(batch._replace(threshold=threshold), sparsity)
            if total is None:
                total = found
            else:
                torch._foreach_add_(total.shared, found.shared)
        assert total is not None, "a step has at least one row"
        return total

    def _gradients(self, batch: Batch, sparsity: float) -> Gradients | AutogradGradients:
        """Of one micro-batch."""
        options = self._options
        if written_by_hand(self._sae):
            return gradients(
                self._sae,
                batch.x_BD,
                batch.dead_N.nonzero().squeeze(1),
                rows=options.rows,
                variance=options.variance,
                auxiliary=options.auxiliary,
                k_auxiliary=options.k_auxiliary,
            )
        return gradients_by_autograd(
            self._sae,
            batch,
            rows=options.rows,
            variance=options.variance,
            auxiliary=options.auxiliary,
            sparsity=sparsity,
        )

    @torch.no_grad()
    def update(self, learning_rate: float, number: int) -> None:
        if self._found is None:
            raise RuntimeError("There is no gradient to update with: call gradients() first.")
        found, self._found = self._found, None
        W_dec, by_name = self._sae.W_dec, found.by_name
        if self._sae.unit_decoder:
            along_N1 = (by_name["W_dec"] * W_dec).sum(dim=1, keepdim=True)
            by_name["W_dec"].addcmul_(along_N1, W_dec, value=-1)
        for name, parameter in self._parameters.items():
            parameter.grad = by_name[name]
            self._optimizer.state[parameter]["step"].fill_(number - 1)
        if self._options.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._options.clip_norm)
        for settings in self._optimizer.param_groups:
            settings["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._sae.unit_decoder:
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
        if isinstance(found, AutogradGradients):
            self._sae.after_step(found.threshold, number - 1)
