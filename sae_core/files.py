"""An autoencoder on disk: sae.safetensors (the weights) and cfg.json (the config and free metadata).

    save_sae(sae, folder, metadata={"site": "resid_post.3"})
    sae = load_sae(folder)
    metadata = read_metadata(folder)

The weights carry no safetensors metadata, because several keys are written in a random order and the bytes must repeat.
"""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_core.architectures import make_sae
from sae_core.config import SAEConfig
from sae_core.errors import FormatError
from sae_core.sae import SAE

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"
SCHEMA = 1


def save_sae(sae: SAE, folder: Path | str, metadata: dict[str, Any] | None = None) -> None:
    """Writes the autoencoder into `folder`, which is made if needed; equal autoencoders give equal bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    config = sae.config.model_dump(mode="json", exclude_none=True)  # later settings leave older bytes alone
    record = {"schema": SCHEMA, "sae": config, "metadata": metadata or {}}
    (folder / CONFIG).write_text(json.dumps(record, sort_keys=True, indent=1) + "\n")


def load_sae(folder: Path | str, device: torch.device | str = "cpu") -> SAE:
    """The autoencoder saved in `folder`; raises FormatError where it is missing, damaged or foreign."""
    folder = Path(folder)
    config = _config(folder)
    weights = read_weights(folder / WEIGHTS)
    with torch.device("meta"):
        sae = make_sae(config)
    _check(weights, {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}, folder / WEIGHTS)
    sae.load_state_dict(weights, assign=True)
    return sae.requires_grad_(False).to(device).eval()


def read_metadata(folder: Path | str) -> dict[str, Any]:
    """The metadata that `save_sae` was given."""
    metadata: dict[str, Any] = _record(Path(folder))["metadata"]
    return metadata


def _record(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise FormatError(f"{folder} holds no {CONFIG}; give a folder that save_sae wrote.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is not JSON ({error}); take it again from its source.") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or not isinstance(record.get("metadata"), dict):
        raise FormatError(f"{path} was not written by save_sae (schema {SCHEMA}); read others with read_foreign.")
    return record


def _config(folder: Path) -> SAEConfig:
    record = _record(folder)
    try:
        return SAEConfig.model_validate(record.get("sae"))
    except ValidationError as error:
        raise FormatError(f"{folder / CONFIG} holds a config that does not fit: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, of any shape and dtype; raises FormatError where it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise FormatError(f"The weights {path} are missing; take them again from their source.") from None
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not whole safetensors ({error}); take it again from its source.") from error


def _check(weights: dict[str, Tensor], expected: dict[str, tuple[int, ...]], path: Path) -> None:
    if weights.keys() != expected.keys():
        raise FormatError(
            f"{path} holds the tensors {sorted(weights)}, not {sorted(expected)}; this is another kind of file."
        )
    for name, shape in expected.items():
        tensor = weights[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise FormatError(
                f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, but {CONFIG} asks for torch.float32 {shape}; "
                "weights and config belong to different autoencoders."
            )
        if not torch.isfinite(tensor).all():
            raise FormatError(f"{path}: {name} holds values that are not finite; train it again.")
