"""Between the tensors of a foreign file and our autoencoders: make one of them, or take its scale and threshold out."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from sae_core.architectures import Transcoder, make_sae
from sae_core.config import Architecture, SAEConfig
from sae_core.errors import FormatError
from sae_core.sae import SAE, TopKSAE

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


class Affine(NamedTuple):
    """Weights that work on activations as they are; W_skip only with a transcoder's skip."""

    W_enc: Tensor
    W_dec: Tensor
    b_pre: Tensor
    W_skip: Tensor | None


@torch.no_grad()
def without_scale(sae: SAE, target: str) -> Affine:
    """The weights with the data set's scale folded in: the codes stay as they are.

    Raises FormatError for standardise_rows, which no affine map of the rows can do.
    """
    if sae.config.normalization == "standardise_rows":
        raise FormatError(
            f"This autoencoder standardises each row (epsilon {sae.config.epsilon}), and {target} has no such step; "
            "save it with save_sae, or train it with normalization none or scale."
        )
    W_skip = sae.W_skip if isinstance(sae, Transcoder) else None
    if sae.config.normalization == "none":
        return Affine(sae.W_enc, sae.W_dec, sae.b_pre, W_skip)
    scale_in, scale_out = sae.input_scale, sae.target_scale if isinstance(sae, Transcoder) else sae.input_scale
    skip = None if W_skip is None else W_skip * (scale_in / scale_out)
    return Affine(sae.W_enc * scale_in, sae.W_dec / scale_out, sae.b_pre / scale_out, skip)


def selects_rows(sae: SAE) -> bool:
    """Whether exactly the k largest of each row are kept."""
    return isinstance(sae, TopKSAE) or sae.config.selection == "row"


def write_files(folder: Path, config: dict[str, Any], weights: str, tensors: dict[str, Tensor]) -> None:
    """Writes cfg.json and the float32 tensors under that name; equal autoencoders give equal bytes.

    Raises FormatError, before anything is written, for values that are not finite.
    """
    plain = {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        if not torch.isfinite(tensor).all():
            raise FormatError(f"{name} holds values that are not finite, so it was not written; train it again.")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(plain, folder / weights)
    (folder / "cfg.json").write_text(json.dumps(config, sort_keys=True, indent=1) + "\n")


def log_threshold(threshold_N: Tensor) -> Tensor:
    """The float32 logarithms whose exponentials come nearest to the thresholds.

    A threshold of ours that was written comes back to the bit. Others differ by 2e-7 of themselves at most where they
    exceed e^-8, because float32 has no closer logarithm. Thresholds up to 0 become 0: only what is positive fires.
    """
    first_N = threshold_N.double().log().float()
    around_3N = torch.stack([torch.nextafter(first_N, first_N - 1), first_N, torch.nextafter(first_N, first_N + 1)])
    nearest_N = (around_3N.exp() - threshold_N).abs().argmin(dim=0, keepdim=True)
    return around_3N.gather(0, nearest_N)[0].where(threshold_N > 0, LOG_OF_NOTHING)
