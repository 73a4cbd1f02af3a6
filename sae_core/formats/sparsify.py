"""EleutherAI's sparsify: cfg.json and sae.safetensors, both matrices (N, D) as ours.

It subtracts b_dec from the input unless `transcode` is set, and its one activation that we have is topk. A skip is
W_skip x on the raw input: with b_dec subtracted as well, that subtraction moves into the encoder's bias.
"""

from pathlib import Path
from typing import Any

from sae_core.errors import FormatError
from sae_core.formats.build import build
from sae_core.formats.export import selects_rows, without_scale, write_files
from sae_core.formats.given import Given
from sae_core.formats.source import Source
from sae_core.sae import SAE


def read(source: Source, given: Given) -> tuple[SAE, dict[str, Any]]:
    """The autoencoder or transcoder, and the metadata where `write` left some.

    Raises FormatError for another activation than topk, and for signed latents (sparsify before 1.0).
    """
    given.only()
    config = source.config
    for name, value in (("activation", "topk"), ("signed", False)):
        if config.get(name, value) != value:
            raise FormatError(
                f"{source.path} asks for {name} = {config[name]}, which no autoencoder of ours does; only "
                f"{name} = {value} can be read."
            )
    skip, transcode = bool(config.get("skip_connection")), bool(config.get("transcode"))
    shapes = {"encoder.weight": "nd", "encoder.bias": "n", "W_dec": "nd", "b_dec": "d"}
    if skip:
        shapes["W_skip"] = "dd"
    d = source.integer("d_in")
    n = source.integer("num_latents") if config.get("num_latents") else d * source.integer("expansion_factor")
    tensors = source.take(shapes, d=d, n=n)
    W_enc, b_enc, W_dec, b_pre = (tensors[name] for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec"))
    settings = {"k": source.integer("k"), "multi_topk": bool(config.get("multi_topk")) or None}
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    if not (skip or transcode):
        return build("topk", settings, W_enc, W_dec, b_pre, b_enc=b_enc), metadata
    if not transcode:
        b_enc = (b_enc.double() - W_enc.double() @ b_pre.double()).float()
    others = {"W_skip": tensors["W_skip"]} if skip else {}
    return build("transcoder", settings | {"skip": skip or None}, W_enc, W_dec, b_pre, b_enc=b_enc, **others), metadata


def write(sae: SAE, folder: Path, metadata: dict[str, Any]) -> None:
    """Writes what `sparsify.SparseCoder.load_from_disk` reads.

    Raises FormatError for all but TopK, Matryoshka with selection row, and transcoders from a width to the same, and
    for standardise_rows.
    """
    settings = sae.config
    if not selects_rows(sae):
        raise FormatError(
            f"sparsify keeps the k largest of each row, but this autoencoder is {settings.architecture}; write it in "
            "the format saelens."
        )
    if settings.width_out != settings.d_in:
        raise FormatError(
            f"A transcoder of sparsify has one width, but this one goes from {settings.d_in} to {settings.width_out}; "
            "save it with save_sae."
        )
    weights = without_scale(sae, "sparsify")
    tensors = {
        "encoder.weight": weights.W_enc,
        "encoder.bias": sae.b_enc,
        "W_dec": weights.W_dec,
        "b_dec": weights.b_pre,
    }
    if weights.W_skip is not None:
        tensors["W_skip"] = weights.W_skip
    config = {
        "activation": "topk",
        "expansion_factor": max(1, settings.n_latents // settings.d_in),
        "normalize_decoder": sae.unit_decoder,
        "num_latents": settings.n_latents,
        "k": settings.k,
        "multi_topk": bool(settings.multi_topk),
        "skip_connection": "W_skip" in tensors,
        "transcode": not settings.subtracts_pre_bias,
        "d_in": settings.d_in,
        "metadata": metadata,
    }
    write_files(folder, config, "sae.safetensors", tensors)
