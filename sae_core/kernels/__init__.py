"""The training step, fitted to where it runs; each way gives the same result within rounding.

    step.py         what a step is to the trainer
    reference.py    plain torch: any architecture, device and dtype (float64 too), dense gradients
    cpu.py          FUSED architectures in fp32 on a CPU: all but the encoder's matmul in compiled loops
                    (cpu_rounded.py, cpu_top_k.py, cpu_batch_top_k.py,
                    cpu_loops.py)
    gpu.py          the same on a GPU, in Triton (gpu_top_k.py, gpu_batch_top_k.py, gpu_decode.py,
                    gpu_update.py)
    ranks.py        what ranks exchange in these two

`step_for` chooses among them.
"""

from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import distributed as dist

from sae_core.architectures.batch_topk import BatchTopKSAE
from sae_core.architectures.matryoshka import MatryoshkaSAE
from sae_core.architectures.transcoder import Transcoder
from sae_core.kernels import ranks
from sae_core.kernels.reference import DenseStep
from sae_core.kernels.step import Found, Moments, Precision, Step, StepOptions
from sae_core.sae import SAE, TopKSAE

__all__ = ["FUSED", "Found", "Moments", "Precision", "Step", "StepOptions", "step_for"]

FUSED = (TopKSAE, BatchTopKSAE, MatryoshkaSAE, Transcoder)  # themselves: what derives from them may have another loss


def step_for(
    sae: SAE, moments: Mapping[str, Moments], options: StepOptions, group: "dist.ProcessGroup | None" = None
) -> Step:
    """The fastest step that this autoencoder's architecture, device and dtype allow.

    `moments` names a pair for each of its parameters. `group`: the ranks that share a batch, all of which call this and
    get the same; None: this one alone.
    """
    tensors = [*sae.parameters(), *(tensor for pair in moments.values() for tensor in pair)]
    device = sae.W_enc.device
    plain = all(t.device == device and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    if plain and type(sae) in FUSED and not sae.config.multi_topk and options.clip_norm is None:
        if device.type == "cpu":
            from sae_core.kernels import cpu  # numba takes a second to import

            if ranks.agreed(cpu.available(), device, group):
                return cpu.FusedStep(sae, moments, options, group)
        triton = find_spec("triton") is not None
        if device.type == "cuda" and sae.W_enc.shape == sae.W_dec.shape and ranks.agreed(triton, device, group):
            from sae_core.kernels import gpu

            if gpu.sparse_wins(len(sae.W_enc), sae.config.k, options.rows, dist.get_world_size(group) if group else 1):
                return gpu.TritonStep(sae, moments, options, group)
    return DenseStep(sae, moments, options, group)
