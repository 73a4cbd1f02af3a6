"""The trainers of other libraries, and one training step of each against the same floor as ours.

`make peers` installs them into an environment of their own, where `make bench` measures from then on.

    peer = PEERS["dictionary_learning", "topk"](Budget(rows=1024, d=64, n=1024, k=16, steps=1200))
    peer.step(x_BD)
    peer.save(folder)                       # sae_core.read_foreign(folder) reads it
"""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.benchmarks import train_step

SHAPE = "d512_n8192_k32"
MANY = 1_000_000  # steps of a training of which only some are measured


class Budget(NamedTuple):
    """One training: B = rows of width d a step, n latents of which k fire."""

    rows: int
    d: int
    n: int
    k: int
    steps: int = MANY
    lr: float | None = None  # None: everything by the library's own defaults; else also what `fitted` says
    seed: int = 0

    @property
    def fitted(self) -> tuple[int, int, int]:
        """Steps of warm-up, steps of decay to zero, and steps of silence that make a latent dead: ours in `train`."""
        return self.steps // 20, self.steps // 5, self.steps // 20


class Peer(NamedTuple):
    """A trainer: what it does with a batch (B, D), and how it writes its autoencoder into a folder."""

    step: Callable[[torch.Tensor], Any]
    save: Callable[[Path], Any]


Prepared = Callable[[Budget], Peer]


def measure(wanted: str = "") -> Iterator[dict[str, Any]]:
    """A row for each library whose name contains `wanted`; one that is not installed is named instead."""
    torch.set_num_threads(train_step.THREADS)
    budget = Budget(*train_step.SHAPES[f"train_step_cpu_{SHAPE}"])
    for (library, architecture), prepared in PEERS.items():
        name = f"peer_{library}_{SHAPE}"
        if architecture != "topk" or wanted not in name:
            continue
        try:
            step = prepared(budget).step
        except ModuleNotFoundError as error:
            print(f"{name:40} not measured: {error}; `make peers` installs it", flush=True)
            continue
        yield train_step.step_row(name, step, budget.rows, budget.d, budget.n)


def _sparsify(budget: Budget) -> Peer:
    """What sparsify's Trainer does around its SparseCoder, with its default settings; it has no step of its own."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    torch.manual_seed(budget.seed)
    sae = SparseCoder(budget.d, SparseCoderConfig(num_latents=budget.n, k=budget.k))
    lr = budget.lr or 5e-3 / (budget.n / 2**14) ** 0.5
    optimizer = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=lr), momentum=0.95)
    optimizer.train()
    silent_N = torch.zeros(budget.n, dtype=torch.long)
    numbers = itertools.count()

    def step(x_BD: torch.Tensor) -> None:
        if next(numbers) == 0:
            sae.b_dec.data = x_BD.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x_BD, dead_mask=None)  # auxk_alpha = 0 is the default
        fired_N = torch.zeros(budget.n, dtype=torch.bool)
        fired_N[out.latent_indices.flatten()] = True
        float(out.fvu)
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent_N.add_(budget.rows)
        silent_N[fired_N] = 0

    def save(folder: Path) -> None:
        optimizer.eval()  # the averaged weights
        sae.save_to_disk(folder)
        optimizer.train()

    return Peer(step, save)


def _dictionary_learning(budget: Budget, architecture: str) -> Peer:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    warmup, decay, silence = budget.fitted
    schedule = {"lr": budget.lr, "warmup_steps": warmup, "decay_start": budget.steps - decay} if budget.lr else {}
    made_of = {"activation_dim": budget.d, "dict_size": budget.n, "k": budget.k}
    trainer = {"topk": TopKTrainer, "batch_topk": BatchTopKTrainer}[architecture](
        steps=budget.steps, layer=0, lm_name="none", device="cpu", seed=budget.seed, **made_of, **schedule
    )
    if budget.lr:
        trainer.dead_feature_threshold = silence * budget.rows
    numbers = itertools.count()

    def save(folder: Path) -> None:
        """As its training loop does."""
        folder.mkdir(parents=True)
        described = {"dict_class": type(trainer.ae).__name__} | made_of
        (folder / "config.json").write_text(json.dumps({"trainer": described, "buffer": {}}))
        torch.save(trainer.ae.state_dict(), folder / "ae.pt")

    return Peer(lambda x_BD: trainer.update(next(numbers), x_BD), save)


def _sae_lens(budget: Budget, architecture: str) -> Peer:
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(budget.seed)
    name = {"topk": "TopKTrainingSAE", "batch_topk": "BatchTopKTrainingSAE"}[architecture]
    config = getattr(sae_lens, name + "Config")(d_in=budget.d, d_sae=budget.n, k=budget.k)
    sae = getattr(sae_lens, name)(config)
    warmup, decay, silence = budget.fitted
    fitted = {"lr_warm_up_steps": warmup, "lr_decay_steps": decay, "dead_feature_window": silence}
    schedule = {"lr": budget.lr, **fitted} if budget.lr else {}
    lr_end = (budget.lr or SAETrainerConfig.lr) / 10  # as its runner sets it
    config = SAETrainerConfig(
        budget.steps * budget.rows, train_batch_size_samples=budget.rows, lr_end=lr_end, **schedule
    )
    return Peer(SAETrainer(config, sae, data_provider=iter(())).step, sae.save_inference_model)


PEERS: dict[tuple[str, str], Prepared] = {
    ("sparsify", "topk"): _sparsify,
    ("dictionary_learning", "topk"): lambda budget: _dictionary_learning(budget, "topk"),
    ("dictionary_learning", "batch_topk"): lambda budget: _dictionary_learning(budget, "batch_topk"),
    ("sae_lens", "topk"): lambda budget: _sae_lens(budget, "topk"),
    ("sae_lens", "batch_topk"): lambda budget: _sae_lens(budget, "batch_topk"),
}
