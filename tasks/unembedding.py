"""The unembedding of a language model and the gain of its final norm, without loading the rest of the model.

    unembedding_VD, gain_D = load_unembedding(model_artifact)

The model is built on the meta device (shapes and names only), which says what the checkpoint calls the two tensors
whatever the architecture, tied embeddings included; then only those are read from the safetensors files.
"""

from __future__ import annotations

import json
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

    folder, revision = model_folder(model), model.summary.get("revision")
    config = AutoConfig.from_pretrained(folder, revision=revision)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    head = shell.get_output_embeddings()
    if head is None:
        raise InputError(f"The model {folder} has no output embeddings; give a causal language model.")
    norm = _final_norm(shell)
    unembedding_VD = _read(shell, head.get_parameter("weight"), folder, revision)
    return unembedding_VD, None if norm is None else _read(shell, norm.get_parameter("weight"), folder, revision)


def _final_norm(shell: nn.Module) -> nn.Module | None:
    """The last norm before the head: a child, of a name in use, of the module that holds the decoder layers."""
    from sae_core import decoder_layers

    layers = decoder_layers(shell)
    for module in shell.modules():
        if any(child is layers for child in module.children()):
            return next((getattr(module, name) for name in FINAL_NORMS if hasattr(module, name)), None)
    return None


def _read(shell: nn.Module, parameter: nn.Parameter, folder: object, revision: str | None) -> torch.Tensor:
    """One parameter of the checkpoint; tied parameters are stored under one of their names."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    shell.tie_weights()  # type: ignore[operator]
    names = [name for name, other in shell.named_parameters(remove_duplicate=False) if other is parameter]
    index = cached_file(folder, INDEX, revision=revision, _raise_exceptions_for_missing_entries=False)
    if index:
        with open(index) as file:  # noqa: PTH123
            files = json.load(file)["weight_map"]
    else:
        files = dict.fromkeys(names, SINGLE)
    for name in names:
        if name in files:
            path = cached_file(folder, files[name], revision=revision, _raise_exceptions_for_missing_entries=False)
            if path:
                with safe_open(path, framework="pt") as tensors:
                    if name in tensors.keys():  # noqa: SIM118
                        return tensors.get_tensor(name)
    raise InputError(
        f"The model {folder} has none of the tensors {names} in safetensors files; save it with save_pretrained first."
    )
