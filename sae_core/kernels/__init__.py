"""The training step, fitted to where it runs; each way gives the same result within rounding.

    step.py         what a step is to the trainer
    reference.py    plain torch: any device, any dtype (float64 too), dense gradients
    cpu.py          fp32 on a CPU: everything but the encoder's matmul in compiled loops (cpu_loops.py, numba)
"""

from collections.abc import Mapping

import torch
from torch import distributed as dist

from sae_core.kernels.reference import DenseStep
from sae_core.kernels.step import PARAMETERS, Found, Moments, Step, StepOptions
from sae_core.sae import TopKSAE

__all__ = ["PARAMETERS", "Found", "Moments", "Step", "StepOptions", "step_for"]


def step_for(
    sae: TopKSAE, moments: Mapping[str, Moments], options: StepOptions, group: "dist.ProcessGroup | None" = None
) -> Step:
    """The fastest step that this autoencoder's device and dtype allow.

    `moments` names a pair for each of PARAMETERS. `group`: the ranks that share a batch, all of which call this and get
    the same; None: this one alone.
    """
    tensors = [*sae.parameters(), *(tensor for pair in moments.values() for tensor in pair)]
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    if plain:
        from sae_core.kernels import cpu  # numba takes a second to import

        here = torch.tensor(int(cpu.available()))
        if group:  # ranks that exchange different things would wait for each other for ever
            dist.all_reduce(here, op=dist.ReduceOp.MIN, group=group)
        if here:
            return cpu.FusedStep(sae, moments, options, group)
    return DenseStep(sae, moments, options, group)
