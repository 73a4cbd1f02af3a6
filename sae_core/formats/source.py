"""The files of a foreign autoencoder, read once and without running anything that they hold.

source = open_source(Path("downloads/layer_12"))       # a folder, or one file of weights
tensors = source.take({"W_enc": "dn", "b_enc": "n", "W_dec": "nd", "b_dec": "d"}, d=64, n=1024)
"""

import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_core.errors import FormatError
from sae_core.files import read_weights

LAYOUTS = (("cfg.json", "sae_weights.safetensors"), ("cfg.json", "sae.safetensors"), ("config.json", "ae.pt"))


class Source(NamedTuple):
    """Named tensors and the settings beside them."""

    path: Path  # of the weights
    weights: dict[str, Any]
    config: dict[str, Any]  # empty where there is no such file

    def take(self, shapes: dict[str, str], **sizes: int) -> dict[str, Tensor]:
        """Exactly the tensors named, float32, contiguous and sharing no memory.

        `shapes` names each tensor's dimensions by letters ("nd"); `sizes` are those that the config gives, the others
        must agree among the tensors. Raises FormatError for missing or further tensors, another shape, an integer type,
        and values that are not finite.
        """
        if self.weights.keys() != shapes.keys():
            raise FormatError(
                f"{self.path} holds the tensors {sorted(self.weights)}, not {sorted(shapes)}; this is another kind of "
                "file."
            )
        known = {letter: (size, "the config") for letter, size in sizes.items()}
        taken = {}
        for name, letters in shapes.items():
            tensor = self.weights[name]
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
                kind = f"{tensor.layout} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise FormatError(f"{self.path}: {name} is {kind}, not a dense tensor of floats; it is damaged.")
            if tensor.ndim != len(letters):
                raise FormatError(
                    f"{self.path}: {name} has shape {tuple(tensor.shape)}, but must have {len(letters)} dimensions; "
                    "this is another kind of file."
                )
            for letter, size in zip(letters, tensor.shape, strict=True):
                expected, where = known.setdefault(letter, (size, name))
                if size != expected:
                    raise FormatError(
                        f"{self.path}: {name} has shape {tuple(tensor.shape)}, but {where} says {expected} where it "
                        f"has {size}; weights and config belong to different autoencoders."
                    )
            taken[name] = torch.empty(tensor.shape).copy_(tensor)
            if not torch.isfinite(taken[name]).all():
                raise FormatError(f"{self.path}: {name} holds values that are not finite; it cannot be used.")
        return taken

    def integer(self, *keys: str) -> int:
        """A positive integer of the config, `keys` leading to it."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FormatError(f"The config beside {self.path} says {'.'.join(keys)} = {value}; it must be at least 1.")
        return value


def open_source(path: Path) -> Source:
    """What lies at `path`: a folder of one of LAYOUTS, or a file of weights with the config beside it, if any.

    Raises FormatError where there is nothing of the kind, where a file is damaged, or where a pickle holds code.
    """
    if path.is_dir():
        for config, weights in LAYOUTS:
            if (path / weights).exists():
                return Source(path / weights, _tensors(path / weights), _config(path / config, needed=True))
        wanted = ", ".join(weights for _, weights in LAYOUTS)
        raise FormatError(f"{path} holds none of {wanted}; give such a folder, or the file of weights itself.")
    if not path.exists():
        raise FormatError(f"{path} does not exist; give the folder or the file of an autoencoder.")
    beside = {weights: config for config, weights in LAYOUTS}.get(path.name)
    return Source(path, _tensors(path), _config(path.with_name(beside), needed=False) if beside else {})


def _config(path: Path, needed: bool) -> dict[str, Any]:
    if not needed and not path.exists():
        return {}
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise FormatError(f"{path} is missing; take the folder again from its source.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is not JSON ({error}); take it again from its source.") from error
    if not isinstance(config, dict):
        raise FormatError(f"{path} holds {type(config).__name__}, not settings by name; this is another kind of file.")
    return config


def _tensors(path: Path) -> dict[str, Any]:
    weights = read_weights(path) if path.suffix == ".safetensors" else _from_pickle(path)
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise FormatError(f"{path} holds {type(weights).__name__}, not named tensors; save the state dict alone.")
    return weights


def _from_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of unusual pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"would run {found[1]}" if found else "holds more than tensors, or is damaged"
        raise FormatError(
            f"{path} is a pickle that {what}; nothing of it was run. Ask for safetensors or a plain state dict."
        ) from error
    except Exception as error:  # a damaged pickle makes the unpickler raise whatever comes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FormatError(
            f"{path} is not a whole file of torch.save ({reason}); take it again from its source."
        ) from error
