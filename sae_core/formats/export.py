"""From one of our autoencoders to the files of another library."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_core.architectures import Transcoder
from sae_core.errors import FormatError
from sae_core.sae import SAE, TopKSAE


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
    text = json.dumps(config, sort_keys=True, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(plain, folder / weights)
    (folder / "cfg.json").write_text(text)
