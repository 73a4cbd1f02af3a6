"""One training step of other libraries, each with its own defaults, against the same floor as ours.

    make peers      installs them into an environment of their own, where `make bench` measures from then on
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.benchmarks import train_step

SHAPE = "d512_n8192_k32"


def measure(wanted: str = "") -> Iterator[dict[str, Any]]:
    """A row for each peer whose name contains `wanted`; one that is not installed is named instead."""
    torch.set_num_threads(train_step.THREADS)
    rows, d, n, k = train_step.SHAPES[f"train_step_cpu_{SHAPE}"]
    for peer, prepared in PEERS.items():
        name = f"peer_{peer}_{SHAPE}"
        if wanted not in name:
            continue
        try:
            step = prepared(rows, d, n, k)
        except ModuleNotFoundError as error:
            print(f"{name:40} not measured: {error}; `make peers` installs it", flush=True)
            continue
        x_BD = train_step.batch(rows, d)
        yield train_step.row(name, lambda step=step, x_BD=x_BD: step(x_BD), train_step.floor(x_BD, n))


def _sparsify(rows: int, d: int, n: int, k: int) -> Callable[[torch.Tensor], Any]:
    """What sparsify's Trainer does around its SparseCoder, with its default settings; it has no step of its own."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    sae = SparseCoder(d, SparseCoderConfig(num_latents=n, k=k))
    optimizer = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=5e-3 / (n / 2**14) ** 0.5), momentum=0.95)
    optimizer.train()
    silent_N = torch.zeros(n, dtype=torch.long)

    def step(x_BD: torch.Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x_BD, dead_mask=None)  # auxk_alpha = 0 is the default
        fired_N = torch.zeros(n, dtype=torch.bool)
        fired_N[out.latent_indices.flatten()] = True
        float(out.fvu)
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent_N.add_(rows)
        silent_N[fired_N] = 0

    return step


def _dictionary_learning(rows: int, d: int, n: int, k: int) -> Callable[[torch.Tensor], Any]:
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(steps=1_000_000, activation_dim=d, dict_size=n, k=k, layer=0, lm_name="none", device="cpu")
    numbers = itertools.count(1)  # 0 would take the geometric median first
    return lambda x_BD: trainer.update(next(numbers), x_BD)


def _sae_lens(rows: int, d: int, n: int, k: int) -> Callable[[torch.Tensor], Any]:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=n, k=k))
    config = SAETrainerConfig(1_000_000 * rows, train_batch_size_samples=rows, lr_end=3e-5)  # its runner sets lr_end
    return SAETrainer(config, sae, data_provider=iter(())).step


PEERS = {"sparsify": _sparsify, "dictionary_learning": _dictionary_learning, "sae_lens": _sae_lens}
