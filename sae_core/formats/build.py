"""From the tensors of a foreign file to one of our autoencoders."""

from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from sae_core.architectures import make_sae
from sae_core.config import Architecture, SAEConfig
from sae_core.errors import FormatError
from sae_core.sae import SAE

LOG_OF_NOTHING = -110.0  # its exponential is 0 in float32: the threshold of a latent that has none


def build(
    architecture: Architecture, settings: dict[str, Any], W_enc: Tensor, W_dec: Tensor, b_pre: Tensor, **tensors: Tensor
) -> SAE:
    """An autoencoder of these weights, both matrices (N, D); raises FormatError where they cannot be one."""
    n_latents, d_in = W_enc.shape
    try:
        config = SAEConfig.model_validate(
            {"architecture": architecture, "d_in": d_in, "n_latents": n_latents, **settings}
        )
    except ValidationError as error:
        raise FormatError(f"The file asks for what no autoencoder of ours has: {error}") from error
    with torch.device("meta"):
        sae = make_sae(config)
    state = {"W_enc": W_enc, "W_dec": W_dec, "b_pre": b_pre, **tensors}
    for name in ("input_scale", "target_scale"):
        if name in sae.state_dict():
            state.setdefault(name, torch.ones(()))
    sae.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    return sae.requires_grad_(False).eval()


def log_threshold(threshold_N: Tensor) -> Tensor:
    """The float32 logarithms whose exponentials come nearest to the thresholds.

    A threshold of ours that was written comes back to the bit. Others differ by 2e-7 of themselves at most where they
    exceed e^-8, because float32 has no closer logarithm. Thresholds up to 0 become 0: only what is positive fires.
    """
    first_N = threshold_N.double().log().float()
    around_3N = torch.stack([torch.nextafter(first_N, first_N - 1), first_N, torch.nextafter(first_N, first_N + 1)])
    nearest_N = (around_3N.exp() - threshold_N).abs().argmin(dim=0, keepdim=True)
    return around_3N.gather(0, nearest_N)[0].where(threshold_N > 0, LOG_OF_NOTHING)
