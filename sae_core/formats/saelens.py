"""SAELens 6 and newer: cfg.json and sae_weights.safetensors, W_enc (D, N), W_dec (N, D).

Its BatchTopK and Matryoshka become JumpReLU when SAELens saves them for inference, and so do ours. W_enc is transposed,
because SAELens multiplies from the right. Two settings are folded into the weights: `rescale_acts_by_decoder_norm`
(codes are selected and given in units of unit decoder directions) when reading, our data set's scale when writing.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core.architectures import BatchTopKSAE, GatedSAE, JumpReLUSAE, ReLUSAE, Transcoder
from sae_core.config import Architecture
from sae_core.errors import FormatError
from sae_core.formats.build import build, log_threshold
from sae_core.formats.export import selects_rows, without_scale, write_files
from sae_core.formats.given import Given
from sae_core.formats.source import Source
from sae_core.sae import SAE

VERSION = "6.0.0"  # of the layout; SAELens converts what says less than 6.0.0-rc.0
ARCHITECTURES: dict[str, tuple[Architecture, tuple[str, ...]]] = {  # ours, and its tensors (N,)
    "standard": ("relu", ("b_enc",)),
    "topk": ("topk", ("b_enc",)),
    "jumprelu": ("jumprelu", ("b_enc", "threshold")),
    "gated": ("gated", ("b_gate", "b_mag", "r_mag")),
}


def read(source: Source, given: Given) -> tuple[SAE, dict[str, Any]]:
    """The autoencoder and its metadata; `given.input_scale` only for normalize_activations expected_average_only_in.

    Raises FormatError for an older layout, another architecture, and normalisations that we do not have.
    """
    config, metadata = source.config, source.config.get("metadata")
    version = metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not re.match(r"([6-9]|[1-9]\d+)\.", str(version)):
        raise FormatError(
            f"The cfg.json beside {source.path} says metadata.sae_lens_version = {version}, but 6 or newer is needed; "
            "load and save it with a newer SAELens first."
        )
    theirs = str(config.get("architecture"))
    if theirs not in ARCHITECTURES:
        raise FormatError(
            f"{source.path} has the architecture {theirs}, but only {', '.join(ARCHITECTURES)} can be read; save a "
            "training checkpoint as an inference model with SAELens first (save_inference_model)."
        )
    architecture, vectors = ARCHITECTURES[theirs]
    shapes = {"W_enc": "dn", "W_dec": "nd", "b_dec": "d"} | dict.fromkeys(vectors, "n")
    tensors = source.take(shapes, d=source.integer("d_in"), n=source.integer("d_sae"))
    W_enc, W_dec, b_pre = tensors.pop("W_enc").t(), tensors.pop("W_dec"), tensors.pop("b_dec")
    settings: dict[str, Any] = {"pre_bias": bool(config.get("apply_b_dec_to_input", True))}
    if theirs == "topk":
        settings["k"] = source.integer("k")
        if config.get("rescale_acts_by_decoder_norm"):
            norm_N = W_dec.norm(dim=1)
            W_enc, W_dec = W_enc * norm_N[:, None], W_dec / norm_N.clamp(min=1e-8)[:, None]
            tensors["b_enc"] = tensors["b_enc"] * norm_N
    if theirs == "jumprelu":
        tensors["log_threshold"] = log_threshold(tensors.pop("threshold"))
    if scale := _scale(source, given):
        settings["normalization"], tensors["input_scale"] = "scale", torch.tensor(scale)
    return build(architecture, settings, W_enc, W_dec, b_pre, **tensors), metadata


def _scale(source: Source, given: Given) -> float | None:
    """The factor of the input, or None where there is none."""
    normalize = source.config.get("normalize_activations") or "none"
    if normalize == "none":
        given.only()
        return None
    if normalize != "expected_average_only_in":
        raise FormatError(
            f"{source.path} asks for normalize_activations = {normalize}, which ours cannot do in the same way; "
            "only none and expected_average_only_in can be read."
        )
    given.only("input_scale")
    if given.input_scale is None or not given.input_scale > 0:
        raise FormatError(
            f"{source.path} was trained on scaled activations (expected_average_only_in) and does not hold the factor, "
            f"but input_scale is {given.input_scale}; give sqrt(d_in) / E||x||, or 1.0 for activations scaled already."
        )
    return given.input_scale


def write(sae: SAE, folder: Path, metadata: dict[str, Any]) -> None:
    """Writes what `sae_lens.SAE.load_from_disk` reads; raises FormatError for a transcoder and for standardise_rows."""
    weights = without_scale(sae, "SAELens")
    architecture, vectors = _described(sae)
    config = {
        "architecture": architecture,
        "d_in": sae.config.d_in,
        "d_sae": sae.config.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.config.subtracts_pre_bias,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {**metadata, "sae_lens_version": VERSION},
    }
    if architecture == "topk":
        config |= {"k": sae.config.k, "rescale_acts_by_decoder_norm": False}
    tensors = {"W_enc": weights.W_enc.t(), "W_dec": weights.W_dec, "b_dec": weights.b_pre, **vectors}
    write_files(folder, config, "sae_weights.safetensors", tensors)


@torch.no_grad()
def _described(sae: SAE) -> tuple[str, dict[str, Tensor]]:
    """SAELens's name of the architecture, and its tensors (N,)."""
    match sae:
        case Transcoder():
            raise FormatError("SAELens has no TopK transcoder; write it in the format sparsify.")
        case GatedSAE():
            return "gated", {"b_gate": sae.b_gate, "b_mag": sae.b_mag, "r_mag": sae.r_mag}
        case ReLUSAE():
            return "standard", {"b_enc": sae.b_enc}
        case JumpReLUSAE():
            return "jumprelu", {"b_enc": sae.b_enc, "threshold": sae.log_threshold.exp()}
        case BatchTopKSAE() if not selects_rows(sae):
            return "jumprelu", {"b_enc": sae.b_enc, "threshold": sae.threshold.expand(sae.config.n_latents)}
    return "topk", {"b_enc": sae.b_enc}
