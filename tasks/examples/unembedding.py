"""The unembedding of a language model and the gain of its final norm, without loading the rest of the model.

    unembedding_VD, gain_D = load_unembedding(model_artifact)

The model is built on the meta device (shapes and names only), which says what the checkpoint calls the two tensors
whatever the architecture, tied embeddings included; then only those are read from the safetensors files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts import Artifact
from tasks.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")  # Llama and its like, GPT-2 and Falcon, GPT-NeoX and OPT
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def load_unembedding(model: Artifact) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The unembedding (V, D) and the final norm's weight (D), None for a norm without one, in the checkpoint's dtype.

    Raises InputError for a model without output embeddings or without safetensors files.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tasks.model import model_folder

    folder = model_folder(model)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    head = shell.get_output_embeddings()
    if head is None:
        raise InputError(f"The model in {folder} has no output embeddings; give a causal language model.")
    shell.tie_weights()
    norm = _final_norm(shell)
    gain_D = None if norm is None else _read(shell, norm.get_parameter("weight"), folder)
    return _read(shell, head.get_parameter("weight"), folder), gain_D


def _final_norm(shell: nn.Module) -> nn.Module | None:
    """The last norm before the head: a child, of a name in use, of the module that holds the decoder layers."""
    from sae_core import decoder_layers

    layers = decoder_layers(shell)
    for module in shell.modules():
        if any(child is layers for child in module.children()):
            return next((getattr(module, name) for name in FINAL_NORMS if hasattr(module, name)), None)
    return None


def _read(shell: nn.Module, parameter: nn.Parameter, folder: Path) -> torch.Tensor:
    """One parameter of the checkpoint; tied parameters are stored under one of their names."""
    from safetensors import safe_open

    names = [name for name, other in shell.named_parameters(remove_duplicate=False) if other is parameter]
    for name in names:
        path = folder / _file_of(name, folder)
        if path.is_file():
            with safe_open(path, framework="pt") as tensors:
                if name in set(tensors.keys()):
                    return tensors.get_tensor(name)
    raise InputError(
        f"The model in {folder} has none of the tensors {names} in its safetensors files; save it with save_pretrained."
    )


def _file_of(name: str, folder: Path) -> str:
    index = folder / INDEX
    return json.loads(index.read_text())["weight_map"].get(name, SINGLE) if index.is_file() else SINGLE
