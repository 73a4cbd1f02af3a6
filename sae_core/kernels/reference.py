"""The training step in plain torch, on any device and in any dtype: what the other kernels are held against.

Every rank computes the gradient sums of its share of the global batch, two large and one small all-reduce add them up,
and every rank makes the same update: there is no wrapper to call past, and the sum is the same on all ranks.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

from sae_core.gradients import Gradients, gradients
from sae_core.kernels.step import PARAMETERS, Found, Moments, StepOptions
from sae_core.sae import TopKSAE


class DenseStep:
    """Dense (N, D) gradients, torch's AdamW. A `Step`."""

    def __init__(
        self,
        sae: TopKSAE,
        moments: Mapping[str, Moments],
        options: StepOptions,
        group: "dist.ProcessGroup | None" = None,
    ) -> None:
        self._sae = sae
        self._options = options
        self._group = group
        self._parameters = {name: getattr(sae, name) for name in PARAMETERS}
        self._found: Gradients | None = None
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
    def gradients(self, x_BD: Tensor, dead_M: Tensor) -> Found:
        options = self._options
        found = gradients(
            self._sae,
            x_BD,
            dead_M,
            rows=options.rows,
            variance=options.variance,
            auxiliary=options.auxiliary,
            k_auxiliary=options.k_auxiliary,
        )
        if self._group:
            for tensor in (found.W_enc, found.W_dec, found.small):
                dist.all_reduce(tensor, group=self._group)
        self._found = found
        return Found(found.sums, found.fired)

    @torch.no_grad()
    def update(self, learning_rate: float, number: int) -> None:
        if self._found is None:
            raise RuntimeError("There is no gradient to update with: call gradients() first.")
        found, self._found = self._found, None
        W_dec = self._sae.W_dec
        along_N1 = (found.W_dec * W_dec).sum(dim=1, keepdim=True)
        found.W_dec.addcmul_(along_N1, W_dec, value=-1)
        for name, parameter in self._parameters.items():
            parameter.grad = getattr(found, name)
            self._optimizer.state[parameter]["step"].fill_(number - 1)
        for settings in self._optimizer.param_groups:
            settings["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        W_dec.div_(W_dec.norm(dim=1, keepdim=True))
