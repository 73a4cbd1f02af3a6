"""Runs another library in the environment .venv-peers (`make peers`), which this project never imports.

    .venv-peers/bin/python tests/sae_core/formats/peers.py saelens FOLDER

FOLDER/x.safetensors holds rows x. What stands in FOLDER/ours/NAME/ is loaded by the library; its own autoencoders are
saved by it as FOLDER/theirs/NAME/. Beside each of these folders NAME.safetensors says what the library computes: code
and out. The version of the library is printed.

Shapes: B rows, N latents, D width.
"""

import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

N, K = 40, 5
Outputs = tuple[Tensor, Tensor]  # code (B, N), out (B, D)
Theirs = Iterator[tuple[str, Callable[[Path], object], Outputs]]  # name, how to save it, what it computes


def randomise(model: nn.Module) -> None:
    """Leaves no weight at its first value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = 0.3 * torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise.abs() + 0.1 if "threshold" in name else tensor + noise)


def saelens_loads(folder: Path, x_BD: Tensor) -> Outputs:
    """A folder of ours through `SAE.load_from_disk`."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    return sae.encode(x_BD), sae(x_BD)


def saelens_makes(x_BD: Tensor) -> Theirs:
    """Every architecture, with and without what changes its arithmetic; training classes as inference models."""
    import sae_lens

    width = {"d_in": x_BD.shape[1], "d_sae": N}
    made = {
        "standard": ("StandardSAE", {}),
        "standard_without_b_dec": ("StandardSAE", {"apply_b_dec_to_input": False}),
        "topk": ("TopKSAE", {"k": K}),
        "topk_rescaled": ("TopKSAE", {"k": K, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": ("JumpReLUSAE", {}),
        "gated": ("GatedSAE", {}),
    }
    for name, (class_name, settings) in made.items():
        sae = getattr(sae_lens, class_name)(getattr(sae_lens, class_name + "Config")(**width, **settings))
        randomise(sae)
        yield name, sae.save_model, (sae.encode(x_BD), sae(x_BD))
    trained = {
        "topk_trained": ("TopKTrainingSAE", {"k": K}),
        "batch_topk_trained": ("BatchTopKTrainingSAE", {"k": K}),
        "matryoshka_trained": ("MatryoshkaBatchTopKTrainingSAE", {"k": K, "matryoshka_widths": [N // 2]}),
    }
    for name, (class_name, settings) in trained.items():
        sae = getattr(sae_lens, class_name)(getattr(sae_lens, class_name + "Config")(**width, **settings))
        randomise(sae)
        yield name, sae.save_inference_model, ()  # what it computes is what SAELens loads again


def sparsify_loads(folder: Path, x_BD: Tensor) -> Outputs:
    """A folder of ours through `SparseCoder.load_from_disk`."""
    from sparsify import SparseCoder

    return sparsify_outputs(SparseCoder.load_from_disk(folder), x_BD)


def sparsify_outputs(coder: nn.Module, x_BD: Tensor) -> Outputs:
    """Its k values and places as a dense code."""
    values_BK, indices_BK, _ = coder.encode(x_BD)
    return x_BD.new_zeros(len(x_BD), N).scatter(1, indices_BK, values_BK), coder(x_BD).sae_out


def sparsify_makes(x_BD: Tensor) -> Theirs:
    """Autoencoder and transcoder, with and without a skip."""
    from sparsify import SparseCoder, SparseCoderConfig

    made = {
        "topk": {},
        "transcoder": {"transcode": True},
        "skip_transcoder": {"transcode": True, "skip_connection": True},
        "skip_without_transcode": {"skip_connection": True},
    }
    for name, settings in made.items():
        coder = SparseCoder(x_BD.shape[1], SparseCoderConfig(num_latents=N, k=K, **settings))
        randomise(coder)
        yield name, coder.save_to_disk, sparsify_outputs(coder, x_BD)


def dictionary_learning_makes(x_BD: Tensor) -> Theirs:
    """Every class of dictionary; saved as its training loop does."""
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    width = x_BD.shape[1]
    made = [
        dictionary.AutoEncoder(width, N),
        dictionary.AutoEncoderNew(width, N),
        dictionary.GatedAutoEncoder(width, N),
        dictionary.JumpReluAutoEncoder(width, N),
        AutoEncoderTopK(width, N, K),
        BatchTopKSAE(width, N, K),
        MatryoshkaBatchTopKSAE(width, N, K, [N // 4, N // 4, N // 2]),
    ]
    for model in made:
        name = type(model).__name__
        randomise(model)

        def save(folder: Path, model: nn.Module = model, name: str = name) -> None:
            folder.mkdir(parents=True)
            trainer = {"dict_class": name, "activation_dim": width, "dict_size": N, "k": K}
            (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
            torch.save({key: value.cpu() for key, value in model.state_dict().items()}, folder / "ae.pt")

        yield name, save, (model.encode(x_BD), model(x_BD))


LIBRARIES = {
    "saelens": ("sae-lens", saelens_makes, saelens_loads),
    "sparsify": ("eai-sparsify", sparsify_makes, sparsify_loads),
    "dictionary_learning": ("dictionary-learning", dictionary_learning_makes, None),
}


@torch.no_grad()
def main() -> None:
    """Loads ours, makes theirs."""
    library, folder = sys.argv[1], Path(sys.argv[2])
    distribution, makes, loads = LIBRARIES[library]
    x_BD = load_file(folder / "x.safetensors")["x"]
    ours = sorted(path for path in (folder / "ours").glob("*") if path.is_dir())
    outputs = {path: loads(path, x_BD) for path in ours}
    for name, save, computed in makes(x_BD):
        save(folder / "theirs" / name)
        outputs[folder / "theirs" / name] = computed or loads(folder / "theirs" / name, x_BD)
    for path, (code_BN, out_BD) in outputs.items():
        save_file({"code": code_BN.contiguous(), "out": out_BD.contiguous()}, path.with_suffix(".safetensors"))
    print(distribution, version(distribution))


if __name__ == "__main__":
    main()
